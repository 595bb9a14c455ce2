"""Formats of a cached recurrent state: with or without a scale, rounded either way.

A state is stored at every token, so how it is rounded matters more than for any other
tensor. Serving code offers 8 and 16 bits, one scale for some of the states, and
stochastic rounding (Croci et al. 2022, "Stochastic rounding: implementation, error
analysis and applications"): x goes to one of its two neighbours, to the upper one with
probability (x - lower) / spacing, so that the error has mean zero.

A state is (d_state, channels) here; a scale belongs to a channel and its d_state
states. It is a power of two, chosen anew at every store: the smallest one under which
the channel's largest magnitude does not pass the format's largest.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._errors import UsageError
from ._format_table import STATE_PRECISIONS
from .formats import (
    FORMATS,
    Format,
    FormatNumbers,
    round_to,
    rounding_error_bound,
    unit_in_first_place,
)


# Scales are held in 8 bits of exponent, as an fp32 or an E8M0 number has them.
SMALLEST_SCALE = 2.0**-126
LARGEST_SCALE = 2.0**127


class StateNumbers(eqx.Module):
    """The numbers of a state's format, as scalars that can be traced."""

    format: FormatNumbers
    scaled: bool = eqx.field(static=True)
    stochastic: bool = eqx.field(static=True)


@dataclasses.dataclass(frozen=True)
class StateFormat(Format):
    """A format for a cached state, with a scale, stochastic rounding, or both.

    `name` is the whole name, such as `fp8_e4m3-scaled-stochastic`; `unit_roundoff` is
    that of rounding to nearest, half of what stochastic rounding may move a number.
    """

    scaled: bool = False
    stochastic: bool = False

    def numbers(self) -> StateNumbers:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The numbers as scalars (needs 64-bit JAX)."""
        return StateNumbers(super().numbers(), self.scaled, self.stochastic)


def _state_formats() -> dict[str, Format]:
    found: dict[str, Format] = {}
    for full in STATE_PRECISIONS:
        name, *variants = full.split("-")
        plain = FORMATS[name]
        found[full] = plain
        if variants:
            found[full] = StateFormat(
                full,
                plain.significand_bits,
                plain.min_exponent,
                plain.largest,
                plain.overflow,
                scaled="scaled" in variants,
                stochastic="stochastic" in variants,
            )
    return found


STATE_FORMATS = _state_formats()


def state_format_named(name: str) -> Format:
    """The state format of that name: a `Format`, or a `StateFormat`.

    **Raises:** `UsageError` that lists the names.
    """
    if name not in STATE_FORMATS:
        raise UsageError(
            f"a state cannot be held in {name!r}",
            hint="fp32, bf16, fp16, fp8_e4m3 or fp8_e5m2; but for fp32, -scaled, "
            "-stochastic or -scaled-stochastic may follow",
        )
    return STATE_FORMATS[name]


def state_scale(
    largest: Float[Array, " channels"], numbers: FormatNumbers
) -> Float[Array, " channels"]:
    """The smallest power of two s with largest / s not beyond the format's largest.

    Grows with `largest`. 1 for a channel of zeros, and where nothing finite fits.
    """
    place = unit_in_first_place(numbers.largest)
    scale = unit_in_first_place(largest) / place
    scale = jnp.where(largest / scale > numbers.largest, 2.0 * scale, scale)
    scale = jnp.clip(scale, SMALLEST_SCALE, LARGEST_SCALE)
    return jnp.where((largest > 0) & jnp.isfinite(largest), scale, 1.0)


def round_stochastically(
    x: Float[Array, "*shape"],
    numbers: FormatNumbers,
    uniform: Float[Array, "*shape"],
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
    x: Float[Array, "d_state channels"],
    numbers: FormatNumbers | StateNumbers,
    key: Array | None = None,
) -> Float[Array, "d_state channels"]:
    """The state as it is read back after a store.

    **Arguments:**

    - `key`: for stochastic rounding. Without one the state is rounded to nearest.
    """
    if not isinstance(numbers, StateNumbers):
        return round_to(x, numbers)
    scale = 1.0
    if numbers.scaled:
        scale = state_scale(jnp.max(jnp.abs(x), axis=0), numbers.format)
    if numbers.stochastic and key is not None:
        uniform = jax.random.uniform(key, x.shape, jnp.float64)
        return round_stochastically(x / scale, numbers.format, uniform) * scale
    return round_to(x / scale, numbers.format) * scale


def state_error_bound(
    magnitude: Float[Array, "d_state channels"],
    numbers: FormatNumbers | StateNumbers,
) -> Float[Array, "d_state channels"]:
    """The most that one store moves states of at most these magnitudes.

    To nearest u ufp(m), stochastically one spacing 2 u ufp(m); where the format's
    subnormals are coarser, half of their spacing or all of it, times the largest scale
    that the channel can have. inf where a state may overflow.
    """
    if not isinstance(numbers, StateNumbers):
        return rounding_error_bound(magnitude, numbers)
    fmt, times = numbers.format, 2.0 if numbers.stochastic else 1.0
    scale, limit = 1.0, fmt.largest
    if numbers.scaled:
        scale = state_scale(jnp.max(magnitude, axis=0), fmt)
        limit = LARGEST_SCALE * fmt.largest
    error = jnp.maximum(
        fmt.unit * unit_in_first_place(magnitude), fmt.smallest * scale / 2
    )
    return jnp.where(magnitude > limit, jnp.inf, times * error)
