"""Formats of a cached recurrent state: with or without a scale, rounded either way.

A state is stored at every token, so how it is rounded matters more than for any other
tensor. Serving code offers 8 and 16 bits, one scale for some of the states, and
stochastic rounding (Croci et al. 2022, "Stochastic rounding: implementation, error
analysis and applications"): x goes to one of its two neighbours, to the upper one with
probability (x - lower) / spacing, so that the error has mean zero.

A state is (d_state, channels) here; a scale belongs to a channel and its d_state
states, a row of the caches, which have the channel first. It is chosen anew at every
store. That of a floating-point format is a power of two: the smallest one under which
the channel's largest magnitude does not pass the format's largest.

That of int8 and int16 is the channel's largest magnitude over 127 or 32767, in fp32, as
FlashInfer's `selective_state_update` and `checkpointing_ssu` have it (github.com/
flashinfer-ai/flashinfer pull request 2645; vllm-project/vllm 40012): so the largest
state is an integer itself, and all others are held in equal steps.
"""

import dataclasses
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._errors import UsageError
from ._format import (
    FORMATS,
    FP32,
    Format,
    FormatNumbers,
    round_to,
    rounding_error_bound,
    unit_in_first_place,
)
from ._precision import Precision
from ._table import INTEGER_TABLE, STATE_PRECISIONS, STATE_PRECISIONS_TOLD


if TYPE_CHECKING:
    from typing_extensions import TypeIs

# Scales are held in 8 bits of exponent, as an fp32 or an E8M0 number has them.
SMALLEST_SCALE = 2.0**-126
LARGEST_SCALE = 2.0**127

# The scale of integers is rounded, and so are its inverse and the products with either:
# four roundings in fp32, of nothing larger than the channel's largest state.
INTEGER_ROUNDINGS = 4 * 2.0**-24

# Below, that scale comes near to where fp32 ends.
LEAST_ROW = 2.0**-90


class StateNumbers(eqx.Module):
    """Hold the numbers of a state's format, as scalars that can be traced."""

    format: FormatNumbers
    scaled: bool = eqx.field(static=True)
    stochastic: bool = eqx.field(static=True)
    integer: bool = eqx.field(static=True, default=False)
    """Held in equal steps, a share of the channel's largest."""

    def rounded(self, x: Float[Array, "*shape"], key: Array | None):
        """Round as `round_state` says."""
        return _round_under_scales(x, self, key)

    def holds(self, x: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
        """Tell what `is_held` says."""
        moved = jnp.abs(self.rounded(x, None) - x)
        if self.integer:
            return moved <= INTEGER_ROUNDINGS * jnp.max(jnp.abs(x), axis=0)
        return moved == 0

    def error_bound(self, magnitude: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Bound what `state_error_bound` says."""
        return _error_under_scales(magnitude, self)


def is_state_numbers(
    numbers: FormatNumbers | StateNumbers,
) -> "TypeIs[StateNumbers]":
    """Tell the numbers of a state's own format from those that any tensor may have.

    **Raises:** `TypeError` for what is neither.
    """
    if isinstance(numbers, FormatNumbers | StateNumbers):
        return isinstance(numbers, StateNumbers)
    raise TypeError(f"not the numbers of a format: {numbers!r}")


@dataclasses.dataclass(frozen=True)
class StateFormat(Format):
    """Describe a format for a cached state: scaled, rounded stochastically, or both.

    `name` is the whole name, such as `fp8_e4m3-scaled-stochastic`; `unit_roundoff` is
    that of rounding to nearest, half of what stochastic rounding may move a number.
    Integers have a largest number and no exponent: `unit_roundoff` and
    `smallest_normal` are 0, and `step` is what a channel's largest state is held in.
    """

    scaled: bool = False
    stochastic: bool = False

    @property
    def element(self) -> str:
        """Name the format that single numbers have."""
        return Precision.named(self.name).format

    @property
    def integer(self) -> bool:
        """Tell whether it is int8 or int16."""
        return self.element in INTEGER_TABLE

    @property
    def step(self) -> float:
        """Compute the distance of two integers over a channel's largest; else 0."""
        return 1.0 / self.largest if self.integer else 0.0

    @property
    def unit_roundoff(self) -> float:
        """Compute it as of a `Format`; 0 for integers."""
        return 0.0 if self.integer else super().unit_roundoff

    @property
    def smallest_normal(self) -> float:
        """Compute it as of a `Format`; 0 for integers."""
        return 0.0 if self.integer else super().smallest_normal

    def numbers(self) -> StateNumbers:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make the numbers as scalars (needs 64-bit JAX)."""
        plain = Format(
            self.name,
            self.significand_bits,
            self.min_exponent,
            self.largest,
            self.overflow,
        ).numbers()
        return StateNumbers(plain, self.scaled, self.stochastic, self.integer)


def _state_formats() -> dict[str, Format]:
    found: dict[str, Format] = {}
    for full in STATE_PRECISIONS:
        name = Precision.named(full)
        plain = (
            Format(*INTEGER_TABLE[name.format])
            if name.format in INTEGER_TABLE
            else FORMATS[name.format]
        )
        found[full] = plain
        if name.variant:
            found[full] = StateFormat(
                full,
                plain.significand_bits,
                plain.min_exponent,
                plain.largest,
                plain.overflow,
                scaled=name.scaled,
                stochastic=name.stochastic,
            )
    return found


STATE_FORMATS = _state_formats()


def state_format_named(name: str) -> Format:
    """Find the state format of that name: a `Format`, or a `StateFormat`.

    **Raises:** `UsageError` that lists the names.
    """
    if name not in STATE_FORMATS:
        raise UsageError(
            f"a state cannot be held in {name!r}",
            hint=STATE_PRECISIONS_TOLD,
        )
    return STATE_FORMATS[name]


def state_scale(
    largest: Float[Array | np.ndarray, " channels"], numbers: FormatNumbers
) -> Float[Array, " channels"]:
    """Find the smallest power of two s with largest / s within the format's range.

    Grows with `largest`. 1 for a channel of zeros, and where nothing finite fits.
    """
    place = unit_in_first_place(numbers.largest)
    scale = unit_in_first_place(largest) / place
    scale = jnp.where(largest / scale > numbers.largest, 2.0 * scale, scale)
    scale = jnp.clip(scale, SMALLEST_SCALE, LARGEST_SCALE)
    return jnp.where((largest > 0) & jnp.isfinite(largest), scale, 1.0)


def round_stochastically(
    x: Float[Array | np.ndarray, "*shape"],
    numbers: FormatNumbers,
    uniform: Float[Array | np.ndarray, "*shape"],
) -> Float[Array, "*shape"]:
    """Round fp64 values to a neighbour in the format, upwards in magnitude by chance.

    **Arguments:**

    - `uniform`: in [0, 1); below the share of the spacing that x lies above its lower
      neighbour, x goes up. Numbers of the format stay what they are.
    """
    x = jnp.asarray(x, jnp.float64)
    size = jnp.abs(x)
    spacing = jnp.maximum(
        2.0 * numbers.unit * unit_in_first_place(size), numbers.smallest
    )
    # scaling by a power of two is exact, and so is the rest
    steps = size / spacing
    lower = jnp.floor(steps)
    up = uniform < steps - lower
    rounded = (lower + up) * spacing
    rounded = jnp.where(rounded > numbers.largest, numbers.overflow, rounded)
    return jnp.where(jnp.isfinite(x), jnp.copysign(rounded, x), x)


def round_state(
    x: Float[Array | np.ndarray, "*shape"],
    numbers: FormatNumbers | StateNumbers,
    key: Array | None = None,
) -> Float[Array, "*shape"]:
    """Round a state to what is read back after a store.

    **Arguments:**

    - `x`: of any shape; (d_state, channels) where channels have scales.
    - `key`: for stochastic rounding. Without one the state is rounded to nearest.
    """
    if not is_state_numbers(numbers):
        return round_to(x, numbers)
    return numbers.rounded(jnp.asarray(x), key)


def _round_under_scales(x, numbers: StateNumbers, key: Array | None):
    if numbers.integer:
        return _round_to_integers(x, numbers, key)
    scale = 1.0
    if numbers.scaled:
        scale = state_scale(jnp.max(jnp.abs(x), axis=0), numbers.format)
    if numbers.stochastic and key is not None:
        uniform = jax.random.uniform(key, x.shape, jnp.float64)
        return round_stochastically(x / scale, numbers.format, uniform) * scale
    return round_to(x / scale, numbers.format) * scale


def _round_to_integers(x, numbers: StateNumbers, key: Array | None):
    """One member of what is declared: the scale, its inverse and both products in fp32.

    Where the largest of a channel is no number the channel has no scale: NaN.
    """
    fmt, wide = numbers.format, FP32.numbers()
    most = jnp.max(jnp.abs(x), axis=0)
    tiny = most < fmt.largest * SMALLEST_SCALE
    inverse = round_to(fmt.largest / jnp.where(tiny, 1.0, most), wide)
    inverse = jnp.where(tiny, 1.0 / SMALLEST_SCALE, inverse)
    scale = jnp.where(tiny, SMALLEST_SCALE, round_to(1.0 / inverse, wide))
    steps = round_to(x * inverse, wide)
    if numbers.stochastic and key is not None:
        uniform = jax.random.uniform(key, x.shape, jnp.float64)
        steps = round_stochastically(steps, fmt, uniform)
    else:
        steps = round_to(steps, fmt)
    return jnp.where(jnp.isfinite(most), round_to(steps * scale, wide), jnp.nan)


def integer_scales(
    least: Float[Array, "*channels"],
    most: Float[Array, "*channels"],
    numbers: FormatNumbers,
) -> tuple[Float[Array, "*channels"], Float[Array, "*channels"]]:
    """Find the least and largest scale of integers whose largest state is between.

    **Arguments:**

    - `least`, `most`: of the channel's largest magnitude.
    """
    low = least / numbers.largest * (1.0 - INTEGER_ROUNDINGS)
    high = most / numbers.largest * (1.0 + INTEGER_ROUNDINGS)
    return low, jnp.maximum(high, SMALLEST_SCALE)


def integer_ends(
    low: Float[Array, "d_state channels"],
    high: Float[Array, "d_state channels"],
    scales: tuple[Float[Array, " channels"], Float[Array, " channels"]],
    numbers: FormatNumbers,
) -> tuple[Float[Array, "d_state channels"], Float[Array, "d_state channels"]]:
    """Find between which numbers states in [low, high] are read back, to nearest.

    Rounding is monotone: the integers lie between those of the ends under either scale.
    NaN where the smallest scale may be 0.
    """
    lost = INTEGER_ROUNDINGS
    steps = [end / scale for end in (low, high) for scale in scales]
    first = jnp.minimum(jnp.minimum(steps[0], steps[1]), jnp.minimum(*steps[2:]))
    last = jnp.maximum(jnp.maximum(steps[0], steps[1]), jnp.maximum(*steps[2:]))
    first = round_to(first - lost * jnp.abs(first), numbers)
    last = round_to(last + lost * jnp.abs(last), numbers)
    bottom = jnp.minimum(first * scales[0], first * scales[1])
    top = jnp.maximum(last * scales[0], last * scales[1])
    return bottom - lost * jnp.abs(bottom), top + lost * jnp.abs(top)


def is_held(
    x: Float[Array | np.ndarray, "*shape"],
    numbers: FormatNumbers | StateNumbers,
) -> Bool[Array, "*shape"]:
    """Tell where a state is one of the format's numbers, so that no store moves it.

    The largest of a channel is held by integers but for the roundings of its scale.
    """
    if is_state_numbers(numbers):
        return numbers.holds(jnp.asarray(x))
    return round_to(x, numbers) == x


def state_error_bound(
    magnitude: Float[Array | np.ndarray, "*shape"],
    numbers: FormatNumbers | StateNumbers,
) -> Float[Array, "*shape"]:
    """Bound how far one store moves states of at most these magnitudes.

    To nearest u ufp(m), stochastically one spacing 2 u ufp(m); where the format's
    subnormals are coarser, half of their spacing or all of it, times the largest scale
    that the channel can have. Integers have that spacing alone, and the roundings of
    their scale on top. inf where a state may overflow, and in the whole of a channel
    whose scale may come from what is no number.
    """
    if not is_state_numbers(numbers):
        return rounding_error_bound(magnitude, numbers)
    return numbers.error_bound(jnp.asarray(magnitude))


def _error_under_scales(magnitude, numbers: StateNumbers):
    fmt, times = numbers.format, 2.0 if numbers.stochastic else 1.0
    if numbers.integer:
        most = jnp.max(magnitude, axis=0)
        _, scale = integer_scales(most, most, fmt)
        lost = INTEGER_ROUNDINGS * most + jnp.where(most < LEAST_ROW, most, 0.0)
        error = jnp.broadcast_to(times * scale / 2 + lost, magnitude.shape)
        return jnp.where(most <= FP32.largest, error, jnp.inf)
    scale, limit, most = 1.0, fmt.largest, 0.0
    if numbers.scaled:
        most = jnp.max(magnitude, axis=0)
        scale = state_scale(most, fmt)
        limit = LARGEST_SCALE * fmt.largest
    error = jnp.maximum(
        fmt.unit * unit_in_first_place(magnitude), fmt.smallest * scale / 2
    )
    beyond = (magnitude > limit) | ~jnp.isfinite(most)
    return jnp.where(beyond, jnp.inf, times * error)
