"""Rules of functions of a row: norms, softmax, shares and choices of experts."""

import jax
import jax.numpy as jnp

from .._bounded_values import SAFETY, Bounded, lift, where_known
from .declared import Declared, operand, unless_overflow


# Of a mean square and epsilon that fp32 holds as a normal number.
LEAST_ROOT = 2.0**-63

# Nonnegative terms that add up to more are not all flushed to 0 in an execution.
LEAST_SUM = 2.0**-100


def rms_normalise(declared: Declared, x, epsilon: float) -> Bounded:
    """r = sqrt(mean x^2 + eps) is 1-Lipschitz in x / sqrt(n).

    Elementwise e / r_lo + |v| dr / (r r_lo); in L2 at most n / r_lo, because
    the Jacobian of x / r has norm at most 1 / r. And no vector, normalised, is
    longer than sqrt(n).
    """
    x = operand(declared, x)
    size = x.shape[-1]
    radius = jnp.sqrt(jnp.mean(x.value**2, axis=-1, keepdims=True) + epsilon)
    spread = (x.norm / size**0.5)[..., None]
    low = jnp.maximum(radius - spread, epsilon**0.5)
    value = x.value / radius
    error = x.error / low + jnp.abs(x.value) * spread / (radius * low)
    norm = x.norm / low[..., 0]
    # where the root may be of 0 its inverse is inf, and inf times 0 is no number
    known = jnp.isfinite(x.norm) & (low[..., 0] >= LEAST_ROOT)
    most = jnp.abs(value) + size**0.5
    error = where_known(known[..., None], jnp.minimum(error, most))
    most = jnp.linalg.norm(value, axis=-1) + size**0.5
    norm = where_known(known, jnp.minimum(norm, most))
    # A relative error d of the mean (its squares, its sum, its division, epsilon
    # added) makes 1 / sqrt(1 - d) of the factor; the product with x rounds again.
    unit = declared.model.unit
    mean = jnp.expm1((declared.reduction_depth(size) + 3) * unit)
    root = -0.5 * jnp.log1p(-jnp.minimum(mean, 1.0))
    relative = jnp.expm1(root + declared.model.rsqrt_relative + unit)
    rounding = relative * (jnp.abs(value) + error) + declared.model.underflow
    squares = size * (radius + spread) ** 2
    rounding = unless_overflow(declared, squares, rounding)
    norm = norm + jnp.linalg.norm(rounding, axis=-1)
    return Bounded(value, (error + rounding) * SAFETY, norm * SAFETY)


def unit_normalise(declared: Declared, x, epsilon: float) -> Bounded:
    """x / sqrt(sum x^2 + eps) is the normalised x with eps / n, over sqrt(n).

    One rounding is left of the mean's, its division's; executions that divide by a
    root use it up. No vector is longer than 1.
    """
    root = jnp.shape(lift(x).value)[-1] ** 0.5
    hat = rms_normalise(declared, x, epsilon / root**2)
    flushed = declared.model.underflow
    norm = hat.norm / root + root * flushed
    return Bounded(hat.value / root, hat.error / root + flushed, norm)


def layer_normalise(declared: Declared, x, epsilon: float) -> Bounded:
    """As `rms_normalise`, on x - mean: removing the mean is a projection.

    Where the sum may overflow, or the difference to a mean that did, there is none.
    """
    x = lift(x)
    size = x.shape[-1]
    model = declared.model
    mean = jnp.mean(x.value, axis=-1, keepdims=True)
    value = x.value - mean
    depth = declared.reduction_depth(size) + 3
    lost = jnp.expm1(depth * model.unit) * jnp.mean(x.magnitude, axis=-1, keepdims=True)
    largest_sum = jnp.sum(x.magnitude, axis=-1, keepdims=True)
    lost = unless_overflow(declared, largest_sum, lost)
    subtraction = lost + model.unit * (jnp.abs(value) + x.error + lost)
    error = x.error + jnp.mean(x.error, axis=-1, keepdims=True) + subtraction
    norm = x.norm + jnp.linalg.norm(subtraction, axis=-1)
    return rms_normalise(declared, Bounded(value, error, norm), epsilon)


def softmax(declared: Declared, x, keep) -> Bounded:
    r"""$p'_i / p_i = e^{d_i} / \sum_j p_j e^{d_j}$ with |d| <= e.

    Between $e^{-e_i} / (1 + \sum p_j (e^{e_j} - 1))$ and
    $e^{e_i} / (1 - \sum p_j (1 - e^{-e_j}))$; at most 1 apart.

    One entry of a row that may be no number makes NaN of all of it: inf - inf is
    the shift by the largest, and the sum is everyone's. A masked one, too, since
    executions add -inf, or their lowest number, to what they computed there. So a
    finite difference to the largest may become -inf, and its exponential 0; a mask
    of -inf is exact.
    """
    x = lift(x)
    value = jax.nn.softmax(jnp.where(keep > 0, x.value, -jnp.inf), axis=-1)
    e = jnp.where(keep > 0, jnp.minimum(x.error, 300.0), 0.0)
    more = jnp.sum(value * jnp.expm1(e), axis=-1, keepdims=True)
    less = jnp.sum(-value * jnp.expm1(-e), axis=-1, keepdims=True)
    above = (jnp.expm1(e) + less) / jnp.maximum(1.0 - less, 1e-300)
    below = (more - jnp.expm1(-e)) / (1.0 + more)
    error = value * jnp.maximum(above, below)
    # the difference to the largest entry, exp, the sum, the division; an online
    # softmax rescales once a block, which the depth covers
    model = declared.model
    magnitude = jnp.where(keep > 0, x.magnitude, 0.0)
    reach = 2.0 * jnp.max(magnitude, axis=-1, keepdims=True)
    depth = declared.reduction_depth(value.shape[-1]) + 4
    relative = 2.0 * (
        model.exp_relative + (model.unit + model.exp_argument) * reach
    ) + jnp.expm1(depth * model.unit)
    rounding = jnp.expm1(jnp.minimum(relative, 300.0)) * (value + error)
    flushed = (2.0 + value.shape[-1]) * model.underflow * (keep > 0)
    total = jnp.minimum(error + rounding + flushed, 1.0) * (keep > 0)
    legal = x.known | ((x.value == -jnp.inf) & (keep == 0) & (x.error == 0))
    known = jnp.all(legal, axis=-1, keepdims=True)
    return Bounded(value, where_known(known, total * SAFETY))


def shares(declared: Declared, x, floor: float = 0.0) -> Bounded:
    r"""$y'_i - y_i = (d_i (1 - y_i) - y_i \sum_{j \ne i} d_j) / s'$, |d| <= e.

    s is the sum with the floor: an exact number beside the terms, so that the same
    holds of it. s' is the sum in an execution, at least s less the sum of all
    errors; the floor costs it a rounding of its own and one more sum. At most 1
    apart, both being shares of a sum of nonnegative terms: of numbers, that is, and
    of a sum in fp32's range. (An execution's terms are not all 0: where they are
    the scores of other entries than here, these are of the size of s.)
    """
    x = lift(x)
    total = jnp.sum(x.value, axis=-1, keepdims=True) + floor
    off = jnp.sum(x.error, axis=-1, keepdims=True)
    value = x.value / total
    left = total - off
    spread = x.error * (1.0 - value) + value * (off - x.error)
    spread = spread / jnp.where(left > 0, left, 1.0)
    error = jnp.where(left > 0, spread, 1.0)
    depth = declared.reduction_depth(x.shape[-1]) + (4 if floor else 2)
    growth = jnp.expm1(depth * declared.model.unit)
    rounding = growth * (value + error) + declared.model.underflow
    rounding = unless_overflow(declared, total + off, rounding)
    error = (jnp.minimum(error, 1.0) + rounding) * SAFETY
    known = jnp.all(x.known, axis=-1, keepdims=True) & (total > LEAST_SUM)
    return Bounded(value, where_known(known, error))


def largest(declared: Declared, x, count: int) -> Bounded:
    """The reference's choice; 1 off where an execution may choose otherwise.

    An entry is chosen for sure where fewer than `count` others reach its lower
    end, and is not for sure where `count` others stay above its upper end. Where
    NaN stands in an order no implementation says: a row that may have one has no
    bound.
    """
    x = lift(x)
    _, places = jax.lax.top_k(x.value, count)
    value = jnp.sum(jax.nn.one_hot(places, x.shape[-1]), axis=-2)
    low, high = x.value - x.error, x.value + x.error
    others = 1.0 - jnp.eye(x.shape[-1])
    reach = (high[..., None, :] >= low[..., :, None]) * others
    above = (low[..., None, :] > high[..., :, None]) * others
    chosen = jnp.sum(reach, axis=-1) < count
    left = jnp.sum(above, axis=-1) >= count
    known = jnp.all(x.known, axis=-1, keepdims=True)
    return Bounded(value, where_known(known, jnp.where(chosen | left, 0.0, 1.0)))
