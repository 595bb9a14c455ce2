"""Where the keys that an execution stores let a delta rule's state grow."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..arithmetic._delta import log_norm_bound
from ..arithmetic._fp64 import in_fp64
from ..formats import round_to
from ..implementations import Execution
from ..results._check import KeyExpansion


KEYS = "k_unit"
"""The site where keys of norm 1 are stored; decode kernels normalise in registers."""
MOST_TOKENS = 64


@in_fp64
def key_expansion(
    observed: Mapping[str, Any],
    stored: Mapping[str, Any],
    execution: Execution,
    rate_scale: float = 1.0,
) -> KeyExpansion | None:
    """Find the steps of heads whose norm exceeds 1 with the keys as they are stored.

    With beta |k|^2 <= 2 no step of a delta rule expands. A key whose norm is rounded
    up to 1 + u exceeds that where beta is near 2, and then what was there grows by up
    to (beta |k|^2 - 1) D.

    **Arguments:**

    - `observed`: by the reference, `log_gate`, `rate` and `key` of
      `sublayers.DeltaDynamics`.
    - `stored`: by the execution, keys and sigmoids of rates. Of what its runner does
      not see, the reference's are taken, rounded.
    - `rate_scale`: what a sigmoid is multiplied by for a rate.

    **Returns:** None where it stores no keys, or where no step expands.
    """
    if KEYS not in execution.sites or "key" not in observed:
        return None

    def held(site: str, exact: np.ndarray) -> np.ndarray:
        if site in stored:
            return np.asarray(stored[site], np.float64)
        if site not in execution.sites:
            return exact
        numbers = execution.sites[site].numbers()
        return np.asarray(round_to(jnp.asarray(exact), numbers))

    log_gate, rate, key = (
        np.asarray(observed[name], np.float64) for name in ("log_gate", "rate", "key")
    )
    rate = rate_scale * held("rate", rate / rate_scale)
    erased = np.sum(held(KEYS, key) ** 2, axis=-1)
    erased = np.repeat(erased, rate.shape[2] // erased.shape[2], axis=2)
    growth = np.asarray(log_norm_bound(log_gate, rate * erased))
    expands = growth > 0
    if not expands.any():
        return None
    total, (batch, head), start, stop = _longest_growth(growth)
    return KeyExpansion(
        steps=int(expands.sum()),
        steps_total=expands.size,
        largest=float(growth.max()),
        growth=total,
        batch=batch,
        head=head,
        start=start,
        stop=stop,
        tokens=np.flatnonzero(expands.any(axis=(0, 2)))[:MOST_TOKENS].tolist(),
    )


def _longest_growth(growth: np.ndarray) -> tuple[float, tuple[int, int], int, int]:
    """The largest sum over a stretch of tokens: it, its sequence and head, and where
    it begins and ends. (batch, seq, heads)."""
    sums = np.cumsum(growth, axis=1)
    before = np.concatenate([np.zeros_like(sums[:, :1]), sums[:, :-1]], axis=1)
    lowest = np.minimum.accumulate(before, axis=1)
    gained = sums - lowest
    batch, last, head = map(int, np.unravel_index(gained.argmax(), gained.shape))
    start = int(np.argmin(before[batch, : last + 1, head]))
    return float(gained[batch, last, head]), (batch, head), start, last + 1
