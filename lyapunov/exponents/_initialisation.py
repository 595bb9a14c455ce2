"""What parameters are before training, as the libraries that make them draw them.

Mamba-1 and its kin start A_log at log(1..N) over the states of a channel, Mamba-2 in
transformers at log(1..heads), in mamba_ssm at the log of uniform numbers from 1 to 16.
D, the weights of norms and the biases of Mamba-3's keys start at 1. softplus(dt_bias)
is log-uniform from 0.001 to 0.1; transformers' Jamba starts dt_bias at 0, and its
Bamba, Granite and Falcon-H1 at 1. Matrices are normal or uniform draws.
"""

import math
from collections.abc import Mapping

import numpy as np


DT_RANGE = (1e-3, 1e-1)
"""mamba_ssm's dt_min and dt_max."""
DT_FLOOR = 1e-4
CONSTANT_BIASES = (0.0, 1.0)
"""dt_bias in transformers' Jamba, and in its Bamba, Granite and Falcon-H1."""
RATE_RANGE = (1.0, 16.0)
"""mamba_ssm's A_init_range of Mamba-2."""
FEWEST_FOR_SHAPE = 64
"""Channels below which the distribution of dt_bias says nothing."""

SMALLEST_MATRIX = 256
"""Elements below which the kurtosis of a matrix says nothing."""
MOST_SAMPLED = 2**20
FOURTH_MOMENTS = (3.0, 1.8)
"""E[x^4] / E[x^2]^2 of a normal and of a uniform distribution."""
FAR = 6.0
"""Standard errors (sqrt(24 / n), that of a normal sample) that a sample's kurtosis may
lie off: some thousand matrices are asked at once, and small samples have a long tail
above."""


def rates_at_start(logs: np.ndarray, unit: float, per_head: bool) -> bool:
    """Ask whether A_log is the logarithm of 1, 2, 3, ... over states, or over heads.

    **Arguments:**

    - `logs`: (channels, states), or (heads, 1) where a head has one rate.
    - `unit`: unit roundoff of the format that it is stored in.
    """
    channels, states = logs.shape
    first = np.log(np.arange(1, states + 1))
    if per_head:
        first = np.log(np.arange(1, channels + 1))[:, None]
    return bool(np.all(np.abs(logs - first) <= 2 * unit * first))


def rates_in_range(logs: np.ndarray) -> bool:
    """Ask whether rates, one a head, lie where mamba_ssm draws those of Mamba-2."""
    low, high = np.log(RATE_RANGE)
    return bool(np.all((logs >= low) & (logs <= high)))


def bias_at_start(bias: np.ndarray, unit: float) -> bool:
    """Ask whether dt_bias is where a constructor puts it.

    That is a constant, or a dt from 1e-4 (the floor) to 0.1.
    """
    if any(np.all(bias == constant) for constant in CONSTANT_BIASES):
        return True
    slack = _slack(bias, unit)
    dt = np.logaddexp(0, bias)
    return bool(np.all((dt >= DT_FLOOR / slack) & (dt <= DT_RANGE[1] * slack)))


def bias_log_uniform(bias: np.ndarray, unit: float) -> bool:
    """Ask whether softplus(dt_bias) are log-uniform from 0.001 to 0.1.

    By Kolmogorov and Smirnov's test at 1 %; false where they are too few for it.
    """
    dt = np.logaddexp(0, bias)
    if dt.size < FEWEST_FOR_SHAPE or np.any(dt < DT_RANGE[0] / _slack(bias, unit)):
        return False
    low, high = np.log(DT_RANGE)
    place = np.clip(np.sort((np.log(dt) - low) / (high - low)), 0, 1)
    count = place.size
    above = np.arange(1, count + 1) / count - place
    below = place - np.arange(count) / count
    return bool(max(above.max(), below.max()) * math.sqrt(count) < 1.63)


def _slack(bias: np.ndarray, unit: float) -> float:
    """By what factor a format moves dt: it rounds dt_bias, so that log dt moves by
    unit |dt_bias|, and the constructor rounds too."""
    return (1 + 8 * unit + 1e-6) * math.exp(unit * np.abs(bias).max())


def at_initialisation(
    parameters: Mapping[str, np.ndarray], norm_offset: float = 0.0
) -> bool | None:
    """Ask whether all that tells a trained sublayer from a fresh one says fresh.

    Every weight of a norm, D and the biases of Mamba-3's keys are exactly 1, every
    bias of a norm is 0, and every matrix of 256 elements and more has the fourth
    moment of a normal or uniform draw (or is one number).

    **Arguments:**

    - `parameters`: a sublayer's, as stored, under their canonical names.
    - `norm_offset`: what is added to the weights of its norms, but for that behind a
      gate, which then begin at 0.

    **Returns:** None where nothing tells.
    """
    told = [
        fresh
        for name, array in parameters.items()
        if (fresh := _fresh(name, np.asarray(array), norm_offset)) is not None
    ]
    return all(told) if told else None


def _fresh(name: str, array: np.ndarray, norm_offset: float) -> bool | None:
    if name in ("dt_bias", "A_log"):
        return None  # drawn in as many ways as there are families
    if name in ("query_decay", "key_decay", "diagonal_decay"):
        return None  # constants of lightning attention
    if "norm" in name:  # q_norm, norm_behind, mlp_norm_bias, ...
        first = 0 if name.endswith("_bias") else 1
        if first and name != "gate_norm":
            first -= norm_offset
        return bool(np.all(array == first))
    if name in ("D", "B_bias", "C_bias"):
        return bool(np.all(array == 1))
    if array.ndim < 2 or array.size < SMALLEST_MATRIX:
        return None
    return _is_draw(array)


def _is_draw(matrix: np.ndarray) -> bool:
    flat = matrix.reshape(-1)
    sample = flat[:: -(-flat.size // MOST_SAMPLED)].astype(np.float64)
    squares = (sample - sample.mean()) ** 2
    square = float(np.mean(squares))
    if not math.isfinite(square):
        return False
    if square == 0:
        return True
    kurtosis = float(np.mean((squares / square) ** 2))
    allowed = FAR * math.sqrt(24 / sample.size)
    return any(abs(kurtosis - moment) <= allowed for moment in FOURTH_MOMENTS)
