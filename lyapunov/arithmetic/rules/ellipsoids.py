r"""Errors of a state's columns as ellipsoids, one shape for all columns of a head.

A ball forgets where an error points, and a delta rule erases along its keys: what a
token writes is what later tokens with keys alike erase. An ellipsoid keeps it. Errors e
with $e^T G^{-1} e \le s^2$ go through a matrix $\Phi$ as $\Phi G \Phi^T$, and for
shares $p_i$ that add up to 1 (Kurzhanski and Valyi 1997, section 2.1; by convexity of
$x^T G^{-1} x$ in both)

$$\Big(\sum_i e_i\Big)^T \Big(\sum_i G_i / p_i\Big)^{-1} \Big(\sum_i e_i\Big)
  \le \sum_i p_i s_i^2.$$

Shares make the trace least. Rounding of this arithmetic itself, relative to the largest
entries, is covered by what `NOISE` adds.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._bounded_values import SAFETY, Bounded
from .declared import dot


NOISE = 1e-12
"""Of the trace of what a shape is made of: added to its diagonal, and to squares that
are read. Products of matrices of n rows in fp64 are off by less than 3 n 2^-53 of it:
2e-13 where n is 512."""
LARGEST = 1e100
"""Errors from here on have no square; they shape nothing."""
LEAST, FLOOR = 1e-140, 1e-280
"""Errors that are not 0 count as this at least, and shapes have as much on their
diagonal: what underflows is less."""


class Ellipsoid(NamedTuple):
    """Errors e of columns with e^T shape^-1 e <= scale^2."""

    shape: Float[Array, "heads key_dim key_dim"]
    scale: Float[Array, "heads value_dim"]


class BoundedColumns(Bounded):
    """A state of columns (heads, value_dim, key_dim) with the shape of its errors."""

    ellipsoid: Ellipsoid

    def __init__(self, x: Bounded, ellipsoid: Ellipsoid):
        self.value, self.error, self.norm = x.value, x.error, x.norm
        self.ellipsoid = ellipsoid


def ball(radius, size: int) -> Ellipsoid:
    """Errors no longer than a radius, (heads, value_dim), of `size` entries."""
    eye = jnp.broadcast_to(jnp.eye(size), (radius.shape[0], size, size))
    return Ellipsoid(eye, _seen(radius))


def along(keys, most) -> Ellipsoid:
    r"""Sums of keys times numbers that are no larger than `most`.

    $|x_j| \le a_j$ lies in $\sum_j x_j^2 / w_j \le \sum_j a_j^2 / w_j$; w is what
    columns have of a on average.

    **Arguments:**

    - `keys`: (tokens, heads, key_dim). `most`: (tokens, heads, value_dim).
    """
    most = _seen(most)
    weight = jnp.mean(jnp.where(most < LARGEST, most, 0.0), axis=-1)
    known = weight > 0.0
    # what only columns without a bound have shapes nothing
    inverse = jnp.where(known, 1.0 / jnp.where(known, weight, 1.0), jnp.inf)
    squares = jnp.where(most == 0.0, 0.0, most**2 * inverse[..., None])
    shape = dot("jhk,jhl->hkl", keys * weight[..., None], keys)
    shape = _floored(shape, _trace(shape))
    return Ellipsoid(shape, jnp.sqrt(jnp.sum(squares, axis=0)))


def mapped(matrix, e: Ellipsoid) -> Ellipsoid:
    """What a matrix (heads, key_dim, key_dim) makes of errors."""
    shape = dot("hkl,hml->hkm", dot("hkl,hlm->hkm", matrix, e.shape), matrix)
    size = jnp.sum(matrix**2, axis=(-2, -1), keepdims=True) * _trace(e.shape)
    return Ellipsoid(_floored(shape, size), e.scale)


def through_token(e: Ellipsoid, decay, key, rate) -> Ellipsoid:
    """What a step matrix (1 - rate key key^T) decay makes of errors.

    **Arguments:**

    - `decay`, `key`: (heads, key_dim). `rate`: (heads).
    """
    shape = decay[:, :, None] * e.shape * decay[:, None, :]
    seen = dot("hkl,hl->hk", shape, key)
    cross = key[:, :, None] * seen[:, None, :]
    again = jnp.sum(key * seen, axis=-1)
    rate = rate[:, None, None]
    outer = key[:, :, None] * key[:, None, :] * again[:, None, None]
    cross = cross + jnp.swapaxes(cross, -1, -2)
    # what it is made of may cancel
    size = jnp.abs(rate) * _trace(cross) + rate**2 * _trace(outer) + _trace(shape)
    made = shape - rate * cross + rate**2 * outer
    return Ellipsoid(_floored(made, size), e.scale)


def total(*parts: Ellipsoid) -> Ellipsoid:
    """Sums of errors, one of each part."""
    squares = [_mean_square(part.scale) for part in parts]
    sides = [
        jnp.sqrt(square * _trace(part.shape)[:, 0, 0])
        for square, part in zip(squares, parts, strict=True)
    ]
    whole = sum(sides)
    shape, scale = jnp.zeros_like(parts[0].shape), jnp.zeros_like(parts[0].scale)
    for part, square, side in zip(parts, squares, sides, strict=True):
        some = side > 0.0
        share = jnp.where(some, side, 1.0) / jnp.where(some, whole, 1.0)
        factor = jnp.where(some, square / share, 0.0)
        shape = shape + factor[:, None, None] * part.shape
        factor = jnp.where(some, share / jnp.where(some, square, 1.0), jnp.inf)
        own = factor[:, None] * part.scale**2
        scale = scale + jnp.where(part.scale == 0.0, 0.0, own)
    shape = _floored(shape, _trace(shape))
    return Ellipsoid(shape, jnp.sqrt(scale) * SAFETY)


def reach(e: Ellipsoid, rows):
    """Most that rows (..., heads, key_dim) see of errors: (..., heads, value_dim)."""
    seen = dot("hkl,...hl->...hk", e.shape, rows)
    squares = jnp.sum(seen * rows, axis=-1)
    noise = NOISE * _trace(e.shape)[:, 0, 0] * jnp.sum(rows**2, axis=-1)
    along_rows = jnp.sqrt(jnp.maximum(squares, 0.0) + noise) * SAFETY
    return _known(along_rows[..., None], e.scale)


def length(e: Ellipsoid, squarings: int = 3):
    """Most that errors are long: (heads, value_dim)."""
    side = jnp.sqrt(largest_eigenvalue(e.shape, squarings))[:, None]
    return _known(side * SAFETY, e.scale)


def largest_eigenvalue(shape, squarings: int = 3):
    """At least it, by the Frobenius norm of a power: of the eighth, at most 1.42 times
    it with 256 rows; of the first, 16 times."""
    size = _trace(shape)
    scaled = shape / jnp.where(size > 0.0, size, 1.0)
    for _ in range(squarings):
        scaled = dot("hkl,hml->hkm", scaled, scaled)
    power = jnp.sqrt(jnp.sum(scaled**2, axis=(-2, -1)))
    return (power ** (0.5**squarings) + NOISE) * size[:, 0, 0] * SAFETY


def chosen(first, one: Ellipsoid, other: Ellipsoid) -> Ellipsoid:
    """Columns of one where `first`, (heads, value_dim), else of the other."""
    mine = Ellipsoid(one.shape, jnp.where(first, one.scale, 0.0))
    return total(mine, Ellipsoid(other.shape, jnp.where(first, 0.0, other.scale)))


def _mean_square(scale):
    """Over the columns that have one: (heads)."""
    known = jnp.where(scale < LARGEST, scale, 0.0)
    return jnp.mean(known**2, axis=-1)


def _seen(errors):
    """Errors whose squares are no zeros, but where they are."""
    return jnp.where(errors == 0.0, 0.0, jnp.maximum(errors, LEAST))


def _floored(shape, size):
    """A shape with what fp64 may have lost of it, made of others of that trace."""
    return shape + (NOISE * size + FLOOR) * jnp.eye(shape.shape[-1])


def _known(side, scale):
    """Their product; no bound where a shape has overflown."""
    found = jnp.where((side == 0.0) | (scale == 0.0), 0.0, side * scale)
    return jnp.where(jnp.isnan(found), jnp.inf, found)


def _trace(shape):
    return jnp.trace(shape, axis1=-2, axis2=-1)[:, None, None]
