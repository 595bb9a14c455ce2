"""The exponents of recurrences whose step acts on the keys of each head alone."""

from collections.abc import Callable
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._arguments import whole
from .._errors import ArgumentError
from ..recurrences.base import AbstractKeyRecurrence
from ._method import AbstractMethod, System, by_structure
from ._qr import orthonormalise
from ._windows import in_blocks


SHORTER = 4
"""Into how many parts a block is cut in which directions part too far."""
FAR = 20.0
"""In nats, over a block: to how much rounding knows the slower one then, e^20 2^-53 or
1e-7. Where directions part by more in one step, its scales are taken apart from the
rest of it."""


KNOWN = 1e-3
"""To how much the growth of a direction over one step has to be known, in nats."""


Frames: TypeAlias = Float[Array, "heads key_dim key_dim"]
"""Their vectors are rows."""


KeysCarry: TypeAlias = tuple[Frames, Bool[Array, "heads key_dim"]]
"""And which directions' growth was known at every token."""


class OnKeys(AbstractMethod[KeysCarry]):
    """Carry a frame of each head's keys, orthonormalise again after some tokens.

    What `QR()` does, on key_dim instead of key_dim x value_dim coordinates of a head,
    whose rows all have the same exponents. The sum of a head's exponents is that of
    the log determinants, exactly: the least growth of a block is what the others leave
    of it. An exponent is -inf only where a step is singular. Directions whose growth
    at a token rounding hides share what the others leave of the determinant: only the
    sum of their exponents is known, as `notes` says then.

    **Arguments:**

    - `block`: tokens between orthonormalisations. Where directions part by
      20 nats and more within a block, it is gone through again in shorter ones; within
      a token, decays and write are gone through one after the other.
    """

    block: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        whole(self.block, "block", 1)

    def start(self, system, k, key):
        """Make every head's frame the identity; all of its exponents are followed."""
        del k, key
        _of_keys(system)
        heads, _, key_dim = system.unravel(system.state).shape
        eye = jnp.eye(key_dim, dtype=system.state.dtype)
        frames = jnp.broadcast_to(eye, (heads, key_dim, key_dim))
        return frames, jnp.ones((heads, key_dim), bool)

    def advance(self, system, carry, inputs, n_tokens, width):
        """Go along blocks of tokens, all heads at once."""
        one = along_keys(_of_keys(system))
        return in_blocks(one, carry, inputs, n_tokens, self.block, width)

    def resolved(self, system, carry):
        """Find the directions whose growth was known at every token."""
        del system
        return carry[1].ravel()

    def notes(self, system, k):
        """Say what QR from the identity leaves."""
        return (
            "frames start at the identity: a bias of order 1/T until they have turned "
            "towards the leading directions; the sum of a head's exponents has none",
        )

    def multiplicity(self, system):
        """Count the rows of a head's state, for each of its keys' directions."""
        heads, value_dim, key_dim = system.unravel(system.state).shape
        return np.full(heads * key_dim, value_dim)

    def grain(self, system):
        """Find the tokens between orthonormalisations, where alone growth is known."""
        return self.block


@by_structure.register
def _(recurrence: AbstractKeyRecurrence, own: AbstractMethod) -> OnKeys:
    del recurrence, own
    return OnKeys()


def along_keys(recurrence: AbstractKeyRecurrence) -> Callable:
    """Make `one(carry, inputs, length) -> carry, log growth` of a block of tokens.

    Growth is (heads x key_dim), head after head.
    """

    def push(carried, u):
        vectors, scale, volume = carried
        vectors, log_scale = recurrence.on_keys(vectors, u)
        volume = volume + recurrence.log_determinant(u)
        return (vectors, scale + log_scale, volume), None

    def one(carry: KeysCarry, inputs, length: int):
        frames, resolved = carry
        zeros = jnp.zeros(len(frames), frames.dtype)
        start = frames, zeros, zeros
        (vectors, scale, volume), _ = jax.lax.scan(push, start, inputs, length)
        after, growth = _orthonormal(vectors)
        growth = growth + scale[:, None]
        every = jnp.ones_like(resolved)
        found = (after, resolved), _with_volume(growth, volume, every).ravel()

        def again():
            if length == 1:
                token = jax.tree.map(lambda x: x[0], inputs)
                after, growth, known = _scales_first(recurrence, frames, token)
                growth = _with_volume(growth, volume, known)
                return (after, resolved & known), growth.ravel()
            part = max(1, length // SHORTER)
            after, growth = in_blocks(one, carry, inputs, length, part, length)
            return after, growth.sum(axis=0)

        apart = jnp.ptp(growth, axis=1)
        return jax.lax.cond(jnp.any(apart > FAR), again, lambda: found)

    return one


def _orthonormal(vectors: Float[Array, "heads key_dim key_dim"]):
    """Frames of vectors, as rows, and the logs of their growth."""
    columns = vectors.swapaxes(1, 2)
    after, growth = jax.vmap(orthonormalise, (0, None))(columns, jnp.asarray(True))
    return after.swapaxes(1, 2), growth


def _scales_first(recurrence: AbstractKeyRecurrence, frames: Frames, u):
    """One token in two steps, its scales of the keys and then the rest of it.

    The rest shrinks one direction at most by much, which its determinant tells.

    **Returns:** frames, growth, and where growth is known.
    """
    log_scales, rest = recurrence.scales_apart(u)
    columns, growth, known = jax.vmap(_scaled)(frames.swapaxes(1, 2), log_scales)
    vectors, log_scale = recurrence.on_keys(columns.swapaxes(1, 2), rest)
    after, more = _orthonormal(vectors)
    hidden = jnp.isneginf(more)
    alone = hidden & (hidden.sum(axis=1, keepdims=True) == 1)
    more = jnp.where(hidden, jnp.log(jnp.finfo(more.dtype).eps), more)
    return after, growth + more + log_scale[:, None], known & (alone | ~hidden)


def _scaled(
    frame: Float[Array, "key_dim key_dim"], log_scales: Float[Array, " key_dim"]
):
    """Orthonormalise a frame whose rows are scaled by any amounts; the logs of growth.

    Rounding of a QR is relative to whole columns, so that rows far below the largest
    are lost. Elimination keeps rows apart: with scales D and rows in the order of the
    pivots D X = (D L / D) D U, where D L / D has entries of at most 1 and is not
    graded. Its triangle T gives the growth T_jj D_j U_jj. What rounding of the frame
    makes of rows and pivots is followed: with one that is lost, so are those behind.
    """
    n, eps = len(log_scales), jnp.finfo(frame.dtype).eps
    least = jnp.finfo(frame.dtype).min

    def eliminate(j, carry):
        x, errors, lower, pivots, free = carry
        column = x[:, j]
        sizes = log_scales + jnp.log(jnp.abs(column))
        pivot = jnp.argmax(jnp.where(free, jnp.maximum(sizes, least), -jnp.inf))
        free = free.at[pivot].set(False)
        size, row = column[pivot], x[pivot]
        ratio = jnp.where(free, column / jnp.where(size == 0, 1, size), 0)
        at_pivot = jnp.where(jnp.isneginf(log_scales[pivot]), 0, log_scales[pivot])
        entry = jnp.exp(jnp.log(jnp.abs(ratio)) + log_scales - at_pivot)
        entry = (jnp.sign(ratio) * entry).at[pivot].set(1)
        lower, pivots = lower.at[:, j].set(entry), pivots.at[j].set(pivot)
        behind = jnp.where(jnp.arange(n) > j, jnp.abs(row), 0)
        more = jnp.abs(ratio) * (errors[pivot] + eps * jnp.max(behind))
        return x - ratio[:, None] * row, errors + more, lower, pivots, free

    errors = jnp.full(n, n * eps)
    start = (frame, errors, jnp.zeros_like(frame), jnp.zeros(n, int), errors > 0)
    x, errors, lower, pivots, _ = jax.lax.fori_loop(0, n, eliminate, start)
    after, triangle = jnp.linalg.qr(lower)
    upper = jnp.abs(x[pivots, jnp.arange(n)])
    known = jnp.cumprod(errors[pivots] <= KNOWN * upper).astype(bool)
    upper = jnp.maximum(upper, jnp.finfo(frame.dtype).tiny)
    growth = jnp.log(jnp.abs(jnp.diagonal(triangle)) * upper)
    return after, growth + log_scales[pivots], known


def _with_volume(growth, volume, known):
    """The growth, of each head those that are not known, or else the least, being what
    the others leave of its volume."""
    least = jnp.arange(growth.shape[1]) == jnp.argmin(growth, axis=1)[:, None]
    lost = jnp.where(jnp.all(known, axis=1, keepdims=True), least, ~known)
    rest = jnp.sum(jnp.where(lost, 0, growth), axis=1)
    finite = jnp.isfinite(rest) & jnp.isfinite(volume)
    left = jnp.where(finite, volume - jnp.where(finite, rest, 0), 0)
    share = (left / lost.sum(axis=1))[:, None]
    zero = least & jnp.isneginf(volume)[:, None]
    growth = jnp.where(lost & finite[:, None], share, growth)
    return jnp.where(zero, -jnp.inf, growth)


def _of_keys(system: System) -> AbstractKeyRecurrence:
    """The recurrence, if its step acts on keys."""
    if not isinstance(system.recurrence, AbstractKeyRecurrence):
        raise ArgumentError(
            f"OnKeys needs a recurrence that acts on keys and {system.name} is none",
            hint="use QR()",
        )
    return system.recurrence
