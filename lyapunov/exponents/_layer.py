"""Exponents of one sublayer on given tokens, and what else its decays say."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from ..formats import format_named
from ..results._check import Exponents, LayerExponents, MemoryTokens
from ._decays import Decays
from ._error_bars import stderr_of_mean


QUANTILES = np.linspace(0, 1, 21)
FORMATS_COUNTED = ("bf16", "fp16", "fp8_e4m3")
"""In which decays that round to 1 or to 0 are counted unless others are asked for."""


def layer_exponents(
    layer: int,
    kind: str,
    log_decay: Decays | Float[Array | np.ndarray, "batch seq *states"],
    *,
    formats: Sequence[str] = FORMATS_COUNTED,
    multiplicity: int = 1,
) -> LayerExponents:
    r"""Find the Lyapunov exponents of a recurrence whose log decays are known.

    The step Jacobian is diagonal, so the exponent of state $i$ is
    $\frac1T \sum_t \log a_{t,i}$, the mean over all batch x seq tokens, the first
    included: exact for these tokens. `max` is the largest, `min` the smallest finite
    one.

    **Arguments:**

    - `layer`, `kind`: which sublayer, as in the report.
    - `log_decay`: at most 0, one a state or head; or `Decays(dt, A)`, of which
      $\Delta_{t,i} A_{i,n}$ are the log decays.
    - `formats`: for which to count decays that round to 1 or to 0.
    - `multiplicity`: coordinates of the state that share each decay, head_dim x
      d_state where it is one a head. Quantiles are the same with and without.

    **Returns:** the fields of `LayerExponents` that decays decide. Quantiles and memory
    are over channels and states; finite-time exponents over windows of the sequence,
    pooled over the batch.

    **Raises:** `ArgumentError` for log decays of another shape, above 0, or none.
    """
    decays = log_decay if isinstance(log_decay, Decays) else Decays.of_logs(log_decay)
    exponents = decays.exponents
    channel, state = map(int, np.unravel_index(np.argmax(exponents), exponents.shape))
    return row_of(
        layer,
        kind,
        exponents,
        decays.log_decay(channel, state),
        decays.finite_time(),
        decays,
        formats=formats,
        multiplicity=multiplicity,
    )


def row_of(
    layer: int,
    kind: str,
    exponents: Float[np.ndarray, "..."],
    largest: Float[np.ndarray, "batch seq"],
    finite_time: dict[str, list[int] | list[float]],
    decays: Decays,
    *,
    formats: Sequence[str],
    multiplicity: int,
) -> LayerExponents:
    """Gather what reports say of exponents, however they were found.

    **Arguments:**

    - `exponents`: all of them; each of `multiplicity` coordinates.
    - `largest`: growth at every token that the largest is the mean of.
    - `decays`: what is counted as decays.
    """
    stderr, method = stderr_of_mean(largest)
    finite = exponents[np.isfinite(exponents)]
    ones, zeros = decays.shares_rounded([format_named(name) for name in formats])
    return LayerExponents(
        layer=layer,
        kind=kind,
        max=float(exponents.max()),
        min=float(finite.min()) if finite.size else None,
        stderr=stderr,
        stderr_method=method,
        memory_tokens=memory_tokens(exponents, decays.n_tokens),
        decay_min=decays.min,
        decay_max=decays.max,
        n_minus_inf=multiplicity * int(np.sum(np.isneginf(exponents))),
        quantiles=_quantiles(exponents, QUANTILES).tolist(),
        decay_histogram=decays.histogram(),
        decay_is_one=ones,
        decay_is_zero=zeros,
        finite_time=finite_time,
        multiplicity=multiplicity,
    )


def with_time_steps(
    row: LayerExponents, dt: Float[Array | np.ndarray, "batch seq channels"]
) -> LayerExponents:
    """Add the least, the largest and the mean time step to the exponents of a layer.

    **Arguments:**

    - `dt`: as the decays use it, after softplus and its limits.
    """
    dt = np.asarray(dt, np.float64)
    return dataclasses.replace(
        row,
        dt_min=float(dt.min()),
        dt_max=float(dt.max()),
        dt_mean=float(dt.mean(axis=(0, 1)).mean()),
    )


def gather_exponents(layers: Sequence[LayerExponents], n_tokens: int) -> Exponents:
    """Gather the exponents of a checkpoint from those of its sublayers.

    The whole stack, fed with given tokens, has a block-triangular step Jacobian, so
    its exponents are those of its sublayers together (windows of convolutions, whose
    exponents are -inf, are not counted).

    **Arguments:**

    - `layers`: one a sublayer, with or without a recurrence.
    - `n_tokens`: batch x seq.

    **Returns:** the largest and where it is (a NaN counts as largest), the smallest
    finite one.
    """
    recurrent = [(row.max, row) for row in layers if row.max is not None]
    if not recurrent:
        return Exponents(None, None, 0, None, None, None, n_tokens, list(layers))
    _, top = max(recurrent, key=lambda pair: (math.isnan(pair[0]), pair[0]))
    finite = [row.min for row in layers if row.min is not None]
    return Exponents(
        max=top.max,
        min=min(finite, default=None),
        n_minus_inf=sum(row.n_minus_inf for row in layers),
        max_layer=top.layer,
        stderr=top.stderr,
        stderr_method=top.stderr_method,
        n_tokens=n_tokens,
        layers=list(layers),
    )


def memories(exponents: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """-1 / exponent in tokens; infinite where nothing fades, 0 at -inf."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(exponents >= 0, np.inf, -1 / exponents)


def memory_tokens(
    exponents: Float[np.ndarray, "d_inner d_state"], seq: int
) -> MemoryTokens:
    """Find quantiles of -1 / exponent, in tokens: 0 at -inf, null at 0 and above.

    `exceeds_sample` where the longest is longer than a sequence.
    """
    memory = memories(exponents)
    found = _quantiles(memory, np.array([0.5, 0.9, 1.0])).tolist()
    p50, p90, longest = (value if np.isfinite(value) else None for value in found)
    return MemoryTokens(p50, p90, longest, exceeds_sample=bool(found[-1] > seq))


def _quantiles(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Linear between values; with infinite ones among them the value below, since
    nothing lies between a number and infinity."""
    method = "linear" if np.isfinite(values).all() else "lower"
    if np.isnan(values).any():
        return np.full(at.shape, np.nan)
    return np.quantile(values, at, method=method)
