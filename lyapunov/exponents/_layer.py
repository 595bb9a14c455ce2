"""Exponents of one sublayer on given tokens, and what else its decays say."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from ..formats import format_named
from ..results._check import Exponents, LayerExponents, MemoryTokens
from ._decays import Decays
from ._error_bars import stderr_of_mean
from ._suspicions import suspects, suspicions_of


MOST_WINDOWS = 64
QUANTILES = np.linspace(0, 1, 21)


def layer_exponents(
    layer: int,
    kind: str,
    dt: Float[Array | np.ndarray, "batch seq d_inner"],
    A: Float[Array | np.ndarray, "d_inner *d_state"],
    *,
    max_abs_state: float | None = None,
    max_abs_output: float | None = None,
    formats: Sequence[str] = ("bf16", "fp16", "fp8_e4m3"),
    dt_bias: Float[Array | np.ndarray, " d_inner"] | None = None,
    A_log: Float[Array | np.ndarray, "d_inner *d_state"] | None = None,
    D: Float[Array | np.ndarray, " d_inner"] | None = None,
    stored_dtype: str = "fp32",
    multiplicity: int = 1,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    per_head: bool = False,
) -> LayerExponents:
    r"""Lyapunov exponents of a recurrence with decays $a_t = e^{\Delta_t A}$.

    The step Jacobian is diagonal, so the exponent of channel $i$ and state $n$ is
    $\frac1T \sum_t \Delta_{t,i} A_{i,n}$, the mean over all batch x seq tokens, the
    first included: exact for these tokens. `max` is the largest, `min` the smallest
    finite one.

    **Arguments:**

    - `layer`, `kind`: which sublayer, as in the report.
    - `dt`: after softplus. `A`: not positive; one value a head (1-D) or one a
      channel and state.
    - `max_abs_state`, `max_abs_output`: handed through to the result.
    - `formats`: for which to count decays that round to 1 or to 0.
    - `dt_bias`, `A_log`, `D`, `stored_dtype`: parameters as the checkpoint holds
      them, for `suspicions`; what is not given is not looked at.
    - `multiplicity`: coordinates of the state that share each decay, head_dim x
      d_state where it is one a head. Quantiles are the same with and without.
    - `dt_limit`: between which the model clips dt.
    - `per_head`: channels of `dt` and `A` are heads.

    **Returns:** every field of `LayerExponents`. Quantiles and memory are over
    channels and states; finite-time exponents over windows of the sequence, pooled
    over the batch.
    """
    dt = np.asarray(dt, np.float64)
    A = np.asarray(A, np.float64).reshape(dt.shape[-1], -1)
    if dt.ndim != 3 or 0 in dt.shape:
        raise ValueError(
            f"dt has shape {dt.shape}; give (batch, seq, d_inner), none of them 0"
        )
    seq = dt.shape[1]
    mean_dt = dt.mean(axis=(0, 1))
    with np.errstate(invalid="ignore", over="ignore"):
        exponents = mean_dt[:, None] * A
        channel, state = np.unravel_index(np.argmax(exponents), A.shape)
        stderr, method = stderr_of_mean(dt[:, :, channel] * A[channel, state])
    largest = float(exponents[channel, state])
    finite = exponents[np.isfinite(exponents)]
    decays = Decays(dt, A)
    lost = suspicions_of(
        dt,
        A,
        dt_bias=dt_bias,
        A_log=A_log,
        D=D,
        stored_dtype=stored_dtype,
        dt_limit=dt_limit,
        per_head=per_head,
    )
    ones, zeros = decays.shares_rounded([format_named(name) for name in formats])
    return LayerExponents(
        layer=layer,
        kind=kind,
        max=largest,
        min=float(finite.min()) if finite.size else None,
        stderr=stderr,
        stderr_method=method,
        memory_tokens=memory_tokens(exponents, seq),
        decay_min=decays.min,
        decay_max=decays.max,
        max_abs_state=None if max_abs_state is None else float(max_abs_state),
        max_abs_output=None if max_abs_output is None else float(max_abs_output),
        n_minus_inf=multiplicity * int(np.sum(np.isneginf(exponents))),
        quantiles=_quantiles(exponents, QUANTILES).tolist(),
        decay_histogram=decays.histogram(),
        decay_is_one=ones,
        decay_is_zero=zeros,
        dt_min=float(dt.min()),
        dt_max=float(dt.max()),
        dt_mean=float(mean_dt.mean()),
        finite_time=finite_time(dt, A),
        suspicions=[str(one) for one in lost],
        suspects=suspects(lost),
        multiplicity=multiplicity,
    )


def gather_exponents(layers: Sequence[LayerExponents], n_tokens: int) -> Exponents:
    """The exponents of a checkpoint from those of its sublayers.

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


def memory_tokens(
    exponents: Float[np.ndarray, "d_inner d_state"], seq: int
) -> MemoryTokens:
    """-1 / exponent in tokens: 0 at -inf, null at 0, flagged beyond the sample."""
    with np.errstate(divide="ignore", invalid="ignore"):
        memory = np.where(exponents == 0, np.inf, -1 / exponents)
    p50, p90, longest = _quantiles(memory, np.array([0.5, 0.9, 1.0])).tolist()
    return MemoryTokens(
        p50=p50 if np.isfinite(p50) else None,
        p90=p90 if np.isfinite(p90) else None,
        max=longest if np.isfinite(longest) else None,
        exceeds_sample=bool(longest > seq),
    )


def finite_time(
    dt: Float[np.ndarray, "batch seq d_inner"],
    A: Float[np.ndarray, "d_inner d_state"],
) -> dict[str, list[float]]:
    """The largest exponent of each of at most 64 windows, and where they end.

    A window's exponents are means over its tokens and the batch; `token` counts the
    tokens up to its end. The last window may be shorter.
    """
    seq = dt.shape[1]
    width = -(-seq // MOST_WINDOWS)
    starts = np.arange(0, seq, width)
    ends = np.minimum(starts + width, seq)
    sums = np.add.reduceat(dt.mean(axis=0), starts, axis=0)
    with np.errstate(invalid="ignore", over="ignore"):
        # dt >= 0: the slowest state of a channel has the largest exponent
        largest = (sums / (ends - starts)[:, None] * A.max(axis=1)).max(axis=1)
    return {"token": ends.tolist(), "max": largest.tolist()}


def _quantiles(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Linear between values; with infinite ones among them the value below, since
    nothing lies between a number and infinity."""
    method = "linear" if np.isfinite(values).all() else "lower"
    if np.isnan(values).any():
        return np.full(at.shape, np.nan)
    return np.quantile(values, at, method=method)
