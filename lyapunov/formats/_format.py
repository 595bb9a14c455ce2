"""Floating-point formats, and rounding fp64 values to them.

A `Format` is data about a format; its `numbers()` are arrays, so that one compiled
function serves every format of the same role. Tensors are rounded to nearest, ties to
even; a recurrent state may also be rounded stochastically, or under a scale. TF32 as
tensor cores read it is cut off instead.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._errors import UsageError
from ._table import FORMAT_TABLE


class FormatNumbers(NamedTuple):
    """Hold the numbers of a format, as scalars that can be traced."""

    shift: Int[Array, ""]
    """Bits of an fp64 significand that the format drops."""
    unit: Float[Array, ""]
    """Unit roundoff u: |round(x) - x| <= u |x| for normal x."""
    smallest: Float[Array, ""]
    """Spacing of the subnormals."""
    largest: Float[Array, ""]
    overflow: Float[Array, ""]
    """What a value beyond the largest becomes: inf or NaN."""
    cut: Bool[Array, ""]
    """Whether bits are cut off, towards 0: `unit` is a whole spacing then."""


@dataclasses.dataclass(frozen=True)
class Format:
    """Describe a binary floating-point format.

    `significand_bits` counts the hidden bit; `min_exponent` is the exponent of the
    smallest normal number; `overflow` is what a value beyond the largest becomes.
    `cut`: bits that do not fit are cut off instead of rounded to nearest.
    """

    name: str
    significand_bits: int
    min_exponent: int
    largest: float
    overflow: float = float("inf")
    cut: bool = False

    @property
    def element(self) -> str:
        """Name the format, without what a state's may add to it."""
        return self.name

    @property
    def unit_roundoff(self) -> float:
        """Compute u = 2^-p for p significand bits; twice that where bits are cut
        off."""
        return 2.0 ** (self.cut - self.significand_bits)

    @property
    def smallest_normal(self) -> float:
        """Compute the smallest normal number."""
        return 2.0**self.min_exponent

    @property
    def smallest(self) -> float:
        """Compute the smallest subnormal number."""
        return 2.0 ** (self.min_exponent - self.significand_bits + 1)

    @property
    def is_reduced(self) -> bool:
        """Tell whether it is a format of at most 16 bits."""
        return self.significand_bits <= 11 and self.name != "tf32"

    def holds(self, other: "Format") -> bool:
        """Tell whether every finite number of another format is one of this, so that
        rounding to this one changes none."""
        return (
            self.significand_bits >= other.significand_bits
            and self.min_exponent <= other.min_exponent
            and self.largest >= other.largest
        )

    def decay_rounds_to_one_below(self) -> float:
        """Find the largest d such that exp(-d) rounds to 1 in this format.

        Below 1 the spacing is u, so every value from 1 - u/2 up rounds to 1 (the tie
        goes to 1, whose last bit is even): d = -log(1 - u/2).
        """
        import math

        return -math.log1p(-self.unit_roundoff / 2)

    def numbers(self) -> FormatNumbers:
        """Make the numbers as scalars (needs 64-bit JAX)."""
        found = {
            "shift": np.int64(53 - self.significand_bits),
            "unit": np.float64(self.unit_roundoff),
            "smallest": np.float64(self.smallest),
            "largest": np.float64(self.largest),
            "overflow": np.float64(self.overflow),
            "cut": np.bool_(self.cut),
        }
        return FormatNumbers(**jax.device_put(found))


FP64, FP32, TF32, BF16, FP16, FP8_E4M3, FP8_E5M2 = (
    Format(*row) for row in FORMAT_TABLE.values()
)

# Tensor cores read fp32 operands as TF32 and ignore the other bits.
TF32_OPERAND = dataclasses.replace(TF32, cut=True)

FORMATS = {f.name: f for f in (FP64, FP32, TF32, BF16, FP16, FP8_E4M3, FP8_E5M2)}


def format_named(name: str) -> Format:
    """Find the format of that name.

    **Raises:** `UsageError` that lists the names.
    """
    if name not in FORMATS:
        raise UsageError(
            f"unknown format {name!r}", hint=f"one of {', '.join(FORMATS)}"
        )
    return FORMATS[name]


def unit_in_first_place(x: Float[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    """Compute ufp(x) = 2^floor(log2 |x|), 0 at 0 (Rump, Ogita, Oishi 2008).

    |round(x) - x| <= u ufp(x) for normal x: up to twice sharper than u |x|.
    """
    bits = jax.lax.bitcast_convert_type(jnp.asarray(x, jnp.float64), jnp.int64)
    return jax.lax.bitcast_convert_type(
        bits & jnp.int64(0x7FF0000000000000), jnp.float64
    )


def round_to(
    x: Float[Array | np.ndarray, "..."], numbers: FormatNumbers
) -> Float[Array, "..."]:
    """Round fp64 values to the format, to nearest, ties to even, or cut them off.

    Subnormals of the target are kept; beyond the largest value IEEE formats give
    inf and fp8_e4m3 gives NaN. Bit-identical to the casts of ml_dtypes from fp32 (from
    fp64 those go through fp32 and round twice).
    """
    x = jnp.asarray(x, jnp.float64)
    # beyond every threshold of the format; of inf no spacing could be made
    size = jnp.minimum(jnp.abs(jax.lax.stop_gradient(x)), 2.0 * numbers.largest)
    unit = numbers.unit * jnp.where(numbers.cut, 1.0, 2.0)
    spacing = jnp.maximum(unit * unit_in_first_place(size), numbers.smallest)
    # Next to 1.5 * 2^52 spacings fp64's own spacing is the format's: the sum is rounded
    # to it, ties to even, and the difference is exact.
    shifter = 1.5 * 2.0**52 * spacing
    rounded = (size + shifter) - shifter
    beyond = numbers.cut & (rounded > size)
    rounded = jnp.where(beyond, rounded - spacing, rounded)
    rounded = jnp.where(rounded > numbers.largest, numbers.overflow, rounded)
    return jnp.where(numbers.shift == 0, x, jnp.copysign(rounded, x))


def rounding_error_bound(
    magnitude: Float[Array | np.ndarray, "..."], numbers: FormatNumbers
) -> Float[Array, "..."]:
    """Bound how far rounding moves any value of at most this magnitude.

    u ufp(m) for normal m; half the subnormal spacing below, all of it where bits are
    cut off; inf where the value may overflow, since then no finite bound holds.
    """
    least = numbers.smallest * jnp.where(numbers.cut, 1.0, 0.5)
    error = jnp.maximum(numbers.unit * unit_in_first_place(magnitude), least)
    return jnp.where(magnitude > numbers.largest, jnp.inf, error)
