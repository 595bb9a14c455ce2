"""Growth before the decay: norms of products of Jacobians, and the Kreiss constant.

Exponents at or below 0 say that perturbations fade in the end. How far they grow before
is a question about norms: diagonal Jacobians never let them grow, non-normal ones may.
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._arguments import switch
from .._errors import ArgumentError
from ..arithmetic._fp64 import in_fp64
from ..recurrences.base import (
    AbstractDiagonalRecurrence,
    AbstractKeyRecurrence,
    AbstractRecurrence,
)
from ._local import system_along


class TransientGrowth(eqx.Module):
    r"""Hold logs of the 2-norms of products of step Jacobians, $J_t \cdots J_{s+1}$."""

    log_norms: Float[Array, "starts tokens"]
    """Row s: a perturbation made before token s; -inf for the tokens before that."""

    @property
    def max_log_norm(self) -> Float[Array, ""]:
        """Find the log of the largest norm: how far a perturbation can grow."""
        return self.log_norms.max()

    @property
    def where(self) -> tuple[int, int]:
        """Find the product with that norm: over tokens `start` to `stop` - 1."""
        norms = np.asarray(self.log_norms)
        start, token = np.unravel_index(np.argmax(norms), norms.shape)
        return int(start), int(token) + 1


@in_fp64
def transient_growth(
    step: Callable | AbstractRecurrence,
    state: Any,
    inputs: Any,
    *,
    from_every_token: bool = False,
) -> TransientGrowth:
    """Find the largest growth of any perturbation over t tokens, for every t.

    Products are kept as a matrix of entries up to 1 and the log of its scale, so that
    they neither overflow nor underflow. For a diagonal recurrence they are sums of log
    decays; for one that acts on keys, products on one row of the state.

    **Arguments:**

    - `step`, `state`, `inputs`: as in `lyapunov_spectrum`. Of a sequence of matrices,
      `transient_growth(lambda x, J: J @ x, jnp.zeros(d), matrices)`.
    - `from_every_token`: products that start at any token, not at the first alone;
      costs tokens times as much time and memory.

    **Returns:** log norms, in nats; -inf for a product that is 0. The product of no
    Jacobians, of norm 1, is not among them.

    **Raises:** `ArgumentError` as in `lyapunov_spectrum`.
    """
    switch(from_every_token, "from_every_token")
    if isinstance(step, AbstractKeyRecurrence):
        heads, _, key_dim = jnp.shape(state)
        state = jnp.zeros((heads, 1, key_dim))
        step = functools.partial(_on_one_row, step)
    system, n_tokens, inputs = system_along(step, state, inputs)
    starts = n_tokens if from_every_token else 1
    if isinstance(step, AbstractDiagonalRecurrence):
        logs = jax.vmap(step.log_decay)(inputs).reshape(n_tokens, -1)
        return TransientGrowth(_diagonal_log_norms(logs, starts))
    return TransientGrowth(_dense_log_norms(system, inputs, n_tokens, starts))


def _on_one_row(recurrence: AbstractKeyRecurrence, row, u):
    """The step Jacobian of every head, as a step."""
    after, log_scale = recurrence.on_keys(row, u)
    return jnp.exp(log_scale)[:, None, None] * after


@eqx.filter_jit
def _diagonal_log_norms(logs, starts: int):
    """Largest sums of log decays."""

    def advance(sums, numbered):
        token, log = numbered
        begun = jnp.arange(starts) <= token
        sums = jnp.where(begun[:, None], sums + log, sums)
        return sums, jnp.where(begun, sums.max(axis=1), -jnp.inf)

    sums = jnp.zeros((starts, logs.shape[1]))
    numbered = (jnp.arange(len(logs)), logs)
    return jax.lax.scan(advance, sums, numbered)[1].T


@eqx.filter_jit
def _dense_log_norms(system, inputs, n_tokens: int, starts: int):
    """Norms of scaled products, one from each start."""
    d = system.state.size

    def advance(carry, numbered):
        state, products, logs = carry
        token, u = numbered
        state, push = jax.linearize(lambda x: system.step(x, u), state)
        J = jax.vmap(push, 1, 1)(jnp.eye(d))
        begun = jnp.arange(starts) <= token
        J, scale = _scaled(J)
        moved, size = jax.vmap(_scaled)(J @ products)
        products = jnp.where(begun[:, None, None], moved, products)
        logs = jnp.where(begun, logs + jnp.log(scale) + jnp.log(size), logs)
        norm = jnp.linalg.norm(products, ord=2, axis=(1, 2))
        return (state, products, logs), jnp.where(begun, logs + jnp.log(norm), -jnp.inf)

    start = jnp.broadcast_to(jnp.eye(d), (starts, d, d))
    numbered = (jnp.arange(n_tokens), inputs)
    carry = (system.state, start, jnp.zeros(starts))
    return jax.lax.scan(advance, carry, numbered, n_tokens)[1].T


def _scaled(matrix):
    """The matrix with entries up to 1, and what it was divided by; 0 stays 0."""
    scale = jnp.max(jnp.abs(matrix))
    return matrix / jnp.where(scale > 0, scale, 1), scale


class KreissConstant(NamedTuple):
    """Hold the Kreiss constant of a matrix as computed, and what is certain of it."""

    value: float
    """The largest found; inf where powers are not bounded. Where the supremum is a
    limit at the unit circle, below it by a relative 1e-7 or so; where fp64 cannot
    follow, `lower`."""
    lower: float
    """A certified lower bound, from exact arithmetic at `z`."""
    z: complex
    """Where it was found; infinity where the constant is 1."""


RADII = np.logspace(-7, 2, 19)
"""|z| - 1 on the grid."""
DECADE = 2
"""Radii of the grid in a factor of ten."""
ANGLES = 32
"""Of the grid, in half a turn."""
OUTERMOST = 16
"""Eigenvalues whose angles are on the grid as well."""
PEAKS = 4
"""Best points of the grid that are refined."""
SMALLEST_STEP = 1e-8
"""Of the search in log(|z| - 1) and angle: values are flat to its square there."""
SOLVES = 3
"""One in fp64 and its refinements."""


def kreiss_constant(A: Float[Array | np.ndarray, "d d"]) -> KreissConstant:
    r"""Compute the Kreiss constant of a matrix, a measure of transient growth.

    $K(A) = \sup_{|z| > 1} (|z| - 1) \, ||(z - A)^{-1}||$, of x' = A x.

    The Kreiss matrix theorem: $K \le \max_n ||A^n|| \le e \, d \, K$, so K measures
    transient growth without a time in it. 1 for a normal matrix without eigenvalues
    outside the unit circle; infinite where powers are not bounded.

    The supremum is searched for on a grid of |z| and angles, whose best points are
    refined by compass search: about a thousand inverses of d x d matrices. It is not
    proved that no larger one was missed; `lower` is proved: at its z, a vector v is
    found and $(|z| - 1) ||v|| / ||(z - A) v||$ evaluated in rational arithmetic,
    rounded down.

    **Arguments:**

    - `A`: square, real or complex, finite.

    **Raises:** `ArgumentError` for anything else.

    ??? cite "Kreiss (1962), BIT 2, 153-181; Trefethen and Embree (2005), Spectra and
    Pseudospectra, chapter 18"
    """
    A = np.asarray(A)
    A = A.astype(np.complex128 if np.iscomplexobj(A) else np.float64)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.size == 0:
        raise ArgumentError(f"A has shape {A.shape}", hint="give a square matrix")
    if not np.isfinite(A).all():
        raise ArgumentError(
            "A holds values that are not finite", hint="give finite numbers"
        )
    d = len(A)
    eigenvalues = np.linalg.eigvals(A)
    outside = eigenvalues[np.argmax(np.abs(eigenvalues))]
    if abs(outside) > 1 + 100 * d * 2.0**-53 * max(1.0, float(np.linalg.norm(A, 2))):
        z = complex(outside * (1 + (abs(outside) - 1) * 1e-12))
        return KreissConstant(math.inf, _certified(A, z), z)

    angles = np.linspace(0, math.pi, ANGLES + 1)
    near = np.angle(eigenvalues[np.argsort(-np.abs(eigenvalues))[:OUTERMOST]])
    if np.iscomplexobj(A):  # real matrices are symmetric about the axis
        angles = np.concatenate([angles, -angles[1:-1]])
    angles = np.unique(np.concatenate([angles, near]))
    grid = np.stack([_resolvent(A, r, angles) for r in RADII])
    if grid.max() > 2 * grid[DECADE:].max() > 2:
        # still growing, tenfold a decade, at the edge: a pole of order 2 or more
        i, j = np.unravel_index(grid.argmax(), grid.shape)
        z = _point(RADII[i], angles[j])
        return KreissConstant(math.inf, _certified(A, z), z)
    value, radius, angle = max(
        _climb(A, float(RADII[i]), float(angles[j])) for i, j in _peaks(grid)
    )
    z = _point(radius, angle)
    lower = _certified(A, z)
    if value <= 1 + 1e-6 and lower <= 1:
        # the limit for large |z|
        return KreissConstant(1.0, 1.0, complex(math.inf))
    if value > 1.001 * lower:
        value = lower  # where fp64 cannot follow, only what is certain counts
    return KreissConstant(max(value, lower), lower, z)


def _point(radius: float, angle: float) -> complex:
    """z with |z| = 1 + radius, up to rounding."""
    return complex((1 + radius) * np.exp(1j * angle))


def _resolvent(A, radius: float, angles) -> np.ndarray:
    """radius ||(z - A)^-1|| at these angles."""
    z = (1 + radius) * np.exp(1j * np.atleast_1d(angles))
    shifted = z[:, None, None] * np.eye(len(A)) - A
    # not through the smallest singular value, whose error is relative to the largest
    try:
        norms = np.linalg.norm(np.linalg.inv(shifted), ord=2, axis=(1, 2))
    except np.linalg.LinAlgError:
        with np.errstate(divide="ignore"):
            norms = 1 / np.linalg.svd(shifted, compute_uv=False)[:, -1]
    return radius * norms


def _peaks(grid: np.ndarray) -> list[tuple[int, int]]:
    """Places of the highest local maxima of a grid."""
    padded = np.pad(grid, 1, constant_values=-np.inf)
    rows, columns = grid.shape
    top = np.ones(grid.shape, bool)
    for i, j in ((0, 1), (2, 1), (1, 0), (1, 2)):
        top &= grid >= padded[i : i + rows, j : j + columns]
    places = np.argwhere(top)
    order = np.argsort(-grid[top])[:PEAKS]
    return [(int(i), int(j)) for i, j in places[order]]


def _climb(A, radius: float, angle: float) -> tuple[float, float, float]:
    """Compass search: the largest value nearby, with its radius and angle."""
    value = float(_resolvent(A, radius, angle)[0])
    step = 0.5
    while step > SMALLEST_STEP:
        turn = step * min(1.0, radius)  # nearer to the circle all is smaller
        for factor, away in (
            (math.exp(step), 0.0),
            (math.exp(-step), 0.0),
            (1.0, turn),
            (1.0, -turn),
        ):
            near = radius * factor, angle + away
            found = float(_resolvent(A, *near)[0])
            if found > value and RADII[0] <= near[0] <= RADII[-1]:
                value, (radius, angle) = found, near
                break
        else:
            step /= 2
    return value, radius, angle


def _certified(A, z: complex) -> float:
    """A lower bound of K from a vector at z, in rational numbers, rounded down.

    Any vector v gives one; that with (z - A) v = u, u the left singular vector, gives
    the largest. It is solved for in fp64 and refined with exact residuals.
    """
    shifted = z * np.eye(len(A)) - A
    wanted = _exact(np.linalg.svd(shifted)[0][:, -1])
    matrix, z_exact = _exact(A), _exact(np.array(z))
    away = _root_below(_square(z_exact)) - 1
    if away <= 0:
        return 1.0
    best, residual = Fraction(1), wanted
    v = 0 * wanted
    for _ in range(SOLVES):
        try:
            rounded = residual[0].astype(float) + 1j * residual[1].astype(float)
            step = np.linalg.solve(shifted, rounded)
        except np.linalg.LinAlgError:
            break
        if not np.isfinite(step).all():
            break
        v = v + _exact(step)
        image = _times(z_exact, v) - _times(matrix, v)
        residual = wanted - image
        left = _square(image)
        if left == 0:
            return math.inf
        best = max(best, away**2 * _square(v) / left)
    # to the nearest, and one down: below either way
    return max(1.0, math.nextafter(float(_root_below(best)), 0.0))


def _exact(x: np.ndarray) -> np.ndarray:
    """Real and imaginary parts along a new first axis, as rational numbers."""
    parts = np.stack([np.real(x), np.imag(x)])
    return np.vectorize(Fraction, otypes=[object])(parts)


def _times(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The complex product of a number or matrix with a vector."""
    real = np.dot(x[0], y[0]) - np.dot(x[1], y[1])
    return np.stack([real, np.dot(x[0], y[1]) + np.dot(x[1], y[0])])


def _square(x: np.ndarray) -> Fraction:
    """The sum of squared moduli."""
    return Fraction((x**2).sum())


def _root_below(x: Fraction) -> Fraction:
    """The square root, rounded down to 120 binary places."""
    return Fraction(math.isqrt((x.numerator << 240) // x.denominator), 1 << 120)
