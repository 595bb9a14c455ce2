"""Covariant Lyapunov vectors: the directions that grow at each exponent's own rate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._errors import ArgumentError
from ..arithmetic._fp64 import in_fp64
from ..recurrences.base import AbstractRecurrence
from ._given import key_given, options_given
from ._local import system_along
from ._method import System
from ._qr import QR


SMALLEST_QUOTIENT = 1e-290
"""Of growths within a step: the inverse of smaller ones overflows."""


class CovariantVectors(eqx.Module):
    """Hold covariant vectors along the middle of a trajectory, and their growth.

    Row n stands before the token `first_token + n`, whose step Jacobian sends each
    vector to the next row's, times `exp(log_growth[n])`: one instant more than tokens.
    """

    vectors: Float[Array, "instants d k"]
    """Columns of length 1, in the flat state's coordinates, the fastest first."""
    states: Float[Array, "instants d"]
    """Where the vectors stand, flat."""
    log_growth: Float[Array, "tokens k"]
    """Of each vector over each token, in nats."""
    first_token: int = eqx.field(static=True)

    @property
    def exponents(self) -> Float[Array, " k"]:
        """Take the mean growth of each vector, nats per token."""
        return self.log_growth.mean(axis=0)

    @property
    def angles(self) -> Float[Array, "instants k k"]:
        """Measure the angles between the lines of two vectors, radians, 0 to pi / 2.

        One near 0 is a near tangency: growth and decay can hardly be told apart.
        """
        a, b = self.vectors[:, :, :, None], self.vectors[:, :, None, :]
        b = jnp.where(jnp.sum(a * b, axis=1, keepdims=True) < 0, -b, b)
        # half the chord: exact for small angles, where the cosine is not
        away = jnp.linalg.norm(a - b, axis=1)
        along = jnp.linalg.norm(a + b, axis=1)
        return 2 * jnp.arctan2(away, along)


@in_fp64
def covariant_lyapunov_vectors(
    step: Callable | AbstractRecurrence,
    state: Any,
    inputs: Any,
    *,
    transient: int,
    k: int | None = None,
    key: PRNGKeyArray | None = None,
) -> CovariantVectors:
    r"""Find the k leading covariant Lyapunov vectors, forward and then backward.

    Orthonormal frames run forward, $J_n Q_{n-1} = Q_n R_n$; within them the
    coefficients of the vectors run backward, $A_{n-1} \propto R_n^{-1} A_n$, as all
    directions but the wanted ones fade in that direction of time. $Q_n A_n$ are the
    vectors. Unlike the frames they don't depend on the norm, and the Jacobians send
    each to the next.

    **Arguments:**

    - `step`, `state`, `inputs`, `key`: as in `lyapunov_spectrum`. The step must be
      invertible on the leading k directions.
    - `transient`: tokens left out at the start, in which the frames turn, and again
      at the end, in which the coefficients do. The error that is left is of order
      exp(-gap x transient), with the gap between neighbouring exponents.
    - `k`: all by default. Holds tokens x (d k + k^2) numbers.

    **Raises:** `ArgumentError` as in `lyapunov_spectrum`, for too few tokens, or a step
    that is singular in fp64, which is named. Under `jax.jit`, where that cannot be
    seen, the vectors are NaN from there back.

    ??? cite "Ginelli et al. (2007), Phys. Rev. Lett. 99, 130601"
    """
    options_given(None, None, transient, k, ((), ()))
    system, n_tokens, inputs = system_along(step, state, inputs)
    d = system.state.size
    k = QR().number(system, k)
    if transient < 0 or n_tokens <= 2 * transient:
        raise ArgumentError(
            f"transient is {transient} and there are {n_tokens} tokens",
            hint="it is needed twice, and a token between",
        )
    start, coefficients = jax.random.split(key_given(key))
    # even all d of them at random: those along the axes might stay there
    frame = jnp.linalg.qr(jax.random.normal(start, (d, k), jnp.float64))[0]
    found = frames_along(system, inputs, n_tokens, frame)
    # vectors that have not turned yet may meet by chance; what stays is a property
    singular = found.singular | _out_of_range(found.triangles)
    singular = singular.at[0].set(False) if transient else singular
    if not isinstance(singular, Tracer):
        _refuse(np.asarray(singular), np.asarray(found.triangles))
    triangles = jnp.where(singular[:, None, None], jnp.nan, found.triangles)
    last = jnp.triu(jax.random.normal(coefficients, (k, k), jnp.float64))
    last = last + jnp.eye(k) * jnp.where(jnp.diagonal(last) < 0, -1.0, 1.0)
    before, growth = backward(triangles, last)
    frames = jnp.concatenate([frame[None], found.frames])
    states = jnp.concatenate([system.state[None], found.states])
    vectors = jnp.einsum("ndk,nkj->ndj", frames, before)
    kept = slice(transient, n_tokens - transient)
    ends = slice(transient, n_tokens - transient + 1)
    return CovariantVectors(vectors[ends], states[ends], growth[kept], transient)


class Frames(NamedTuple):
    """Hold orthonormal frames along a trajectory: J_n Q_{n-1} = Q_n R_n."""

    states: Float[Array, "tokens d"]
    """After each token."""
    frames: Float[Array, "tokens d k"]
    """Q_n, after each token."""
    triangles: Float[Array, "tokens k k"]
    """R_n, upper triangular with a diagonal of at least 0."""
    singular: Bool[Array, " tokens"]
    """Steps that send a vector to within rounding of those before it."""


@eqx.filter_jit
def frames_along(system: System, inputs, n_tokens: int, frame) -> Frames:
    """Push a frame along the tokens and keep all frames."""

    def advance(carry, u):
        state, frame = carry
        state, push = jax.linearize(lambda x: system.step(x, u), state)
        pushed = jax.vmap(push, 1, 1)(frame)
        # each vector scaled by itself: the squares of tiny ones would vanish
        scale = jnp.max(jnp.abs(pushed), axis=0)
        pushed = pushed / jnp.where(scale > 0, scale, 1)
        frame, triangle = jnp.linalg.qr(pushed)
        sign = jnp.where(jnp.diagonal(triangle) < 0, -1.0, 1.0)
        frame, triangle = frame * sign, sign[:, None] * triangle
        size = jnp.linalg.norm(pushed, axis=0)
        limit = 8 * len(frame) * jnp.finfo(frame.dtype).eps * size
        singular = jnp.any(jnp.diagonal(triangle) <= limit)
        return (state, frame), (state, frame, triangle * scale, singular)

    _, found = jax.lax.scan(advance, (system.state, frame), inputs, n_tokens)
    return Frames(*found)


def _out_of_range(triangles) -> Bool[Array, " tokens"]:
    """Steps whose inverse overflows, or that are not finite themselves."""
    smallest = jnp.min(jnp.diagonal(triangles, axis1=1, axis2=2), axis=1)
    largest = jnp.max(jnp.abs(triangles), axis=(1, 2))
    # a NaN compares as false, and is out of range
    return ~(smallest > SMALLEST_QUOTIENT * largest)


def _refuse(singular: np.ndarray, triangles: np.ndarray) -> None:
    """Name the first step that nothing can be followed back through."""
    if not singular.any():
        return
    at = int(np.flatnonzero(singular)[0])
    if not np.isfinite(triangles[at]).all():
        raise ArgumentError(
            f"the step Jacobian at token {at} is not finite: the trajectory has left "
            "the range of fp64",
            hint=f"give the {at} tokens before it",
        )
    raise ArgumentError(
        f"the step at token {at} is singular in fp64: it sends a direction to 0 or to "
        "within rounding of the others, so nothing can be followed back through it",
        hint="take fewer vectors (k) or, for decays of 0, lyapunov_spectrum alone",
    )


@jax.jit
def backward(
    triangles: Float[Array, "tokens k k"], last: Float[Array, "k k"]
) -> tuple[Float[Array, "instants k k"], Float[Array, "tokens k"]]:
    """Solve backward for coefficients A_0 to A_T of unit columns, and their log growth.

    `triangles[n]` leads from A_n to A_{n+1}, in the frames before and after token n.
    """

    def unit(columns):
        size = jnp.linalg.norm(columns, axis=0)
        return columns / size, size

    def back(after, triangle):
        # one power of two for all rows: quotients of tiny numbers must not overflow
        scale = jnp.exp2(jnp.round(jnp.log2(jnp.max(jnp.abs(triangle)))))
        solved = jax.scipy.linalg.solve_triangular(triangle / scale, after)
        largest = jnp.max(jnp.abs(solved), axis=0)
        before, size = unit(solved / largest)
        growth = jnp.log(scale) - jnp.log(size) - jnp.log(largest)
        return before, (before, growth)

    last = unit(last)[0]
    _, (before, growth) = jax.lax.scan(back, last, triangles, reverse=True)
    return jnp.concatenate([before, last[None]]), growth
