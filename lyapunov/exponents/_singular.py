"""What rounding hides of a step that is nearly singular, and what it does not.

Vectors that a step sends to within rounding of each other have lost the rate of the
last of them. The volume has not lost it: a determinant is known to rounding wherever
the Jacobian is well conditioned once its rows and columns are scaled.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..recurrences.base import AbstractKeyRecurrence
from ._method import System


MOST_ENTRIES = 256
"""Of a state whose steps are looked at one by one for an exact 0."""


def recovered(
    growth: Float[Array, " k"], jacobian: Callable[[], Float[Array, "d d"]]
) -> Float[Array, " k"]:
    """Recover a vector's log growth that rounding lost, from the other d - 1.

    Where just one is -inf it is the log of the determinant less the others. It stays
    -inf where more are, or where the determinant is 0 or not known.

    **Arguments:**

    - `jacobian`: makes that of the step; asked for where one is lost alone.
    """
    if growth.shape[0] == 1:
        return growth
    lost = jnp.isneginf(growth)
    alone = jnp.sum(lost) == 1

    def find():
        matrix = jacobian()
        # a value that is not taken must have a finite derivative
        safe = jnp.where(alone, matrix, jnp.eye(len(matrix), dtype=matrix.dtype))
        rest = jnp.sum(jnp.where(lost, 0, growth))
        return log_determinant(safe)[0] - rest

    found = jax.lax.cond(alone, find, lambda: jnp.full((), -jnp.inf, growth.dtype))
    return jnp.where(lost & alone, found, growth)


def log_determinant(
    matrix: Float[Array, "d d"],
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """Compute log |det|, -inf where it is 0 or not known; is a row or column 0?

    Rows and columns are scaled to a largest entry of 1, which loses nothing; then
    pivots within rounding of 0 say nothing.
    """
    d, eps = len(matrix), jnp.finfo(matrix.dtype).eps
    columns = jnp.max(jnp.abs(matrix), axis=0)
    scaled = matrix / jnp.where(columns > 0, columns, 1)
    rows = jnp.max(jnp.abs(scaled), axis=1)
    scaled = scaled / jnp.where(rows > 0, rows, 1)[:, None]
    pivots = jnp.abs(jnp.diagonal(jax.scipy.linalg.lu_factor(scaled)[0]))
    zero = jnp.minimum(jnp.min(columns), jnp.min(rows)) == 0
    known = (jnp.min(pivots) > 8 * d * eps) & ~zero
    logs = [jnp.log(jnp.where(known, x, 1)) for x in (pivots, columns, rows)]
    total = sum(jnp.sum(x) for x in logs)
    return jnp.where(known, total, -jnp.inf), zero


@eqx.filter_jit
def _determinants(system: System, inputs, n_tokens: int):
    def one(state, u):
        state, push = jax.linearize(lambda x: system.step(x, u), state)
        eye = jnp.eye(state.size, dtype=state.dtype)
        return state, log_determinant(jax.vmap(push, 1, 1)(eye))

    return jax.lax.scan(one, system.state, inputs, n_tokens)[1]


def why_minus_infinity(system: System, inputs, n_tokens: int) -> str:
    """Tell an exponent of -inf by an exact 0 from one by rounding, in words."""
    if isinstance(system.recurrence, AbstractKeyRecurrence):
        each = jax.vmap(system.recurrence.log_determinant)(inputs)
        for token, head in np.argwhere(np.isneginf(each))[:1]:
            return (
                f"-inf: the step at token {token} is exactly singular in head {head}: "
                "a gate is 0, or a write leaves nothing of what its key reads"
            )
    if system.state.size > MOST_ENTRIES:
        return (
            "-inf: a step is singular in fp64, by an exact 0 or by a rate that "
            "rounding hides, which is finite then"
        )
    logs, zero = map(np.asarray, _determinants(system, inputs, n_tokens))
    if zero.any():
        return (
            f"-inf: the step at token {np.argmax(zero)} is exactly singular: a row or "
            "column of its Jacobian is 0"
        )
    if np.isneginf(logs).any():
        return (
            f"-inf: the step at token {np.argmin(logs)} is singular to within "
            "rounding; its Jacobian does not tell an exact 0 from a finite rate "
            "(36 nats a step and more below the others)"
        )
    return (
        "-inf: no step is singular; rounding hides rates that are finite and fall too "
        "far behind the others between two orthonormalisations"
    )
