"""Rules of functions of one entry: slopes, curvatures, ends of an interval.

What the function itself is evaluated with is the declared error of its results, and of
a rounded product in front of an exponential, the declared one of its argument.
"""

import jax
import jax.numpy as jnp

from .._bounded_values import SAFETY, Bounded, lift, where_known
from .declared import (
    Declared,
    apart,
    evaluated,
    largest_entry,
    operand,
    settled,
    unless_overflow,
)


# sup |silu'| = 1.09984 at x = 2.3994; sup |silu''| = 1/2 at 0.
SILU_SLOPE = 1.0999
SILU_CURVATURE = 0.5

# sup |gelu'| = 1.12890 at sqrt(2); sup |gelu''| = 2 phi(0) = 0.79789 at 0. The
# approximation by tanh stays within 0.0005 of slope and 0.004 of curvature.
GELU_SLOPE = 1.13
GELU_CURVATURE = 0.803


def exp(declared: Declared, x) -> Bounded:
    """|exp(v') - exp(v)| <= exp(v) expm1(e), then the declared error."""
    x = lift(x)
    value = jnp.exp(x.value)
    relative = declared.model.exp_relative + declared.model.exp_argument * x.magnitude
    return evaluated(declared, value, value * jnp.expm1(x.error), relative)


def softplus(declared: Declared, x) -> Bounded:
    """Slope sigmoid, increasing: at most sigmoid(v + e) on the interval."""
    x = lift(x)
    value = jax.nn.softplus(x.value)
    model = declared.model
    error = jax.nn.sigmoid(x.value + x.error) * x.error
    # |d softplus| = sigmoid |d x| and sigmoid <= softplus / log 2 below 0: the
    # rounded product inside exp() costs argument |x| sigmoid(x).
    size = x.magnitude
    argument = model.softplus_argument * size * jax.nn.sigmoid(x.value + x.error)
    rounded = evaluated(declared, value, error, model.softplus_relative)
    error = rounded.error + argument + model.softplus_absolute
    return apart(declared, Bounded(value, error))


def silu(declared: Declared, x) -> Bounded:
    """The smaller of slope and curvature at v, and the global slope."""
    x = lift(x)
    value = jax.nn.silu(x.value)
    sigmoid = jax.nn.sigmoid(x.value)
    slope = jnp.abs(sigmoid * (1.0 + x.value * (1.0 - sigmoid)))
    steepest = jnp.minimum(slope + SILU_CURVATURE / 2 * x.error, SILU_SLOPE)
    error = steepest * x.error
    relative = declared.model.silu_relative + declared.model.silu_argument * x.magnitude
    # div.approx returns 0 for denominators beyond 2^126, where |silu| < 2^-119.
    rounding = relative * (jnp.abs(value) + error) + 129.0 * declared.model.underflow
    rounding = rounding + declared.model.silu_size * x.magnitude
    norm = largest_entry(steepest) * x.norm + jnp.linalg.norm(rounding, axis=-1)
    return apart(declared, Bounded(value, error + rounding, norm))


def gelu(declared: Declared, x, *, tanh: bool = False) -> Bounded:
    """The smaller of slope and curvature at v, and the global slope."""
    x = lift(x)
    function = lambda v: jax.nn.gelu(v, approximate=tanh)
    value, slope = jax.jvp(function, (x.value,), (jnp.ones_like(x.value),))
    steepest = jnp.minimum(jnp.abs(slope) + GELU_CURVATURE / 2 * x.error, GELU_SLOPE)
    error = steepest * x.error
    # left of 0 the factor 1 + erf(x) cancels: its error is relative to 1
    rounding = declared.model.silu_relative * x.magnitude + declared.model.underflow
    rounding = unless_overflow(declared, x.magnitude, rounding)
    norm = jnp.max(steepest, axis=-1) * x.norm + jnp.linalg.norm(rounding, axis=-1)
    return Bounded(value, where_known(x.known, error + rounding), norm)


def relu_squared(declared: Declared, x) -> Bounded:
    """|max(v', 0)^2 - max(v, 0)^2| <= e (2 max(v, 0) + e)."""
    x = lift(x)
    positive = jnp.maximum(x.value, 0.0)
    error = x.error * (2.0 * positive + x.error)
    return settled(declared, positive**2, where_known(x.known, error))


def sigmoid(declared: Declared, x) -> Bounded:
    """s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) for the sigmoid s, increasing.

    So the interval's ends are the farthest, and nothing cancels. That is of
    numbers; of NaN there is no result in [0, 1].
    """
    x = lift(x)
    value = jax.nn.sigmoid(x.value)
    share = -jnp.expm1(-x.error)
    above = jax.nn.sigmoid(x.value + x.error) * jax.nn.sigmoid(-x.value)
    below = value * jax.nn.sigmoid(x.error - x.value)
    error = share * jnp.maximum(above, below)
    model = declared.model
    relative = model.silu_relative + model.silu_argument * x.magnitude
    rounding = relative * (value + error) + 129.0 * model.underflow
    return Bounded(value, where_known(x.known, (error + rounding) * SAFETY))


def tanh(declared: Declared, x) -> Bounded:
    """2 sigmoid(2 x) - 1, whose ends are those of the sigmoid's interval.

    Results of numbers are at most 2 apart; of NaN there is none.
    """
    x = lift(x)
    value = jnp.tanh(x.value)
    share = -jnp.expm1(-2.0 * x.error)
    above = jax.nn.sigmoid(2.0 * (x.value + x.error)) * jax.nn.sigmoid(-2.0 * x.value)
    below = jax.nn.sigmoid(2.0 * x.value) * jax.nn.sigmoid(2.0 * (x.error - x.value))
    error = 2.0 * share * jnp.maximum(above, below)
    model = declared.model
    relative = jnp.maximum(model.tanh_relative, model.exp_relative)
    rounding = relative * (jnp.abs(value) + error) + model.underflow
    return Bounded(value, where_known(x.known, (error + rounding) * SAFETY))


def square_root(declared: Declared, x) -> Bounded:
    """|sqrt(v') - sqrt(v)| = |v' - v| / (sqrt(v') + sqrt(v)), v' >= 0; one rounding.

    The farther end is the lower one, unless 0 cuts it off.
    """
    x = operand(declared, x)
    v = jnp.maximum(x.value, 0.0)
    low, high = jnp.maximum(v - x.error, 0.0), v + x.error
    root = jnp.sqrt(v)
    apart = lambda end: jnp.abs(end - v) / jnp.maximum(jnp.sqrt(end) + root, 1e-300)
    error = jnp.maximum(apart(low), apart(high)) * SAFETY
    return settled(declared, root, where_known(x.known, error))


def fading(declared: Declared, x) -> Bounded:
    """exp(min(v, 0)) is 1-Lipschitz in v, at most 1, and its slope is its value.

    |exp(v') - exp(v)| <= exp(v) expm1(e), and at most 1 since both lie in [0, 1]
    for every v' that is a number; inf - inf, of sums that overflowed, is none.
    """
    x = lift(x)
    exponent = jnp.minimum(x.value, 0.0)
    value = jnp.exp(exponent)
    model = declared.model
    relative = model.exp_relative + model.exp_argument * (jnp.abs(exponent) + x.error)
    spread = value * jnp.expm1(jnp.minimum(x.error, 700.0))
    error = spread * (1.0 + relative) + relative * value + model.underflow
    error = jnp.minimum(error, 1.0) * SAFETY
    return Bounded(value, where_known(x.known, error))


def turns(declared: Declared, angle, roundings: int) -> tuple[Bounded, Bounded]:
    """Both are 1-Lipschitz in the angle; at most 2 apart, of angles that exist."""
    angle = lift(angle)
    off = angle.error + jnp.expm1(roundings * declared.model.unit) * angle.magnitude

    def bound(function):
        value = function(angle.value)
        own = declared.model.exp_relative * (jnp.abs(value) + off)
        own = own + declared.model.turn_absolute
        error = jnp.minimum(off, 2.0) + own + declared.model.underflow
        return Bounded(value, where_known(jnp.isfinite(off), error * SAFETY))

    return bound(jnp.cos), bound(jnp.sin)


def wrap(declared: Declared, angle) -> Bounded:
    """Off by what 2 pi loses in fp32, once a turn, and by rounding.

    A share 2^-25 of 2 pi; a division, a product and a difference of a magnitude
    that the angle has. Executions may stand a turn away from the value, at 2 pi
    where it is next to 0: the sum and the wrap that follow count that magnitude
    here.
    """
    angle = lift(angle)
    unit = declared.model.unit
    turn = 2.0 * jnp.pi
    own = 4.0 * unit * (angle.magnitude + 3.0 * turn) + 4.0 * declared.model.underflow
    error = (angle.error + own) * SAFETY
    return Bounded(jnp.mod(angle.value, turn), error)
