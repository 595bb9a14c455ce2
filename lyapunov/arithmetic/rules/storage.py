"""Rules of stores: rounding to the format that a tensor is held in.

Rounding is monotone: whatever an execution computed in [v - e, v + e], it stored
between round(v - e) and round(v + e).
"""

import jax.numpy as jnp

from ...formats import (
    LEAST_ROW,
    OPERAND_ROUNDINGS,
    OperandNumbers,
    integer_ends,
    integer_scales,
    is_state_numbers,
    operand_ends,
    operand_scales,
    operand_slack,
    round_state,
    round_to,
    rounding_error_bound,
    state_error_bound,
    state_scale,
)
from .._bounded_values import SAFETY, Bounded, BoundedState, constant, lift
from . import scans
from .declared import Declared, apart, written_out


# An fp64 value with T chained operations is off by T 2^-53 of its magnitude, its
# fp32 error at least 2^-24: this share covers sequences of 2^12 tokens and sums of as
# many terms sixteen times over.
FP64_SHARE_OF_ERROR = 2.0**-13


def store(declared: Declared, numbers, x) -> Bounded | BoundedState:
    """What is read back: within half a spacing more, or between both ends' numbers."""
    if isinstance(x, BoundedState):
        return store_state(declared, numbers, x)
    x = lift(x)
    if isinstance(numbers, OperandNumbers):
        return store_operand(declared, numbers, x)
    if is_state_numbers(numbers):
        mass = jnp.max(x.magnitude, axis=0)
        state = BoundedState(x.value, x.error, x.magnitude, mass)
        stored = store_state(declared, numbers, state)
        return Bounded(stored.value, stored.excess)
    if not declared.centred:
        return may_store(declared, numbers, x)
    value, error, flips = middle(x, numbers)
    norm = x.norm + jnp.linalg.norm(flips, axis=-1)
    return apart(declared, Bounded(value, error, norm * SAFETY))


def store_at_anchor(
    declared: Declared, numbers, x: Bounded, anchor
) -> tuple[Bounded, Bounded]:
    """The bound of what a trace stored, and the trace's own value without error.

    v itself is off by fp64's own errors, which matter where it happens to lie next to
    a stored number.
    """
    error = interval(x, x.value, numbers)
    error = error + x.error * FP64_SHARE_OF_ERROR
    # what reads the anchor waits: XLA would join it to what is before
    value, error, anchor = written_out((x.value, error, anchor))
    return Bounded(value, error), constant(anchor)


def may_store(declared: Declared, numbers, x, *, rescaled: bool = False) -> Bounded:
    """Off by as much as a store moves, wherever the value goes.

    Half a spacing is a smaller part of a number than u is, but for powers of two: a
    multiple of x may be next to one.
    """
    x = lift(x)
    rounding = rounding_error_bound(x.magnitude, numbers)
    if rescaled:
        rounding = jnp.maximum(rounding, numbers.unit * x.magnitude)
    norm = x.norm + jnp.linalg.norm(rounding, axis=-1)
    return Bounded(x.value, (x.error + rounding) * SAFETY, norm * SAFETY)


def ends(x: Bounded, numbers):
    """What the ends of [v - e, v + e] are stored as."""
    # fp64's own errors in v are far below fp32's in e
    error = x.error * (1.0 + FP64_SHARE_OF_ERROR)
    return round_to(x.value - error, numbers), round_to(x.value + error, numbers)


def middle(x: Bounded, numbers):
    """The middle c of all that may be stored, and how far it reaches.

    Half the distance of the outermost stored numbers, where following the one that
    v itself is rounded to would cost all of it: over several stores in a row, each
    of which few values can cross, that is a factor of two at every store.

    **Returns:** c, the largest |round(v') - c|, and g with
    |round(v') - c| <= |v' - v| + g: no more than half a spacing on either side.
    """
    low, high = ends(x, numbers)
    centre = 0.5 * low + 0.5 * high
    # around a possible overflow nothing is bounded, but the centre stays a number
    value = jnp.where(jnp.isfinite(centre), centre, x.value)
    error = jnp.maximum(jnp.abs(high - value), jnp.abs(value - low)) * SAFETY
    half = rounding_error_bound(x.magnitude, numbers)
    return value, error, jnp.minimum(error, half + jnp.abs(value - x.value))


def interval(x: Bounded, centre, numbers):
    """The largest distance from `centre` to a stored member of [v - e, v + e]."""
    low, high = ends(x, numbers)
    return jnp.maximum(jnp.abs(high - centre), jnp.abs(centre - low))


def store_state(declared: Declared, numbers, x: BoundedState) -> BoundedState:
    """A store of the state, which may have a scale or be stochastic.

    Around a stochastic store there is no centre to follow: its mean is the state
    itself, and it moves by one spacing at most.
    """
    value, error = x.value, x.excess + scans.scan_rounding(declared, x)
    rounding = state_error_bound(jnp.abs(value) + error, numbers)
    if not is_state_numbers(numbers):
        if declared.centred:
            value, error, _ = middle(Bounded(x.value, error), numbers)
        else:
            error = error + rounding
    elif declared.centred and not numbers.stochastic:
        value, error = _under_a_scale(x.value, error, rounding, numbers)
    else:
        error = error + rounding
    error = error * SAFETY
    # What follows starts from one stored number: its additions count anew.
    return BoundedState(value, error, jnp.abs(value) + error, x.mass)


def _under_a_scale(exact, error, rounding, numbers):
    """Monotone rounding where the channel's scale is known, else its worst.

    A power of two is known where both ends of the channel's largest have the same;
    that of integers lies between theirs.
    """
    size, fmt = jnp.abs(exact), numbers.format
    value = round_state(exact, numbers)
    least = jnp.max(jnp.maximum(size - error, 0.0), axis=0)
    most = jnp.max(size + error, axis=0)
    if numbers.integer:
        wide = error * (1.0 + FP64_SHARE_OF_ERROR)
        scales = integer_scales(least, most, fmt)
        low, high = integer_ends(exact - wide, exact + wide, scales, fmt)
        reach = jnp.maximum(jnp.abs(high - value), jnp.abs(value - low))
        known = least >= LEAST_ROW
    else:
        scale = state_scale(most, fmt)
        reach = scale * interval(
            Bounded(exact / scale, error / scale), value / scale, fmt
        )
        known = state_scale(least, fmt) == scale
    free = error + rounding + jnp.abs(value - exact)
    # a channel whose scale may come from what is no number is without any
    known = known & jnp.isfinite(most)
    value = jnp.where(jnp.isfinite(value), value, exact)
    return value, jnp.where(known, jnp.fmin(reach, free), free)


def store_operand(declared: Declared, numbers: OperandNumbers, x: Bounded) -> Bounded:
    """What a product reads: codes of rows under scales that their largest chooses.

    The largest of a row lies between that of the least and that of the largest
    magnitudes; so does the scale, and between what its ends make of the value's ends
    lies all that may be read, as in `middle`.
    """
    error = x.error * (1.0 + FP64_SHARE_OF_ERROR)
    size = jnp.abs(x.value)
    least, most = jnp.maximum(size - error, 0.0), size + error
    scales = operand_scales(least, most, numbers)
    slack = operand_slack(most, scales, numbers)
    low, high = operand_ends(x.value - error, x.value + error, scales, numbers)
    if declared.centred:
        centre = 0.5 * low + 0.5 * high
        value = jnp.where(jnp.isfinite(centre), centre, x.value)
    else:
        value = x.value
    moved = slack + jnp.abs(value - x.value)
    reach = jnp.maximum(jnp.abs(high - value), jnp.abs(value - low))
    # a row whose scale may come from what is no number is read as none
    known = jnp.isfinite(scales[1])
    reach = jnp.where(known, jnp.fmin(reach, x.error + moved), jnp.inf) * SAFETY
    norm = x.norm + jnp.linalg.norm(jnp.minimum(reach, moved), axis=-1)
    return apart(declared, Bounded(value, reach, norm * SAFETY))


def operand_at_anchor(
    declared: Declared, numbers: OperandNumbers, x: Bounded, anchor
) -> tuple[Bounded, Bounded]:
    """The bound of what a trace read, around the exact value, and the trace's own: as
    `store_at_anchor`. Its product with the scale may be rounded once more."""
    stored = store_operand(declared, numbers, x)
    error = stored.error + jnp.abs(stored.value - x.value)
    value, error, anchor = written_out((x.value, error, anchor))
    return Bounded(value, error), Bounded(anchor, OPERAND_ROUNDINGS * jnp.abs(anchor))


def on_the_nearest_turn(angle: Bounded, anchor) -> Bounded:
    """The angle, moved by a whole turn where that is nearer to what was stored.

    What was stored says on which turn it stands: of those there may be, the nearest
    (with an error above pi all of them may be).
    """
    turn = 2.0 * jnp.pi
    above, below = _at_the_ends_of_a_turn(angle)
    off = anchor - angle.value
    up = above & (jnp.abs(off - turn) < jnp.abs(off))
    down = below & (jnp.abs(off + turn) < jnp.abs(off))
    shift = jnp.where(up, turn, jnp.where(down, -turn, 0.0))
    return Bounded(angle.value + shift, angle.error)


def stored_a_turn_away(numbers, angle: Bounded, stored: Bounded) -> Bounded:
    """As stored; executions that may stand a turn away round that number."""
    turn = 2.0 * jnp.pi
    above, below = _at_the_ends_of_a_turn(angle)
    rounding = rounding_error_bound(turn + angle.error, numbers)
    astray = above | below
    error = (angle.error + rounding) * SAFETY
    return Bounded(
        jnp.where(astray, angle.value, stored.value),
        jnp.where(astray, error, stored.error),
    )


def _at_the_ends_of_a_turn(angle: Bounded):
    """Where an execution may stand at a turn instead of 0, and where at 0 instead."""
    turn = 2.0 * jnp.pi
    return angle.value <= angle.error, angle.value + angle.error >= turn
