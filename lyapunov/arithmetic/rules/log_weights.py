"""Rules of sums whose weights are held over a running maximum.

A state s stands for s e^m, m being the maximum that an execution carries beside it. Any
other m' would do: s e^m is what later tokens add to, and a quotient of two such sums
knows nothing of m. So errors here are those of s' e^(m' - m), where m is the exact
maximum: how far m' is off itself is none, and changes but the size of what underflows.
"""

import jax.numpy as jnp

from .._bounded_values import SAFETY, Bounded, lift, where_known
from .declared import Declared, operand, settled, unless_overflow
from .scans import EXP_MINUS_88


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


def quotient(declared: Declared, x, y) -> Bounded:
    """x'/y' - x/y = ((x' - x) - (x/y) (y' - y)) / y', for y > 0; then one rounding."""
    x, y = operand(declared, x), operand(declared, y)
    least = y.value - y.error
    value = x.value / y.value
    error = (x.error + jnp.abs(value) * y.error) / jnp.where(least > 0, least, 1.0)
    known = x.known & y.known & (least > 0)
    value = jnp.where(y.value == 0, 0.0, value)
    return settled(declared, value, where_known(known, error * SAFETY))
