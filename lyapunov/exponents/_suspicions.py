"""Do the parameters of a recurrence look lost: zeroed, re-initialised, downcast?

Only what a trained model does not do is reported. A checkpoint at unusual values
that works (no dt bias to speak of, dt about 0.7 at it) must pass, so everything
here is either a coincidence of bits, or a hint and called so.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Array, Float

from ..formats import FORMATS
from ._initialisation import (
    bias_at_start,
    bias_log_uniform,
    rates_at_start,
    rates_in_range,
)


FEWEST_CHANNELS = 4
FEWEST_DISTINCT = 8
SHARE_ZERO = 1 / 8
"""Part of the channels or heads at exactly 0 from which a parameter is named. No
gradient leaves a number at 0."""
SMALL_BIAS = 1.0
"""Magnitude below which softplus(dt_bias) lies within a factor of two of 0.69."""
NARROW = 3.0
"""Ratio of the 95th to the 5th percentile of dt below which it hardly depends on the
text."""
FORGETFUL = 3.0
"""Tokens: the longest memory of a layer that remembers nothing."""

HINT = "hint: "
"""How a reason begins that is no sign of damage by itself."""

OUTPUTS = ("out_proj", "o_proj", "down")
"""Matrices whose columns read the channels of a sublayer."""


class Suspicion(NamedTuple):
    """Tell why a sublayer looks lost."""

    text: str
    parameters: tuple[str, ...]
    """To compare with the original file, under their canonical names."""
    hint: bool = False
    """No sign of damage by itself."""

    def __str__(self) -> str:
        return f"{HINT}{self.text}" if self.hint else self.text


class StoredParameters(NamedTuple):
    """Hold what a checkpoint stores of a recurrence; None is not looked at."""

    dt_bias: Float[Array | np.ndarray, " d_inner"] | None = None
    A_log: Float[Array | np.ndarray, " d_inner *d_state"] | None = None
    D: Float[Array | np.ndarray, " d_inner"] | None = None
    ones: Mapping[str, np.ndarray] = MappingProxyType({})
    """Further parameters that are 1 before training, by name."""
    stored_dtype: str = "fp32"
    """The format of the checkpoint's tensors. The arrays here may be of any type that
    holds them exactly."""
    dt_limit: tuple[float, float] = (0.0, math.inf)
    """Between which the model clips dt, which then says less of its bias."""
    per_head: bool = False
    """A head has one dt and one rate (Mamba-2, Mamba-3), and d_inner of the shapes is
    the number of heads."""


def suspicions_of(
    dt: Float[Array | np.ndarray, "batch seq d_inner"] | None,
    A: Float[Array | np.ndarray, "d_inner d_state"] | None,
    stored: StoredParameters,
) -> list[Suspicion]:
    """Find why dynamics look lost, damage first; nothing where a model merely works.

    **Arguments:**

    - `dt`: after softplus, on the tokens; None where decays alone are known.
    - `A`: the rates; log decays are dt A.
    - `stored`: what the checkpoint holds, and how it is used.
    """
    dtype, per_head = stored.stored_dtype, stored.per_head
    unit = FORMATS[dtype].unit_roundoff if dtype in FORMATS else 2.0**-24
    bias, logs, skip = (
        None if array is None else np.asarray(array, np.float64)
        for array in (stored.dt_bias, stored.A_log, stored.D)
    )
    bias = None if bias is None else bias.reshape(-1)
    logs = None if logs is None else logs.reshape(logs.shape[0], -1)
    skip = None if skip is None else skip.reshape(-1)
    found = _at_start(bias, logs, skip, unit, stored.ones, per_head)
    named = {name for one in found for name in one.parameters}
    noun = "head" if per_head else "channel"
    if bias is not None and "dt_bias" not in named:
        found += _one_number("dt_bias", bias, noun, never=())
    if logs is not None and "A_log" not in named:
        found += _rates(logs, noun)
    if skip is not None and "D" not in named:
        found += _one_number("D", skip, noun, never=(1.0,))
    free = stored.dt_limit == (0.0, math.inf)
    if bias is not None and dt is not None and not found and free:
        found += _dt_never_leaves(bias, np.asarray(dt), A)
    if logs is not None and dtype == "fp32":
        found += _downcast(logs)
    return sorted(found, key=lambda one: one.hint)


def _one_number(
    name: str, values: np.ndarray, noun: str, never: tuple[float, ...]
) -> list[Suspicion]:
    """A parameter that is one number everywhere, or 0 in a part of the channels.

    **Arguments:**

    - `never`: numbers that it may be everywhere.
    """
    if values.size < FEWEST_CHANNELS:
        return []
    zeros = int(np.sum(values == 0))
    if zeros == values.size:
        why = f"{name} is 0 in every {noun}: it was zeroed or never loaded"
    elif np.all(values == values[0]) and values[0] not in never:
        why = f"{name} is {values[0]:.4g} in every {noun}"
    elif zeros >= max(2, SHARE_ZERO * values.size):
        why = f"{name} is 0 in {zeros:,} of {values.size:,} {noun}s"
    else:
        return []
    return [Suspicion(why, (name,))]


def _rates(logs: np.ndarray, noun: str) -> list[Suspicion]:
    """A_log of one number. A first state or head at 0 is how it begins."""
    if logs.size < FEWEST_CHANNELS:
        return []
    if np.all(logs == logs[0, 0]):
        if logs[0, 0] == 0 and logs.shape[1] == 1 and noun == "channel":
            return []  # log(1..1), where it begins
        word = "0" if logs[0, 0] == 0 else f"{logs[0, 0]:.4g}"
        of = f"{noun} and state" if logs.shape[1] > 1 else noun
        return [Suspicion(f"A_log is {word} in every {of}", ("A_log",))]
    if logs.shape[1] == 1 and noun == "channel":
        return []
    zeros = int(np.sum(np.all(logs == 0, axis=1)))
    if zeros >= max(2, SHARE_ZERO * len(logs)):
        why = f"A_log is 0 in {zeros:,} of {len(logs):,} {noun}s"
        return [Suspicion(why, ("A_log",))]
    return []


def _dt_never_leaves(bias, dt, A) -> list[Suspicion]:
    """A lost dt_bias on data: small, dt hardly depends on the text, no memory.

    A hint: there are networks that were trained so, and work.
    """
    rate = np.abs(np.asarray(A, np.float64).reshape(dt.shape[-1], -1)).min(axis=1)
    slowest = float((dt.mean(axis=(0, 1)) * rate).min())
    if bias.size < FEWEST_CHANNELS or np.abs(bias).max() >= SMALL_BIAS:
        return []
    low, high = np.quantile(dt, (0.05, 0.95))
    if not (high < NARROW * low and slowest * FORGETFUL > 1):
        return []
    why = (
        f"dt_bias lies within {np.abs(bias).max():.2g} of 0, dt between {low:.2g} "
        f"and {high:.2g} for 90 % of the tokens and channels, about softplus(0) = "
        "0.69 where a lost dt_bias leaves it, and no state remembers beyond "
        f"{1 / slowest:.2g} tokens"
    )
    return [Suspicion(why, ("dt_bias",), hint=True)]


def _at_start(bias, logs, skip, unit, ones, per_head) -> list[Suspicion]:
    """A_log, dt_bias and D where a constructor puts them.

    A_log alone at log(1..N) is normal: it is often frozen, and moves little.
    """
    if bias is None or bias.size < FEWEST_CHANNELS or not bias_at_start(bias, unit):
        return []
    others = tuple(name for name, array in ones.items() if np.all(array == 1))
    if skip is None:  # a delta rule
        if not others:
            return []
        names = ("dt_bias", *others)
        why = (
            f"{', '.join(names[:-1])} and {names[-1]} are exactly as before training: "
            "re-initialised after loading, or never trained"
        )
        return [Suspicion(why, names)]
    rates = logs is not None and rates_at_start(logs, unit, per_head)
    if np.all(skip == 1) and (rates or others):
        names = (*(("A_log",) if rates else ()), "dt_bias", "D", *others)
        why = (
            f"{', '.join(names[:-1])} and {names[-1]} are exactly as before training: "
            "re-initialised after loading, or never trained"
        )
        return [Suspicion(why, names)]
    if rates and bias_log_uniform(bias, unit):
        why = (
            "A_log and dt_bias are distributed exactly as before training while D "
            "is not: re-initialised after loading, or frozen"
        )
        return [Suspicion(why, ("A_log", "dt_bias"))]
    drawn = per_head and (logs is None or rates_in_range(logs))
    if np.all(skip == 1) and drawn and not np.all(bias == bias[0]):
        names = ("dt_bias", "D") if logs is None else ("A_log", "dt_bias", "D")
        why = (
            f"D is exactly 1, and {' and '.join(names[:-1])} lie where they are "
            "drawn before training: never loaded, or D was frozen"
        )
        return [Suspicion(why, names, hint=True)]
    return []


def _downcast(logs) -> list[Suspicion]:
    """fp32 values that are all numbers of a 16-bit format went through it."""
    if np.unique(logs).size < FEWEST_DISTINCT:
        return []
    for name, dtype in (("bf16", ml_dtypes.bfloat16), ("fp16", np.float16)):
        with np.errstate(over="ignore"):
            if np.array_equal(logs.astype(dtype).astype(np.float64), logs):
                why = (
                    f"A_log is stored in fp32 and holds {name} numbers only: it was "
                    f"rounded to {name} at some time"
                )
                return [Suspicion(why, ("A_log",), hint=True)]
    return []


def suspects(found: Sequence[Suspicion]) -> list[str]:
    """Name the parameters to compare with the original file.

    Those of damage, or, where there are hints alone, theirs.
    """
    damage = [one for one in found if not one.hint] or found
    return list(dict.fromkeys(name for one in damage for name in one.parameters))


def adds_nothing(
    output: Float[Array | np.ndarray, "batch seq d_model"],
    parameters: Mapping[str, np.ndarray],
) -> list[Suspicion]:
    """Find why a sublayer of any kind adds nothing, or hears nothing of channels.

    **Arguments:**

    - `output`: of the sublayer, on the tokens.
    - `parameters`: as stored, under their canonical names.
    """
    if not np.any(np.asarray(output)):
        zero = tuple(
            name
            for name, array in parameters.items()
            if not name.endswith("_bias") and not np.any(np.asarray(array))
        )
        why = "the sublayer adds nothing on these tokens"
        if zero:
            why += f": {' and '.join(zero)} {'is' if len(zero) == 1 else 'are'} 0"
        return [Suspicion(why, zero)]
    found = []
    for name in OUTPUTS:
        matrix = np.asarray(parameters.get(name, np.ones((1, 1))))
        silent = int(np.sum(~np.any(matrix, axis=tuple(range(matrix.ndim - 1)))))
        if silent >= max(2, SHARE_ZERO * matrix.shape[-1]):
            why = (
                f"{name} is 0 for {silent:,} of {matrix.shape[-1]:,} channels, "
                "pruned or never loaded"
            )
            found.append(Suspicion(why, (name,), hint=True))
    return found
