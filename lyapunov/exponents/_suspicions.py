"""Do the parameters of a recurrence look lost: zeroed, re-initialised, downcast?

Only what a trained model does not do is reported. A checkpoint at unusual values
that works (no dt bias to speak of, dt about 0.7 at it) must pass, so everything
here is either a coincidence of bits or backed by what dt does on the tokens.
"""

import math

import ml_dtypes
import numpy as np
from jaxtyping import Array, Float

from ..formats import FORMATS


FEWEST_CHANNELS = 4
FEWEST_FOR_SHAPE = 64
"""Channels below which the distribution of dt_bias says nothing."""
FEWEST_DISTINCT = 8
DT_RANGE = (1e-3, 1e-1)
"""mamba_ssm's dt_min and dt_max at initialisation."""
DT_FLOOR = 1e-4


def lost_dynamics(
    dt: Float[np.ndarray, "batch seq d_inner"],
    A: Float[np.ndarray, "d_inner d_state"],
    *,
    dt_bias: Float[Array | np.ndarray, " d_inner"] | None = None,
    A_log: Float[Array | np.ndarray, "d_inner *d_state"] | None = None,
    D: Float[Array | np.ndarray, " d_inner"] | None = None,
    stored_dtype: str = "fp32",
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> list[str]:
    """Why the dynamics look lost, in words; empty for a model that merely works.

    A reason that starts with "hint:" is no sign of damage by itself.

    **Arguments:**

    - `dt`: after softplus, on the tokens. `A`: (d_inner, d_state).
    - `dt_bias`, `A_log`, `D`: as stored, in any dtype that holds them exactly.
    - `stored_dtype`: the format of the checkpoint's tensors.
    - `dt_limit`: between which the model clips dt, which then says less of its bias.
    """
    unit = FORMATS[stored_dtype].unit_roundoff if stored_dtype in FORMATS else 2.0**-24
    reasons = []
    bias = None if dt_bias is None else np.asarray(dt_bias, np.float64).reshape(-1)
    logs = None
    if A_log is not None:
        logs = np.asarray(A_log, np.float64)
        logs = logs.reshape(logs.shape[0], -1)
    skip = None if D is None else np.asarray(D, np.float64).reshape(-1)

    if bias is not None and bias.size >= FEWEST_CHANNELS:
        if np.all(bias == 0):
            reasons.append(
                "dt_bias is 0 in every channel: it was zeroed or never loaded"
            )
        elif np.all(bias == bias[0]):
            reasons.append(f"dt_bias is {bias[0]:.4g} in every channel")
        elif dt_limit == (0.0, math.inf) and _dt_never_leaves(bias, dt, A):
            reasons.append(
                f"dt stays between {dt.min():.2g} and {dt.max():.2g} on these tokens, "
                "about softplus(0) = 0.69 where a lost dt_bias leaves it, and no "
                "state remembers beyond a few tokens"
            )
    if logs is not None and logs.size >= FEWEST_CHANNELS and np.all(logs == logs[0, 0]):
        at_init = logs.shape[1] == 1 and logs[0, 0] == 0
        if not at_init:
            word = "0" if logs[0, 0] == 0 else f"{logs[0, 0]:.4g}"
            reasons.append(f"A_log is {word} in every channel and state")
    if logs is not None and bias is not None and skip is not None:
        reasons += _at_initialisation(bias, logs, skip, unit)
    if logs is not None and stored_dtype == "fp32":
        reasons += _downcast(logs)
    return reasons


def _dt_never_leaves(bias, dt, A) -> bool:
    """A lost dt_bias on data: small, dt hardly depends on the text, no memory."""
    small = np.abs(bias).max() < 1
    narrow = dt.max() < 3 * dt.min()
    forgetful = dt.min() * np.abs(A).min() > 1 / 3
    return bool(small and narrow and forgetful)


def _at_initialisation(bias, logs, skip, unit) -> list[str]:
    """A_log, dt_bias and D where mamba_ssm puts them before training.

    A_log alone at log(1..N) is normal: it is often frozen, and moves little.
    """
    s4d = np.log(np.arange(1, logs.shape[1] + 1))
    if not np.all(np.abs(logs - s4d) <= 2 * unit * s4d):
        return []
    dt = np.logaddexp(0, bias)
    slack = 1 + 8 * unit + 1e-6
    low, high = DT_RANGE
    # the format rounds dt_bias, so log dt moves by unit |dt_bias| more
    slack *= math.exp(unit * np.abs(bias).max())
    untouched = bool(np.all((dt >= DT_FLOOR / slack) & (dt <= high * slack)))
    if np.all(skip == 1) and untouched:
        return [
            "A_log, dt_bias and D are exactly as before training: re-initialised "
            "after loading, or never trained"
        ]
    inside = untouched and bool(np.all(dt >= low / slack))
    if inside and bias.size >= FEWEST_FOR_SHAPE and _log_uniform(dt):
        return [
            "A_log and dt_bias are distributed exactly as before training while D "
            "is not: re-initialised after loading, or frozen"
        ]
    return []


def _log_uniform(dt) -> bool:
    """Kolmogorov-Smirnov at 1 %: log dt uniform over mamba_ssm's range."""
    low, high = np.log(DT_RANGE)
    place = np.clip(np.sort((np.log(dt) - low) / (high - low)), 0, 1)
    count = place.size
    above = np.arange(1, count + 1) / count - place
    below = place - np.arange(count) / count
    return bool(max(above.max(), below.max()) * math.sqrt(count) < 1.63)


def _downcast(logs) -> list[str]:
    """fp32 values that are all numbers of a 16-bit format went through it."""
    if np.unique(logs).size < FEWEST_DISTINCT:
        return []
    for name, dtype in (("bf16", ml_dtypes.bfloat16), ("fp16", np.float16)):
        with np.errstate(over="ignore"):
            if np.array_equal(logs.astype(dtype).astype(np.float64), logs):
                return [
                    f"hint: A_log is stored in fp32 and holds {name} numbers only: "
                    f"it was rounded to {name} at some time"
                ]
    return []
