"""Rules of sums of many terms, in any order: products by matrices, convolutions.

The standard model of floating-point sums (Higham 2002, section 3.1): a term that goes
through d additions of unit u is off by (1 + u)^d - 1 of itself at most.
"""

import jax
import jax.numpy as jnp
from jax.lax import DotAlgorithmPreset
from jaxtyping import Array, Float

from ..._devices import has_gpu
from .._bounded_values import SAFETY, Bounded, lift
from .declared import (
    Declared,
    apart,
    largest_entry,
    near_zero,
    operand,
    settled,
    unless_overflow,
    written_out,
)


# For T0, where what comes in has no error, products |W| |x| are formed up to this many
# weights; beyond it row norms are enough, which cost one reduction.
ELEMENTWISE_LIMIT = 2**18


def matmul(declared: Declared, x, weight, bias=None) -> Bounded:
    """Smaller of elementwise sums, row norms and the operator norm.

    |dy_i| <= |W_i| e and <= ||W_i|| n; ||dy|| <= ||W|| n. The sum itself: depth
    additions of unit u on terms whose magnitudes add up to |W_i| (|v| + e), at
    most ||W_i|| (||v|| + n); the rows of it to at most ||W||_F (||v|| + n).
    """
    x, matrix = lift(x), weight.matrix
    terms = matrix.shape[-1] + (bias is not None)
    depth = declared.accumulation_depth(terms)
    growth = jnp.expm1(depth * declared.model.accumulator_unit)
    of_operand, of_sum = near_zero(declared, terms, growth)
    x = operand(declared, Bounded(written_out(x.value), x.error, x.norm), of_operand)
    rows = jnp.linalg.norm(matrix, axis=-1)
    length = jnp.linalg.norm(x.value, axis=-1) + x.norm
    # products and sums that are flushed, weights that are read as 0
    flushed = of_sum + of_operand * terms**0.5 * length[..., None]
    error = rows * (x.norm + growth * length)[..., None]
    if matrix.size <= ELEMENTWISE_LIMIT or not declared.anchors:
        each = x.error + growth * x.magnitude
        error = jnp.minimum(error, sum_of_magnitudes(each, matrix))
    value = jnp.matmul(x.value, matrix.T, precision="highest")
    most = rows * length[..., None]
    # an unknown operator norm is inf, and inf times an error of 0 is no number
    by_norm = jnp.where(x.norm == 0, 0.0, weight.operator_norm * x.norm)
    by_norm = by_norm + growth * jnp.linalg.norm(rows) * length
    if bias is not None:
        value = value + bias
        flushed = flushed + growth * jnp.abs(bias)
        most = most + jnp.abs(bias)
    through = jnp.minimum(jnp.linalg.norm(error, axis=-1), by_norm)
    flushed = unless_overflow(declared, most, flushed)
    rounded = settled(declared, value, (error + flushed) * SAFETY)
    own = jnp.linalg.norm(rounded.error - error, axis=-1)
    return Bounded(value, rounded.error, (through + own) * SAFETY)


def einsum(declared: Declared, subscripts: str, x, y, start=None) -> Bounded:
    """Product rule elementwise; the sum as in `matmul`.

    What the accumulator begins with goes through all additions.
    """
    x, y = lift(x), lift(y)
    inputs, output = subscripts.split("->")
    first, second = inputs.split(",")
    sizes = dict(zip(first + second, (*x.shape, *y.shape), strict=True))
    terms = 1
    for letter in set(first + second) - set(output):
        terms *= sizes[letter]
    terms += start is not None
    depth = declared.accumulation_depth(terms)
    growth = jnp.expm1(depth * declared.model.accumulator_unit)
    of_operand, of_sum = near_zero(declared, terms, growth)
    x, y = (operand(declared, a, of_operand) for a in (x, y))
    product = lambda a, b: jnp.einsum(subscripts, a, b, precision="highest")
    value = product(x.value, y.value)
    error = product(jnp.abs(x.value), y.error) + product(x.error, y.magnitude)
    summed = product(x.magnitude, y.magnitude)
    if start is not None:
        start = lift(start)
        value, error = value + start.value, error + start.error
        summed = summed + start.magnitude
    summing = growth * summed
    # partial sums may overflow where all of them together cancel
    flushed = unless_overflow(declared, summed, of_sum)
    rounded = settled(declared, value, (error + summing + flushed) * SAFETY)
    return Bounded(rounded.value, rounded.error)


def cumsum(declared: Declared, x, *, serial: bool = False) -> Bounded:
    """Errors add up; a term goes through at most `scan_depth` additions."""
    x = operand(declared, x)
    levels = x.shape[0] - 1
    if not serial:
        levels = min(declared.scan_depth + 1, levels)
    growth = jnp.expm1(levels * declared.model.unit)
    total = jnp.cumsum(x.magnitude, axis=0)
    error = jnp.cumsum(x.error, axis=0) + growth * total
    flushed = 2.0 * x.shape[0] * declared.model.underflow
    flushed = unless_overflow(declared, total, flushed)
    return Bounded(jnp.cumsum(x.value, axis=0), (error + flushed) * SAFETY)


def causal_conv(declared: Declared, x, weight, bias) -> Bounded:
    """Four taps and a bias, in any order: width + 1 roundings a term at most."""
    x, weight, bias = (operand(declared, v) for v in (x, weight, bias))
    taps = weight.shape[1]
    seq = x.shape[0] - taps + 1
    value = jnp.broadcast_to(bias.value, (seq, *bias.shape))
    error = jnp.broadcast_to(bias.error, value.shape)
    size = jnp.abs(value) + error
    # in L2 a tap of largest weight w passes on at most w of the norm
    norm = jnp.broadcast_to(bias.norm, (seq,))
    largest = largest_entry(jnp.abs(x.value))
    for tap in range(taps):
        v, e = x.value[tap : tap + seq], x.error[tap : tap + seq]
        n = x.norm[tap : tap + seq]
        norm = norm + (
            largest_entry(jnp.abs(weight.value[:, tap]) + weight.error[:, tap]) * n
            + largest[tap : tap + seq] * jnp.linalg.norm(weight.error[:, tap])
        )
        w, d = weight.value[:, tap], weight.error[:, tap]
        value = value + v * w
        error = error + jnp.abs(v) * d + jnp.abs(w) * e + e * d
        size = size + (jnp.abs(v) + e) * (jnp.abs(w) + d)
    growth = jnp.expm1((taps + 1) * declared.model.unit)
    rounding = growth * size + (2 * taps) * declared.model.underflow
    rounding = unless_overflow(declared, size, rounding)
    norm = norm + jnp.linalg.norm(rounding, axis=-1)
    error = (error + rounding) * SAFETY
    return apart(declared, Bounded(value, error, norm * SAFETY))


def sum_of_magnitudes(x: Float[Array, "... columns"], matrix):
    """|W| x for x >= 0, from above, in fp32: fp64 would cost twice as much.

    On a GPU in TF32: a bound's own sum need not be exact, and tensor cores are ten
    times as fast.
    """
    terms = matrix.shape[-1]
    narrow = jnp.asarray(x, jnp.float32), jnp.asarray(jnp.abs(matrix), jnp.float32)
    if has_gpu():
        found = jax.lax.platform_dependent(
            *narrow, cuda=_summed_in_tf32, default=_summed_in_fp32
        )
    else:
        found = _summed_in_fp32(*narrow)
    # operands and products below 2^-126 may count as 0; sum |W_i| <= sqrt(n) ||W_i||
    total = jnp.sum(x, axis=-1, keepdims=True)
    rows = terms**0.5 * jnp.linalg.norm(matrix, axis=-1)
    flushed = 2.0**-125 * (rows + total + terms)
    return found + jnp.where(total > 0, flushed, 0.0)


def _summed_in_fp32(x, size):
    found = jnp.matmul(x, size.T, precision="highest")
    return jnp.asarray(found, jnp.float64) * fp32_inflation(x.shape[-1])


def _summed_in_tf32(x, size):
    found = jnp.matmul(x, size.T, precision=DotAlgorithmPreset.TF32_TF32_F32)
    return jnp.asarray(found, jnp.float64) * tf32_inflation(x.shape[-1])


def fp32_inflation(terms: int) -> float:
    """Two casts, a product and the sum: a term within (1 - 2^-24)^(terms + 2)."""
    return 1.0 + (terms + 8) * 2.0**-23


def tf32_inflation(terms: int) -> float:
    """Bits cut off both operands, (1 - 2^-10)^2 of a term; and sums that truncate.

    Those lose a whole spacing, 2^-23, and as much again where terms are aligned to
    the largest of a block.
    """
    return 1.0 + 2.0**-9 + 2.0**-17 + (terms + 8) * 2.0**-21
