"""What a computation of Lyapunov exponents returns."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from ..arithmetic._fp64 import in_fp64
from ..results._shown import Shown, plain
from ._batch_means import AbstractErrorBars, ErrorBars, Windows
from ._cosines import SlowestCosines


MOST_POINTS = 64


class SpectrumResult(eqx.Module, Shown):
    """Hold the exponents of a trajectory, in nats per token, the largest first.

    They are exact for this trajectory up to rounding, but for what `notes` says. How
    far they are from the limit, or from other text of the same kind, is what `stderr`
    and `interval` estimate, from the growth over windows of the trajectory.
    """

    exponents: Float[Array, " k"]
    growth: Float[Array, "windows k"]
    """Log growth over windows of `width` tokens, the last one shorter."""
    used: Int[Array, ""]
    """Tokens that the exponents are of."""
    width: int = eqx.field(static=True)
    multiplicity: Int[Array, " k"]
    """Coordinates of the state that share each exponent."""
    method: str = eqx.field(static=True)
    notes: tuple[str, ...] = eqx.field(static=True, default=())
    converged: Bool[Array, ""] | None = None
    """Whether the stopping rule was met; None where there was none."""
    resolved: Bool[Array, " k"] | None = None
    """Whether each is known by itself. Of the others only the sum is, exactly: at some
    token fp64 does not tell their directions apart. None for methods that tell all."""

    @property
    def n_tokens(self) -> int | Int[Array, ""]:
        """Take `used` as an integer where it is known to be one."""
        if isinstance(self.used, Tracer):
            return self.used
        values = np.asarray(self.used)
        alike = (values == values.flat[0]).all()
        return int(values.flat[0]) if alike else self.used

    @property
    @in_fp64
    def history(self) -> Float[Array, "points k"]:
        """Compute the exponents of the trajectory's first `history_tokens` tokens."""
        total = jnp.cumsum(self.growth, axis=-2)[..., self._points, :]
        return total / self.history_tokens[..., None].astype(total.dtype)

    @property
    @in_fp64
    def history_tokens(self) -> Int[Array, " points"]:
        """Choose the lengths of `history`, at most 64, the last one the whole."""
        ends = jnp.asarray((self._points + 1) * self.width)
        return jnp.minimum(ends, jnp.asarray(self.used)[..., None])

    @property
    def _points(self) -> np.ndarray:
        windows = self.growth.shape[-2]
        every = -(-windows // MOST_POINTS)
        return np.minimum(np.arange(every, windows + every, every), windows) - 1

    @property
    @in_fp64
    def repeated(self) -> Float[Array, " d"]:
        """Repeat each exponent as often as coordinates share it. Not under `jit`."""
        return jnp.repeat(self.exponents, np.asarray(self.multiplicity))

    @in_fp64
    def error_bars(self, method: AbstractErrorBars | None = None) -> ErrorBars:
        """Estimate standard errors, by default with `SlowestCosines()`.

        Where the trajectory is too short for its correlation they are withheld:
        `ErrorBars.reasons` says why, and how long one would do.
        """
        method = SlowestCosines() if method is None else method
        return _bars(method, Windows(self.growth, self.used, self.width))

    @property
    def stderr(self) -> Float[Array, " k"]:
        """Estimate standard errors by the default method; NaN where withheld."""
        return self.error_bars().stderr

    @in_fp64
    def interval(
        self, level: float = 0.95, method: AbstractErrorBars | None = None
    ) -> Float[Array, "k 2"]:
        """Find the interval that holds the limit in a share `level` of cases.

        By Student's t; NaN where the bar is withheld. Of those given at 0.95, 93 % hold
        under slow drifts (of up to 2 % of the variance) whose correlation time is a
        sixteenth of the trajectory or less, and 89 % at a tenth. A longer drift is seen
        and its bar withheld where it is strong; a weak one would not be seen, and its
        intervals are too narrow: `SlowestCosines` has the figures.
        """
        half = self.error_bars(method).half_width(level)
        return jnp.stack([self.exponents - half, self.exponents + half], axis=-1)

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

    __str__ = __repr__

    def to_dict(self) -> dict[str, Any]:
        """Write it in plain JSON types; infinities become null beside a flag."""
        bars = self.error_bars()
        stderr = np.asarray(bars.stderr)
        return plain(
            {
                "exponents": np.asarray(self.exponents).tolist(),
                "multiplicity": np.asarray(self.multiplicity).tolist(),
                "stderr": [None if np.isnan(x) else x for x in stderr.tolist()],
                "stderr_withheld": bars.reasons(),
                "history": [
                    {"token": token, "exponents": row}
                    for token, row in zip(
                        np.asarray(self.history_tokens).tolist(),
                        np.asarray(self.history).tolist(),
                        strict=True,
                    )
                ],
                "n_tokens": self.n_tokens,
                "converged": None if self.converged is None else bool(self.converged),
                "method": self.method,
                "notes": list(self.notes),
                "unit": "nats per token",
            }
        )


@eqx.filter_jit
def _bars(method, windows):
    return method(windows)
