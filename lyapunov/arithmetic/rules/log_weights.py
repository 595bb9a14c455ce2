"""Rules of sums whose weights are held over a running maximum.

A state s stands for s e^m, m being the maximum that an execution carries beside it. Any
other m' would do: s e^m is what later tokens add to, and a quotient of two such sums
knows nothing of m. So errors here are those of s' e^(m' - m), where m is the exact
maximum: how far m' is off itself is none, and changes but the size of what underflows.
"""

from typing import Any

import jax.numpy as jnp

from ...formats import FP32, is_state_numbers, state_error_bound
from .._bounded_values import SAFETY, Bounded, lift, where_known
from .declared import Declared, operand, settled, unless_overflow
from .scans import EXP_MINUS_88
from .storage import middle, store


def log_weights(declared: Declared, top, log_decay, key) -> Bounded:
    r"""What is kept and what is new, over the maximum behind a token, and that maximum.

    An execution computes $\exp(fl(a' - M'))$, with a' = fl(m' + w') and M' the larger
    of a' and k'. Times $e^{(M' - M) - (m' - m)}$ that is $e^{a - M}$ but for the errors
    of w' and of the two roundings, of |m'| + |w'| and of M' - a'; those of m' and of M'
    have gone. For k' it is $e^{(k' - k)}$ and one rounding. Beyond 88 the exponential
    underflows, as in `decay`.
    """
    top, log_decay, key = lift(top), lift(log_decay), lift(key)
    model = declared.model
    moved = top.value + log_decay.value
    size = top.magnitude + log_decay.magnitude
    rounding = unless_overflow(declared, size, model.unit * size + model.underflow)
    # nothing is rounded where 0 is added
    still = (log_decay.value == 0) & (log_decay.error == 0)
    own = log_decay.error + jnp.where(still, 0.0, rounding)
    off = top.error + own
    after = jnp.maximum(moved, key.value)
    high = jnp.maximum(moved + off, key.value + key.error)
    low = jnp.maximum(moved - off, key.value - key.error)
    top_error = jnp.maximum(high - after, after - low)
    lost = jnp.exp(jnp.minimum(top.error + top_error, 300.0))

    def share(gap, off, own):
        largest = gap + off
        exponent = own + model.unit * largest
        relative = model.exp_relative + model.exp_argument * largest
        value = jnp.exp(-gap)
        grown = jnp.expm1(exponent) * (1.0 + relative) + relative
        near = value * grown + model.underflow * lost
        far = value + EXP_MINUS_88 * lost
        return value, jnp.where(gap - off > 88.0, far, near)

    kept, kept_error = share(after - moved, off + top_error, own)
    new, new_error = share(after - key.value, key.error + top_error, key.error)
    known = top.known & log_decay.known & key.known
    error = jnp.stack([kept_error, new_error, top_error]) * SAFETY
    return Bounded(jnp.stack([kept, new, after]), where_known(known, error))


def under_scale(declared: Declared, x, top) -> Bounded:
    """x itself: what its sums and products lost to underflow, they lost of x e^-m.

    Two products of two operands each, and their sum.
    """
    x, top = lift(x), lift(top)
    flushed = 6.0 * declared.model.underflow * jnp.expm1(jnp.minimum(top.error, 300.0))
    return Bounded(x.value, where_known(top.known, x.error + flushed))


def quotient(declared: Declared, x, y, floor: Any = 0.0) -> Bounded:
    """x'/y' - x/y = ((x' - x) - (x/y) (y' - y)) / y', for y > 0; then one rounding.

    `floor`: below which no execution's y is.
    """
    x, y = operand(declared, x), operand(declared, y)
    least = jnp.maximum(y.value - y.error, floor)
    value = x.value / y.value
    error = (x.error + jnp.abs(value) * y.error) / jnp.where(least > 0, least, 1.0)
    known = x.known & y.known & (least > 0)
    value = jnp.where(y.value == 0, 0.0, value)
    return settled(declared, value, where_known(known, error * SAFETY))


def normalised(declared: Declared, numerator, x, top, epsilon) -> Bounded:
    """Over max(|x|, e^-m) + epsilon, both held over a maximum m.

    |x| and a maximum of two are 1-Lipschitz. An execution's e^-m' is e^-m times the
    scale, but for its exponential; its epsilon is not. Nothing is divided by less.
    """
    x, top, epsilon = lift(x), lift(top), lift(epsilon)
    model = declared.model
    least = jnp.exp(-top.value)
    relative = model.exp_relative + model.exp_argument * top.magnitude
    off = jnp.minimum(top.error, 300.0)
    own = least * relative + model.underflow * jnp.exp(off)
    value = jnp.maximum(jnp.abs(x.value), least) + epsilon.value
    added = epsilon.error * jnp.exp(off) + epsilon.value * jnp.expm1(off)
    error = jnp.maximum(x.error, own) + added
    known = x.known & top.known & epsilon.known
    below = settled(declared, value, where_known(known, error * SAFETY))
    floor = jnp.maximum(least - own, 0.0) + (epsilon.value - epsilon.error) / jnp.exp(
        off
    )
    # the sum is rounded, and fp64 loses something of all this
    floor = floor * (1.0 - 2.0 * model.unit) * (2.0 - SAFETY)
    return quotient(declared, numerator, below, floor)


def store_under(declared: Declared, site: str, x, top) -> Bounded:
    """x as it is read back, where an execution stores it over its own maximum.

    What rounds is x times a scale that is not known, between 1/r and r: by half a
    spacing of the largest that it may be, over the scale; or, as `storage` has it, to
    between what the ends of all that it may be are rounded to.
    """
    if site not in declared.sites:
        return x
    x, top = lift(x), lift(top)
    numbers = declared.sites[site]
    off = jnp.exp(jnp.minimum(top.error, 300.0))
    rounding = off * state_error_bound(x.magnitude * off, numbers)
    exact = _holds_fp32(numbers)
    value, error = x.value, x.error + jnp.where(exact, 0.0, rounding)
    if declared.centred and not is_state_numbers(numbers):
        scaled = x.magnitude * (off - 1.0)
        centre, reach, _ = middle(Bounded(x.value, x.error + scaled), numbers)
        reach = reach + (jnp.abs(centre) + reach) * (off - 1.0)
        nearer = (reach < error) & jnp.logical_not(exact)
        value = jnp.where(nearer, centre, value)
        error = jnp.where(nearer, reach, error)
    known = x.known & top.known
    return Bounded(value, where_known(known, error * SAFETY))


def store_scale(declared: Declared, site: str, top, state) -> tuple[Bounded, Bounded]:
    """The maximum as it is read back, and the state, which stays what it was over the
    one before: it is multiplied by e to the distance of the two.

    That distance is what an execution rounds by, less what the value does: together no
    more than both errors of the maximum, nor than half a spacing and the value's part.
    """
    if site not in declared.sites:
        return top, state
    top, state = lift(top), lift(state)
    numbers = declared.sites[site]
    after = lift(store(declared, numbers, top))
    half = state_error_bound(top.magnitude, numbers)
    moved = jnp.abs(after.value - top.value)
    apart = jnp.minimum(top.error + after.error, half + moved)
    exact = _holds_fp32(numbers)
    apart = jnp.where(exact, 0.0, apart)[(..., *(None,) * (len(state.shape) - 1))]
    error = state.error + state.magnitude * jnp.expm1(apart)
    after = Bounded(
        jnp.where(exact, top.value, after.value),
        jnp.where(exact, top.error, after.error),
    )
    known = state.known & jnp.isfinite(apart)
    return after, Bounded(state.value, where_known(known, error * SAFETY))


def _holds_fp32(numbers):
    """Whether a format has every number of fp32, in which states are computed."""
    if is_state_numbers(numbers):
        return False
    return numbers.shift <= FP32.numbers().shift
