"""What a computation of Lyapunov exponents returns."""

from typing import Any

import equinox as eqx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from .._results import _plain


class SpectrumResult(eqx.Module):
    """Lyapunov exponents of a trajectory, in nats per token, the largest first.

    They are exact for this trajectory up to rounding, but for what `notes` says; how
    far they are from the limit, or from other text, is another question.
    """

    exponents: Float[Array, " k"]
    history: Float[Array, "points k"]
    """The exponents of the trajectory's first `history_tokens` tokens."""
    history_tokens: Int[Array, " points"]
    n_tokens: int = eqx.field(static=True)
    method: str = eqx.field(static=True)
    notes: tuple[str, ...] = eqx.field(static=True, default=())

    def __repr__(self) -> str:
        if isinstance(self.exponents, Tracer):
            shown = str(self.exponents)
        else:
            values = np.asarray(self.exponents)
            shown = ", ".join(f"{x:.6g}" for x in values.flat[:6])
            if values.ndim > 1:  # made under vmap
                shown = np.array2string(values, precision=6, threshold=12)
            elif values.size > 6:
                shown += f", ... ({values.size} in all)"
        return f"{shown} nats per token ({self.method}, {self.n_tokens} tokens)"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; infinities become null beside a flag."""
        return _plain(
            {
                "exponents": np.asarray(self.exponents).tolist(),
                "history": [
                    {"token": token, "exponents": row}
                    for token, row in zip(
                        np.asarray(self.history_tokens).tolist(),
                        np.asarray(self.history).tolist(),
                        strict=True,
                    )
                ],
                "n_tokens": self.n_tokens,
                "method": self.method,
                "notes": list(self.notes),
                "unit": "nats per token",
            }
        )
