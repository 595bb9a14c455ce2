"""The exponents of recurrences whose step acts on the keys of each head alone."""

from collections.abc import Callable
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
1e-7."""


Frames: TypeAlias = Float[Array, "heads key_dim key_dim"]
"""Their vectors are rows."""


class OnKeys(AbstractMethod[Frames]):
    """Carry a frame of each head's keys, orthonormalise again after some tokens.

    What `QR()` does, on key_dim instead of key_dim x value_dim coordinates of a head,
    whose rows all have the same exponents. The sum of a head's exponents is that of
    the log determinants, exactly: the least growth of a block is what the others leave
    of it, so that an exponent beyond what rounding shows is finite, and -inf where a
    step is exactly singular.

    **Arguments:**

    - `block`: tokens between orthonormalisations. Where directions part by
      20 nats and more within a block, it is gone through again in shorter ones.
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
        return jnp.broadcast_to(eye, (heads, key_dim, key_dim))

    def advance(self, system, carry, inputs, n_tokens, width):
        """Go along blocks of tokens, all heads at once."""
        one = along_keys(_of_keys(system))
        return in_blocks(one, carry, inputs, n_tokens, self.block, width)

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
    """Make `one(frames, inputs, length) -> frames, log growth` of a block of tokens.

    Growth is (heads x key_dim), head after head.
    """

    def push(carried, u):
        vectors, scale, volume = carried
        vectors, log_scale = recurrence.on_keys(vectors, u)
        volume = volume + recurrence.log_determinant(u)
        return (vectors, scale + log_scale, volume), None

    def one(frames: Frames, inputs, length: int):
        zeros = jnp.zeros(len(frames), frames.dtype)
        start = frames, zeros, zeros
        (vectors, scale, volume), _ = jax.lax.scan(push, start, inputs, length)
        columns = vectors.swapaxes(1, 2)
        after, growth = jax.vmap(orthonormalise, (0, None))(columns, jnp.asarray(True))
        after = after.swapaxes(1, 2)
        growth = growth + scale[:, None]
        found = after, _with_volume(growth, volume).ravel()
        if length == 1:
            return found

        def again():
            part = max(1, length // SHORTER)
            after, growth = in_blocks(one, frames, inputs, length, part, length)
            return after, growth.sum(axis=0)

        apart = jnp.ptp(growth, axis=1)
        return jax.lax.cond(jnp.any(apart > FAR), again, lambda: found)

    return one


def _with_volume(growth, volume):
    """The growth, the least of each head being what the others leave of its volume."""
    least = jnp.arange(growth.shape[1]) == jnp.argmin(growth, axis=1)[:, None]
    rest = jnp.sum(jnp.where(least, 0, growth), axis=1)
    known = jnp.isfinite(rest)
    left = jnp.where(known, volume - jnp.where(known, rest, 0), growth.min(axis=1))
    return jnp.where(least, left[:, None], growth)


def _of_keys(system: System) -> AbstractKeyRecurrence:
    """The recurrence, if its step acts on keys."""
    if not isinstance(system.recurrence, AbstractKeyRecurrence):
        raise ArgumentError(
            f"OnKeys needs a recurrence that acts on keys and {system.name} is none",
            hint="use QR()",
        )
    return system.recurrence
