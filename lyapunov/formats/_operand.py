"""Formats of what a product of matrices reads: codes under a scale of the row's own.

W8A8 and W4A4 kernels quantise the activations in front of a product. A scale belongs to
a row (a token), to so many columns of one, or to the whole tensor; what is read is code
times scale. As in vLLM 0.33.0:

| format | scale s | code | source |
|---|---|---|---|
| fp8_e4m3-token | fp32(max abs x / 448), 1 / (448 * 512) at least | e4m3(x / s), clipped | `dynamic_per_token_scaled_fp8_quant` |
| fp8_e4m3-group128 | fp32(max abs x / 448), 128 columns | the same | `per_token_group_quant_fp8` |
| int8-token | fp32(max abs x / 127) | round(x * (127 / max abs x)) | `dynamic_scaled_int8_quant` |
| fp8_e4m3-static=S | S, of the checkpoint (`input_scale`) | e4m3(x / S), clipped | `static_scaled_fp8_quant` |
| nvfp4=G | e4m3(max abs x / 6 * G) / G, 16 columns | e2m1(x / s), clipped | `scaled_fp4_quant`, G is `input_global_scale` |

Whether a kernel divides, multiplies by the inverse or by an approximate one is left
open: `OPERAND_ROUNDINGS` of fp32 cover each, and the products with both scales behind the sum.
"""  # noqa: E501

import dataclasses

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._format import (
    FORMATS,
    FP32,
    Format,
    FormatNumbers,
    round_to,
    unit_in_first_place,
)
from ._operand_table import OperandRow, parse_operand
from ._state import StateNumbers
from ._table import INTEGER_TABLE


OPERAND_ROUNDINGS = 8 * 2.0**-24
"""Of a scale, its inverse and the quotient, and of the sum's product with both scales;
an approximate division (`nvfp4`) is off by two units."""

_E2M1 = Format("e2m1", 2, 0, 6.0, 6.0)
_TINY = 2.0**-100


class OperandNumbers(StateNumbers):
    """Hold the numbers of such a format, as scalars that can be traced."""

    fixed: Float[Array, ""] | None = None
    """A scale that does not look at the values."""
    least: Float[Array, ""] | float = 0.0
    """No scale is smaller."""
    of_scale: FormatNumbers | None = None
    """Of the scale times `whole`, where it is not fp32."""
    whole: Float[Array, ""] | None = None
    columns: int = eqx.field(static=True, default=0)
    """That share a scale; 0 is the row."""

    def rounded(self, x, key):
        """Read as `round_operand` does."""
        del key
        return round_operand(x, self)

    def holds(self, x):
        """Tell where codes hold what they are of, but for roundings of scales."""
        moved = jnp.abs(round_operand(x, self) - x)
        return moved <= OPERAND_ROUNDINGS * _largest(jnp.abs(x), self)

    def within(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Cut off what a fixed scale cannot hold; any other holds every number."""
        if self.fixed is not None:
            end = self.format.largest * self.fixed
        elif self.of_scale is not None and self.whole is not None:
            end = self.format.largest * self.of_scale.largest / self.whole
        else:
            return x
        return jnp.clip(x, -end, end)

    def error_bound(self, magnitude):
        """Bound as `operand_error_bound` does."""
        return operand_error_bound(magnitude, self)


@dataclasses.dataclass(frozen=True)
class OperandFormat(Format):
    """Describe a format of what a product reads; `name` is the whole name.

    `unit_roundoff` is that of the codes, of integers half a step over the largest.
    """

    columns: int = 0
    least: float = _TINY
    fixed: float | None = None
    whole: float | None = None

    @property
    def element(self) -> str:
        """Name the format that codes have."""
        return self.name.partition("-")[0].partition("=")[0]

    def numbers(self) -> OperandNumbers:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make the numbers as scalars (needs 64-bit JAX)."""
        codes = Format(
            self.name,
            self.significand_bits,
            self.min_exponent,
            self.largest,
            self.largest,
        ).numbers()
        scalar = lambda x: None if x is None else jnp.asarray(x, jnp.float64)
        return OperandNumbers(
            codes,
            scaled=True,
            stochastic=False,
            fixed=scalar(self.fixed),
            least=jnp.asarray(self.least, jnp.float64),
            of_scale=None if self.whole is None else FORMATS["fp8_e4m3"].numbers(),
            whole=scalar(self.whole),
            columns=self.columns,
        )


def operand_format_named(name: str) -> OperandFormat:
    """Find the format of that name, such as `fp8_e4m3-token` or `nvfp4=336`.

    **Raises:** `UsageError` that lists the names, also for a scale that is no positive
    number.
    """
    row, value = parse_operand(name)
    codes = _codes(row)
    of_block = row.element == "nvfp4"
    return OperandFormat(
        name,
        codes.significand_bits,
        codes.min_exponent,
        codes.largest,
        codes.largest,
        columns=row.columns,
        least=row.least or _TINY,
        fixed=None if of_block else value,
        whole=value if of_block else None,
    )


def _codes(row: OperandRow) -> Format:
    if row.element == "nvfp4":
        return _E2M1
    if row.element in INTEGER_TABLE:
        return Format(*INTEGER_TABLE[row.element])
    return FORMATS[row.element]


# ---- codes and scales


def _largest(size: Float[Array, "*rows columns"], numbers: OperandNumbers):
    """The largest magnitude among those that share a scale, one an entry."""
    columns = size.shape[-1]
    width = numbers.columns or columns
    blocks = -(-columns // width)
    pad = [(0, 0)] * (size.ndim - 1) + [(0, blocks * width - columns)]
    parted = jnp.pad(size, pad).reshape(*size.shape[:-1], blocks, width)
    most = jnp.max(parted, axis=-1, keepdims=True)
    whole = jnp.broadcast_to(most, parted.shape)
    return whole.reshape(*size.shape[:-1], blocks * width)[..., :columns]


def _scale(most, numbers: OperandNumbers, times: float):
    """The scale where the largest is `most`, its roundings up (1 +) or down (1 -)."""
    if numbers.fixed is not None:
        return jnp.broadcast_to(numbers.fixed, most.shape)
    scale = most / numbers.format.largest * times
    if numbers.of_scale is not None and numbers.whole is not None:
        held = jnp.minimum(scale * numbers.whole, numbers.of_scale.largest)
        return round_to(held, numbers.of_scale) / numbers.whole
    return jnp.maximum(scale, numbers.least)


def _coded(quotient, numbers: OperandNumbers):
    largest = numbers.format.largest
    return round_to(jnp.clip(quotient, -largest, largest), numbers.format)


def _over(x, scale):
    """x / scale; a scale that rounded to 0 holds nothing."""
    return jnp.where(scale > 0, x / jnp.where(scale > 0, scale, 1.0), 0.0)


def round_operand(
    x: Float[Array, "*rows columns"], numbers: OperandNumbers
) -> Float[Array, "*rows columns"]:
    """Quantise and read back: one member of what is declared.

    NaN where the largest of those that share a scale is no number.
    """
    wide = FP32.numbers()
    most = _largest(jnp.abs(x), numbers)
    scale = round_to(_scale(most, numbers, 1.0), wide)
    found = _coded(round_to(_over(x, scale), wide), numbers) * scale
    return jnp.where(jnp.isfinite(most), found, jnp.nan)


def operand_scales(
    least: Float[Array, "*rows columns"],
    most: Float[Array, "*rows columns"],
    numbers: OperandNumbers,
) -> tuple[Float[Array, "*rows columns"], Float[Array, "*rows columns"]]:
    """Find the least and the largest scale of values of these magnitudes: a scale grows
    with the largest of those that share it."""
    low = _scale(_largest(least, numbers), numbers, 1.0 - OPERAND_ROUNDINGS)
    high = _scale(_largest(most, numbers), numbers, 1.0 + OPERAND_ROUNDINGS)
    return low, high


def operand_ends(
    low: Float[Array, "*rows columns"],
    high: Float[Array, "*rows columns"],
    scales: tuple[Float[Array, "*rows columns"], Float[Array, "*rows columns"]],
    numbers: OperandNumbers,
) -> tuple[Float[Array, "*rows columns"], Float[Array, "*rows columns"]]:
    """Find between which numbers values in [low, high] are read.

    Codes are monotone in the quotient, and that in the value and, of either sign, in
    the scale; so is their product with the scale: the ends are among those of the ends.
    """
    steps = [_over(end, scale) for end in (low, high) for scale in scales]
    first, last = _outermost(steps)
    first = _coded(first - OPERAND_ROUNDINGS * jnp.abs(first), numbers)
    last = _coded(last + OPERAND_ROUNDINGS * jnp.abs(last), numbers)
    bottom, top = _outermost([end * scale for end in (first, last) for scale in scales])
    lost = OPERAND_ROUNDINGS
    return bottom - lost * jnp.abs(bottom), top + lost * jnp.abs(top)


def _outermost(found: list):
    first, last = found[0], found[0]
    for one in found[1:]:
        first, last = jnp.minimum(first, one), jnp.maximum(last, one)
    return first, last


def operand_error_bound(
    magnitude: Float[Array, "*rows columns"], numbers: OperandNumbers
) -> Float[Array, "*rows columns"]:
    """Bound how far values of these magnitudes are from what is read of them.

    Half a spacing under the scale that these have, what is clipped, and roundings of
    scales. inf in the whole of those whose largest is no number.
    """
    most = _largest(magnitude, numbers)
    scale = _scale(most, numbers, 1.0 + OPERAND_ROUNDINGS)
    fmt = numbers.format
    inside = jnp.minimum(_over(magnitude, scale), fmt.largest)
    half = jnp.maximum(fmt.unit * unit_in_first_place(inside), fmt.smallest / 2)
    clipped = jnp.maximum(magnitude - fmt.largest * scale, 0.0)
    error = scale * half + clipped + OPERAND_ROUNDINGS * magnitude
    # without a scale all is lost
    error = jnp.where(scale > 0, error, magnitude)
    return jnp.where(jnp.isfinite(most), error, jnp.inf)


def operand_slack(
    magnitude: Float[Array, "*rows columns"],
    scales: tuple[Float[Array, "*rows columns"], Float[Array, "*rows columns"]],
    numbers: OperandNumbers,
) -> Float[Array, "*rows columns"]:
    """Bound the same for all values up to these magnitudes, under any scale between.

    Half a spacing is at most the format's unit of a value, and half of the smallest
    spacing under the largest scale.
    """
    low, high = scales
    fmt = numbers.format
    half = jnp.maximum(fmt.unit * magnitude, fmt.smallest / 2 * high)
    clipped = jnp.maximum(magnitude - fmt.largest * low, 0.0)
    error = half + clipped + OPERAND_ROUNDINGS * magnitude
    return jnp.where(low > 0, error, magnitude + error)
