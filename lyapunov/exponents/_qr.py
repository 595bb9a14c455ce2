"""Benettin's method, one token after the other."""

from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._errors import ArgumentError
from ._method import AbstractMethod, System
from ._singular import recovered
from ._windows import in_blocks


SMALL = 4
"""Columns up to which Gram-Schmidt, unrolled, is faster than LAPACK's QR."""


FrameCarry: TypeAlias = tuple[Float[Array, " d"], Float[Array, "d k"], Bool[Array, ""]]
"""State, frame, and whether the frame's first step is behind it."""


class QR(AbstractMethod[FrameCarry]):
    """Carry k orthonormal tangent vectors, orthonormalise again: Benettin's method.

    With all k = d vectors the start is the identity, which is exact on a diagonal
    recurrence. With k < d it is random: columns of the identity would never turn
    towards the leading directions of a diagonal system and give the exponents of the
    first k coordinates. Turning takes a few tokens, a bias of order 1/T.

    A vector that a step sends to within rounding of the span of those before it has
    lost its growth (not at the first step from a random start, where the vectors have
    not yet turned). With all d vectors, and where it is the only one, the determinant
    of the step less the others gives it. Else its exponent is -inf, and the result's
    `notes` say whether a step is exactly singular.

    **Arguments:**

    - `block`: steps between orthonormalisations. More is faster. Where vectors align
      to rounding within a block, that block is gone through again step by step.

    ??? cite "Benettin et al. (1980), Meccanica 15, 9-20 and 21-30"
    """

    block: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        if self.block < 1:
            raise ArgumentError(f"block is {self.block}", hint="give 1 or more")

    def start(self, system, k, key):
        """Make the state and its first frame."""
        return system.state, *first_frame(system, k, key)

    def advance(self, system, carry, inputs, n_tokens, width):
        """Go along blocks of steps, then along those left over."""
        whole = carry[1].shape[1] == system.state.size

        def push(carry, u):
            state, frame = carry
            state, tangent = jax.linearize(lambda x: system.step(x, u), state)
            return (state, jax.vmap(tangent, 1, 1)(frame)), None

        def single(carry, u):
            state, frame, turned = carry
            state, tangent = jax.linearize(lambda x: system.step(x, u), state)
            frame, growth = orthonormalise(jax.vmap(tangent, 1, 1)(frame), turned)
            if whole:
                eye = jnp.eye(state.size, dtype=frame.dtype)
                growth = recovered(growth, lambda: jax.vmap(tangent, 1, 1)(eye))
            return (state, frame, jnp.ones_like(turned)), growth

        def one(carry, inputs, length):
            if length == 1:
                return single(carry, jax.tree.map(lambda x: x[0], inputs))
            state, frame, turned = carry
            (state, frame), _ = jax.lax.scan(push, (state, frame), inputs, length)
            frame, growth = orthonormalise(frame, turned)
            after = state, frame, jnp.ones_like(turned)

            def again():
                end, each = jax.lax.scan(single, carry, inputs, length)
                return end, each.sum(axis=0)

            lost = jnp.any(jnp.isneginf(growth))
            return jax.lax.cond(lost, again, lambda: (after, growth))

        return in_blocks(one, carry, inputs, n_tokens, self.block, width)

    def notes(self, system, k):
        """Say what bias a random start has."""
        if k == system.state.size:
            return ()
        return (
            "random start: a bias of order 1/T until the vectors have turned towards "
            "the leading directions",
        )

    def grain(self, system):
        """Find the tokens between orthonormalisations, where alone growth is known."""
        return self.block


def first_frame(
    system: System, k: int, key: PRNGKeyArray
) -> tuple[Float[Array, "d k"], Bool[Array, ""]]:
    """Make the frame to start from: the identity; with k < d a random one.

    **Returns:** the frame, and whether it has no need to turn.
    """
    d, dtype = system.state.size, system.state.dtype
    if k == d:
        return jnp.eye(d, dtype=dtype), jnp.asarray(True)
    frame, _ = jnp.linalg.qr(jax.random.normal(key, (d, k), dtype))
    return frame, jnp.asarray(False)


def orthonormalise(frame, check):
    """Find an orthonormal frame of the same spans, and the logs of the growth.

    The frame is the one whose triangle has a diagonal of at least 0: without a choice
    of signs, frames found in two ways could not be compared. Where `check` holds,
    growth within rounding of 0 relative to the vector is 0.
    """
    d, k = frame.shape
    # each vector scaled by itself: the squares of tiny ones would vanish
    scale = jnp.max(jnp.abs(frame), axis=0)
    frame = frame / jnp.where(scale > 0, scale, 1)[None, :]
    if k <= SMALL:
        frame, growth, size = _gram_schmidt(frame)
    else:
        size = jnp.linalg.norm(frame, axis=0)
        frame, triangle = jnp.linalg.qr(frame)
        diagonal = jnp.diagonal(triangle)
        frame = frame * jnp.where(diagonal < 0, -1.0, 1.0)
        growth = jnp.abs(diagonal)
    singular = check & (growth <= 8 * d * jnp.finfo(frame.dtype).eps * size)
    return frame, jnp.log(jnp.where(singular, 0, growth)) + jnp.log(scale)


def _gram_schmidt(frame):
    """Twice, unrolled: as orthonormal as Householder for a handful of vectors."""
    done, growth, sizes = [], [], []
    for column in range(frame.shape[1]):
        v = frame[:, column]
        sizes.append(jnp.linalg.norm(v))
        size = sizes[-1]
        factor = jnp.ones_like(size)
        for _ in range(2):
            for q in done:
                v = v - jnp.dot(q, v) * q
            size = jnp.linalg.norm(v)
            v = v / jnp.where(size > 0, size, 1)
            factor = factor * size
        done.append(v)
        growth.append(factor)
    return jnp.stack(done, axis=1), jnp.stack(growth), jnp.stack(sizes)
