"""What may differ between what one call left and what the next one began with: nothing.

A hand-over is a copy of bytes, wherever it goes: no rounding explains a bit. Two rules
have more to say. A window holds the last inputs of a convolution, which the dump has,
in the format that is declared of it. And a store of 8-bit integers rounds: SGLang's
keeps `q = round(x / s)` with one scale a (head, state), `s = amax / 127` over the
head's channels, rounded to the state's format (`sglang/srt/mem_cache/
mamba_checkpoint_pool.py`, 0.5.23), and gives back `q s`.
"""

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float

from .._errors import UsageError


DTYPES = {
    "fp32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
    "fp8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "fp8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
"""Formats that windows are kept in, or wrongly might be."""

INT8_ENDS = 127
LEAST_AMAX = 1e-8
"""Below it the store takes a row's largest entry to be this."""


def differing(
    left: Float[np.ndarray, "*shape"], taken: Float[np.ndarray, "*shape"]
) -> Bool[np.ndarray, "*shape"]:
    """Find the elements that are not copies: other bits, or other numbers where the
    formats differ."""
    if left.dtype == taken.dtype:
        whole = f"u{left.dtype.itemsize}"
        one, other = (np.ascontiguousarray(x).view(whole) for x in (left, taken))
        return one != other
    one, other = (x.astype(np.float64) for x in (left, taken))
    return ~((one == other) | (np.isnan(one) & np.isnan(other)))


def beyond_int8(
    left: Float[np.ndarray, "*rows channels states"],
    taken: Float[np.ndarray, "*rows channels states"],
) -> Bool[np.ndarray, "*rows channels states"]:
    """Find the elements that a store of 8-bit integers does not explain."""
    apart = np.abs(taken.astype(np.float64) - left.astype(np.float64))
    return ~(apart <= int8_bound(left))


def int8_bound(
    left: Float[np.ndarray, "*rows channels states"],
) -> Float[np.ndarray, "*rows channels states"]:
    """Bound how far a store of 8-bit integers moves a state: half a step of its row.

    The quotient is rounded to fp32 before it is rounded to an integer, which moves a
    near tie by 127 units of fp32; `q s` is rounded to fp32 and then to the state's
    format. Integers end at 127, which cuts off entries where the scale itself was
    rounded down by much, as subnormal ones may be.

    **Raises:** `UsageError` for a format that states are not kept in.
    """
    if left.dtype not in [DTYPES[name] for name in ("fp32", "bf16", "fp16")]:
        raise UsageError(
            f"a state in {left.dtype} is not stored as integers",
            hint="fp32, bf16 or fp16",
        )
    numbers = ml_dtypes.finfo(left.dtype)
    wide = np.abs(left.astype(np.float32))
    amax = np.maximum(np.max(wide, axis=-2, keepdims=True), np.float32(LEAST_AMAX))
    step = (amax / np.float32(INT8_ENDS)).astype(left.dtype).astype(np.float64)
    fp32, unit = 2.0**-24, float(numbers.eps) / 2
    smallest = float(numbers.smallest_subnormal)
    size = wide.astype(np.float64)
    rounded = np.maximum(step * (0.5 + INT8_ENDS * fp32), size - INT8_ENDS * step)
    stored = (size + rounded) * (fp32 + unit + fp32 * unit)
    bound = rounded + stored + smallest / 2
    # a scale that rounds to 0 divides by it
    return np.where(step > 0, bound, np.inf)


def window_of(
    inputs: Float[np.ndarray, "seq channels"],
    at: int,
    width: int,
    format_name: str,
    *,
    begins: bool,
) -> tuple[Float[np.ndarray, "rows channels"], int]:
    """Make what a window holds behind `at` tokens, as its format rounds it.

    **Arguments:**

    - `inputs`: of the convolution, exact in the activations' format.
    - `width`: rows of the window.
    - `begins`: whether the text begins with the first of them, zeros before it.

    **Returns:** its last rows, as many as are known, and how many are not.

    **Raises:** `UsageError` for a format that windows are not kept in.
    """
    if format_name not in DTYPES:
        raise UsageError(
            f"a window in {format_name!r} is not held",
            hint=f"one of {', '.join(DTYPES)}",
        )
    known = inputs[max(0, at - width) : at]
    lost = width - len(known)
    if begins:
        zeros = np.zeros((lost, inputs.shape[-1]))
        known, lost = np.concatenate([zeros, known]), 0
    with np.errstate(over="ignore"):
        return known.astype(np.float32).astype(DTYPES[format_name]), lost
