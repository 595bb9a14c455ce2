"""Lyapunov exponents in parallel along the tokens."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..recurrences.base import AbstractDiagonalRecurrence, AbstractTriangularRecurrence
from ._methods import AbstractMethod, ByBlocks, ClosedForm, windows_of
from ._qr import QR, first_frame, orthonormalise


class ParallelInTime(AbstractMethod):
    r"""QR's exponents, tokens in parallel; equal to `QR()`, not an approximation.

    Diagonal recurrences: sums of logs. Block-triangular ones: block by block. Dense
    ones, in blocks of tokens:

    1. The states, one after the other (steps may be nonlinear).
    2. The product of each block's Jacobians, all blocks at once, every column with a
       log scale of its own: it leaves neither end of fp64's range, and a gate of 0
       gives a column of log scale -inf.
    3. The frame at the start of each block, from the products, one block after the
       other. Directions in a block that differ in growth by more than 1e16 are lost.
    4. `QR()` in all blocks at once, each from its frame. Where a block does not end
       in the frame that the next one started from, the next one starts again from
       there, until all meet, to within what rounding makes of a block.

    When they meet, the frames are those of one pass of `QR()`. Directions that 3 has
    lost are those that a block forgets, so that one or two rounds do; near-isotropic
    contraction, where nothing is forgotten, loses nothing in 3. In between, two
    directions that keep on turning into each other, far below a leading third, cost
    up to as many rounds as there are blocks: the answer is right, and no faster than
    `QR()`.

    Depth is about 4 sqrt(T) steps, work 2 to 3 times that of `QR()`; memory d entries
    a token and d x d a block. It pays on a GPU, or for small states on any machine.
    For k well below d the products would cost more than they save and are left out:
    all blocks start from the same frame, and rounds go on until it is forgotten.
    Gradients go forward only (`jax.jvp`).

    Instead of prefix products with selective resets (Heinsen and Kozachkov 2025),
    whose frames depend on where a reset falls.

    **Arguments:**

    - `block`: tokens in a block; the square root of their number by default.

    ??? cite "Heinsen and Kozachkov (2025), openreview.net, SUuzb0SOGu: the resets"
    """

    block: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.block is not None and self.block < 1:
            raise ValueError(f"block is {self.block}; give 1 or more")

    def start(self, system, k, key):
        """As the method for its structure; else QR's frame."""
        other = self._by_structure(system)
        if other is not None:
            return other.start(system, k, key)
        return system.state, *first_frame(system, k, key)

    def advance(self, system, carry, inputs, n_tokens, width):
        """Trajectory, products, first frames, rounds."""
        other = self._by_structure(system)
        if other is not None:
            return other.advance(system, carry, inputs, n_tokens, width)
        state, frame, turned = carry
        length = self.block or math.isqrt(n_tokens - 1) + 1
        length = min(length, n_tokens)
        blocks = -(-n_tokens // length)

        def token(state, u):
            return system.step(state, u), state

        end, states = jax.lax.scan(token, state, inputs, n_tokens)
        # the last block is filled up with tokens at which nothing happens
        shown = jnp.minimum(jnp.arange(blocks * length), n_tokens - 1)
        live = jnp.arange(blocks * length) < n_tokens
        checked = live & (turned | (jnp.arange(blocks * length) > 0))
        tokens = jax.tree.map(
            lambda x: x.reshape(blocks, length, *x.shape[1:]),
            (
                states[shown],
                jax.tree.map(lambda x: x[shown], inputs),
                live,
                checked,
            ),
        )

        def push(vectors, state, u, live):
            _, tangent = jax.linearize(lambda x: system.step(x, u), state)
            return jnp.where(live, jax.vmap(tangent, 1, 1)(vectors), vectors)

        def through(frame, tokens):
            def one(frame, token):
                state, u, live, checked = token
                frame, growth = orthonormalise(push(frame, state, u, live), checked)
                return frame, jnp.where(live, growth, 0)

            return jax.lax.scan(one, frame, tokens)

        d, k = frame.shape
        if d <= 4 * k:
            starts = _first_frames(push, tokens, frame)
        else:
            starts = jnp.broadcast_to(frame, (blocks, d, k))
        growth, last = _until_they_meet(through, starts, tokens, length)
        growth = growth.reshape(blocks * length, k)[:n_tokens]
        return (end, last, jnp.ones_like(turned)), windows_of(growth, width)

    def notes(self, system, k):
        """Those of the method that it equals."""
        other = self._by_structure(system)
        return (other or QR()).notes(system, k)

    def count(self, system):
        """All, as the method for its structure counts them."""
        return (self._by_structure(system) or QR()).count(system)

    def multiplicity(self, system):
        """As the method for its structure counts them."""
        return (self._by_structure(system) or QR()).multiplicity(system)

    def _by_structure(self, system) -> AbstractMethod | None:
        if isinstance(system.recurrence, AbstractDiagonalRecurrence):
            return ClosedForm()
        if isinstance(system.recurrence, AbstractTriangularRecurrence):
            return ByBlocks(self)
        return None


def _first_frames(push, tokens, frame) -> Float[Array, "blocks d k"]:
    """The frame before each block, by products of the blocks' Jacobians."""
    d = frame.shape[0]

    def product(tokens):
        def one(carry, token):
            columns, logs = carry
            state, u, live, _ = token
            columns, grown = _unit_columns(push(columns, state, u, live))
            return (columns, logs + grown), None

        start = jnp.eye(d, dtype=frame.dtype), jnp.zeros(d, frame.dtype)
        return jax.lax.scan(one, start, tokens)[0]

    def onwards(frame, product):
        columns, logs = product
        # the frame's rows times e^logs, each column by the largest that it meets
        size = logs[:, None] + jnp.log(jnp.abs(frame))
        largest = jnp.max(size, axis=0)
        largest = jnp.where(jnp.isfinite(largest), largest, 0)
        weighed = jnp.sign(frame) * jnp.exp(size - largest)
        return orthonormalise(columns @ weighed, False)[0], frame

    return jax.lax.scan(onwards, frame, jax.vmap(product)(tokens))[1]


def _unit_columns(columns):
    """Columns by their largest entries, and the logs of these; a column of 0 stays."""
    scale = jnp.max(jnp.abs(columns), axis=0)
    return columns / jnp.where(scale > 0, scale, 1), jnp.log(scale)


def _until_they_meet(through, starts, tokens, length: int):
    """Log growth at every token, and the last frame, once no block starts anew."""
    blocks, d, _ = starts.shape
    # what so many roundings make of a frame on two ways to the same place
    near = 16 * d * length * jnp.finfo(starts.dtype).eps

    def another(carry):
        rounds, starts, ends, _ = carry
        starts = starts.at[1:].set(ends[:-1])
        ends, growth = jax.vmap(through)(starts, tokens)
        return rounds + 1, starts, ends, growth

    def apart(carry):
        rounds, starts, ends, _ = carry
        then, now = ends[:-1], starts[1:]
        # -v grows as v does, and its sign is never forgotten
        sign = jnp.where(jnp.sum(then * now, axis=1, keepdims=True) < 0, -1.0, 1.0)
        gap = jnp.max(jnp.abs(then - sign * now), initial=0)
        return (gap > near) & (rounds < blocks)

    ends, growth = jax.vmap(through)(starts, tokens)
    carry = jax.lax.while_loop(apart, another, (jnp.asarray(1), starts, ends, growth))
    return carry[3], carry[2][-1]
