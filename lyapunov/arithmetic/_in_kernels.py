"""fp64 inside a Triton kernel: fused multiply-adds, and an exponential of its own.

CUDA's exponential branches where it may overflow, and takes 60 registers more of a scan
with errors: of its warps fewer then fit an H200 at once than there are, and the rest
has to wait for them. A scan without errors has registers left, and keeps CUDA's.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array


# Below it a decay counts as this one, 3e-308, far below any format's smallest number.
LEAST_EXPONENT = -708.0
# Adding it leaves an integer in the low bits, with the bias of fp64's exponents.
ROUND = 1.5 * 2.0**52 + 1023.0
# log 2 = HIGH + LOW; HIGH has 32 bits, so that its product by an exponent is exact.
HIGH = float.fromhex("0x1.62e42feep-1")
LOW = float.fromhex("0x1.a39ef35793c76p-33")
# Of e^r for |r| <= log(2) / 2, within 2^-55 of it: behind 1 + r the interpolation of
# what is left at Chebyshev's nodes.
TERMS = tuple(
    float.fromhex(x)
    for x in (
        "0x1.0p+0",
        "0x1.0p+0",
        "0x1.0000000000001p-1",
        "0x1.5555555555556p-3",
        "0x1.5555555553d4fp-5",
        "0x1.11111111109adp-7",
        "0x1.6c16c17893833p-10",
        "0x1.a01a01a7c8d47p-13",
        "0x1.a019b8ef67c6cp-16",
        "0x1.71de0d9c145d0p-19",
        "0x1.2891a8c1d838dp-22",
        "0x1.af38d53857513p-26",
    )
)


def multiply_add(x, y, z, *, compiled: bool) -> Array:
    """x y + z; with one rounding where a Triton kernel is compiled.

    What compiles these kernels does not fuse a product with the sum behind it.
    """
    if not compiled:
        return x * y + z
    from jax.experimental.pallas import triton

    shape = jnp.broadcast_shapes(*(jnp.shape(part) for part in (x, y, z)))
    wide = [jnp.broadcast_to(jnp.asarray(part), shape) for part in (x, y, z)]
    (found,) = triton.elementwise_inline_asm(
        "fma.rn.f64 $0, $1, $2, $3;",
        args=wide,
        constraints="=d,d,d,d",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, jnp.float64)],
    )
    return found


def exponential(x, *, compiled: bool) -> Array:
    """e^x of x <= 0, within 2^-51 of itself; NaN of NaN.

    With k the integer next to x / log 2 and r = x - k log 2 it is 2^k e^r.
    """
    fused = lambda x, y, z: multiply_add(x, y, z, compiled=compiled)
    x = jnp.where(x < LEAST_EXPONENT, LEAST_EXPONENT, x)
    if compiled:
        moved = fused(x, 1.0 / math.log(2.0), ROUND)
        k = moved - ROUND
    else:
        # XLA would take what was added away again
        k = jnp.round(x / math.log(2.0))
        moved = k + ROUND
    r = fused(k, -LOW, fused(k, -HIGH, x))
    value = fused(TERMS[-1], r, TERMS[-2])
    for term in TERMS[-3::-1]:
        value = fused(value, r, term)
    # NaN times whatever bits NaN leaves is NaN
    bits = jax.lax.bitcast_convert_type(moved, jnp.int64) << 52
    return value * jax.lax.bitcast_convert_type(bits, jnp.float64)
