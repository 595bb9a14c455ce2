"""Lyapunov exponents in parallel along the tokens."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import ArgumentError
from ._method import AbstractChoice, AbstractMethod
from ._qr import QR, FrameCarry, first_frame, orthonormalise
from ._singular import recovered
from ._windows import windows_of


FAR = 40.0
"""In nats, over a block: e^-40 is 1/26 of fp64's unit roundoff."""
LOWEST = -650.0
"""In nats: e^-650 squared may vanish, itself it does not."""


class ParallelInTime(AbstractChoice):
    r"""Compute the exponents of `QR()` with tokens in parallel, not approximately.

    Diagonal recurrences: sums of logs. Block-triangular ones: block by block. Dense
    ones, in blocks of tokens:

    1. The states, one after the other, as steps may be nonlinear; not where the
       recurrence says that it is `linear`.
    2. `QR()` in all blocks at once, each from the same frame, and the product of each
       block's triangles, every row with a log scale of its own: it leaves neither end
       of fp64's range, and a gate of 0 gives a row of log scale -inf.
    3. From these the frame that each block should have started from, one block after
       the other.
    4. 2 and 3 again, until every block ends in the frame that the next one started
       from, to within what rounding makes of a block. Then the frames are those of one
       pass of `QR()`, and the exponents are, to 1e-14 where the steps are conditioned
       to 1e2.

    Two or three rounds do where k is d and directions differ in growth by no more than
    e^650 over a block, neighbours further apart than e^40 counted as e^40. Every round
    makes at least one more block final, so that the answer is right and at worst no
    faster than `QR()`. With k below d, rounds go on until a block has forgotten the
    directions that are not followed, which may never be: follow all where d allows it.

    Steps whose condition is beyond 1e12 are not the same twice, and take all rounds.

    Depth behind the states is about 4 times the root of the tokens, work 3 to 4 times
    that of `QR()`; memory d entries a token and k x k a block. It is for a GPU: two CPU
    cores take 1 to 1.5 times as long as `QR()` for 2 or 3 entries, 3 to 4 times for
    16 to 64.
    Nonlinear steps may part by rounding from the trajectory that `QR()` takes, which
    is compiled apart: of chaotic systems, long runs agree as two runs do. It cannot
    be differentiated; `QR()` can.

    Instead of prefix products with selective resets (Heinsen and Kozachkov 2025),
    whose frames depend on where a reset falls.

    **Arguments:**

    - `block`: tokens in a block; the square root of their number by default.

    ??? cite "Heinsen and Kozachkov (2025), openreview.net, SUuzb0SOGu: the resets"
    """

    block: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.block is not None and self.block < 1:
            raise ArgumentError(f"block is {self.block}", hint="give 1 or more")

    def dense(self):
        """Make the rounds over blocks of tokens."""
        return _Rounds(self.block)


class _Rounds(AbstractMethod[FrameCarry]):
    """What `ParallelInTime` does where no structure is declared."""

    block: int | None = eqx.field(static=True)

    def start(self, system, k, key):
        """Make the state and QR's first frame."""
        return system.state, *first_frame(system, k, key)

    def advance(self, system, carry, inputs, n_tokens, width):
        """Find the trajectory, then go through blocks of it in rounds."""
        state, frame, turned = carry
        length = self.block or math.isqrt(n_tokens - 1) + 1
        length = min(length, n_tokens)
        blocks = -(-n_tokens // length)

        def token(state, u):
            return system.step(state, u), state

        if getattr(system.recurrence, "linear", False):
            end, states = state, jnp.broadcast_to(state, (n_tokens, state.size))
        else:
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

        k = frame.shape[1]

        def through(frame, tokens):
            def one(carry, token):
                frame, rows, logs = carry
                state, u, live, checked = token
                pushed = push(frame, state, u, live)
                frame, growth = orthonormalise(pushed, checked)
                rows, logs = _times(frame.T @ pushed, rows, logs)
                return (frame, rows, logs), jnp.where(live, growth, 0)

            start = frame, jnp.eye(k, dtype=frame.dtype), jnp.zeros(k, frame.dtype)
            (end, rows, logs), growth = jax.lax.scan(one, start, tokens)
            return _Passed(end, rows, logs, growth)

        starts = jnp.broadcast_to(frame, (blocks, *frame.shape))
        growth, last = _until_they_meet(through, starts, tokens, length)
        growth = growth.reshape(blocks * length, k)[:n_tokens]
        if k == state.size:
            growth = _with_the_lost(system, states, inputs, growth)
        growth = _undifferentiated(growth)
        return (end, last, jnp.ones_like(turned)), windows_of(growth, width)

    def notes(self, system, k):
        """Say what `QR`, which it equals, says."""
        return QR().notes(system, k)


def _with_the_lost(system, states, inputs, growth):
    """Growth at every token, that which rounding lost by the determinants."""

    def one(given):
        state, u, growth = given

        def jacobian():
            push = jax.linearize(lambda x: system.step(x, u), state)[1]
            return jax.vmap(push, 1, 1)(jnp.eye(state.size, dtype=state.dtype))

        return recovered(growth, jacobian)

    def all_tokens():
        return jax.lax.map(one, (states, inputs, growth))

    lost = jnp.any(jnp.isneginf(growth))
    return jax.lax.cond(lost, all_tokens, lambda: growth)


@jax.custom_jvp
def _undifferentiated(x):
    """x; logarithms of the zeros of triangles have no derivatives."""
    return x


@_undifferentiated.defjvp
def _refuse_tangents(primals, tangents):
    raise ArgumentError("ParallelInTime() cannot be differentiated", hint="use QR()")


class _Passed(NamedTuple):
    """Of one block: where its frame ended, and P S = E T for its product P."""

    end: Float[Array, "d k"]
    """E, from the start S."""
    rows: Float[Array, "k k"]
    """T, upper triangular, each row by its largest entry."""
    logs: Float[Array, " k"]
    """The logs of these."""
    growth: Float[Array, "length k"]


def _times(triangle, rows, logs):
    """`triangle` times diag(e^logs) rows, in the same form; no row leaves fp64."""
    size = jnp.log(jnp.abs(jnp.triu(triangle))) + logs
    largest = jnp.max(size, axis=1)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    rows = (jnp.sign(triangle) * jnp.exp(size - largest[:, None])) @ rows
    scale = jnp.max(jnp.abs(rows), axis=1)
    rows = rows / jnp.where(scale > 0, scale, 1)[:, None]
    return rows, largest + jnp.log(scale)


def _next_starts(starts, passed: _Passed, near: float) -> Float[Array, "blocks d k"]:
    """The frame before each block, one after the other.

    With S and E a block's ends so far and S' the frame that it should start from, it
    ends in that of P S' = E T (S^T S'); in E itself where S' is S, so that every round
    makes one more block final.
    """

    def onwards(frame, block):
        start, passed = block
        mixed = passed.rows @ (start.T @ frame)
        after = passed.end @ _graded_frame(mixed, passed.logs)
        return jnp.where(_gap(start, frame) <= near, passed.end, after), frame

    return jax.lax.scan(onwards, starts[0], (starts, passed))[1]


def _gap(frames, others):
    """How far frames are apart; -v grows as v does, and its sign is not forgotten."""
    overlap = jnp.sum(frames * others, axis=-2, keepdims=True)
    sign = jnp.where(overlap < 0, -1.0, 1.0)
    return jnp.max(jnp.abs(frames - sign * others), initial=0)


def _graded_frame(matrix, logs):
    """The orthonormal factor of diag(e^logs) matrix, right in its small rows too.

    Householder's reflections keep each row to within rounding of itself if large rows
    come first. Neighbours further apart than FAR don't mix in fp64.
    """
    order = jnp.argsort(logs, descending=True)
    fall = jnp.diff(logs[order], prepend=logs[order][:1])
    fall = jnp.where(fall >= -FAR, fall, -FAR)  # also where both are -inf
    logs = jnp.maximum(jnp.cumsum(fall), LOWEST)
    size = jnp.log(jnp.abs(matrix[order])) + logs[:, None]
    largest = jnp.max(size, axis=0)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    graded = jnp.sign(matrix[order]) * jnp.exp(size - largest)
    frame, triangle = jnp.linalg.qr(graded)
    frame = frame * jnp.where(jnp.diagonal(triangle) < 0, -1.0, 1.0)
    return jnp.zeros_like(frame).at[order].set(frame)


def _until_they_meet(through, starts, tokens, length: int):
    """Log growth at every token, and the last frame, once no block starts anew."""
    blocks, d, _ = starts.shape
    # what so many roundings make of a frame on two ways to the same place
    near = 16 * d * length * jnp.finfo(starts.dtype).eps

    def another(carry):
        rounds, starts, passed = carry
        starts = _next_starts(starts, passed, near)
        return rounds + 1, starts, jax.vmap(through)(starts, tokens)

    def apart(carry):
        rounds, starts, passed = carry
        return (_gap(passed.end[:-1], starts[1:]) > near) & (rounds < blocks)

    carry = jnp.asarray(1), starts, jax.vmap(through)(starts, tokens)
    _, _, passed = jax.lax.while_loop(apart, another, carry)
    return passed.growth, passed.end[-1]
