"""The exponents of diagonal blocks, for block-triangular recurrences."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._errors import ArgumentError
from ..recurrences.base import AbstractTriangularRecurrence
from ._automatic import Automatic
from ._method import AbstractMethod, System, by_structure


BlocksCarry: TypeAlias = tuple[Float[Array, " d"], list[Any]]
"""The whole state, and what the method of each block carries."""


class ByBlocks(AbstractMethod[BlocksCarry]):
    """Unite the exponents of the diagonal blocks of a block-triangular recurrence.

    The eigenvalues of a block-triangular product are those of its diagonal blocks at
    every length. So are the growth rates that QR from the identity finds where parts
    stand before those that they depend on. In another order, from another start, or
    as singular values, rates agree in the limit, where the couplings are bounded and
    the blocks' exponents exist as limits.

    **Arguments:**

    - `method`: for all blocks. By default, for each what its own structure allows.
    """

    method: AbstractMethod = Automatic()

    def systems(self, system: System) -> list[System]:
        """Take each diagonal block as a system of its own."""
        recurrence = _triangular(system)
        parts = recurrence.parts(system.unravel(system.state))
        return [
            System.of(block, part)
            for block, part in zip(recurrence.blocks, parts, strict=True)
        ]

    def start(self, system, k, key):
        """Start the method in every block, with all the exponents that it gives."""
        del k
        blocks = self.systems(system)
        keys = jax.random.split(key, len(blocks))
        starts = [
            self.method.start(block, self.method.number(block, None), key)
            for block, key in zip(blocks, keys, strict=True)
        ]
        return system.state, starts

    def advance(self, system, carry, inputs, n_tokens, width):
        """Run the trajectory of the whole, then each block along it."""
        state, carries = carry
        recurrence = _triangular(system)

        def token(state, u):
            given = recurrence.block_inputs(system.unravel(state), u)
            return system.step(state, u), given

        state, given = jax.lax.scan(token, state, inputs, n_tokens)
        found = [
            self.method.advance(block, carry, own, n_tokens, width)
            for block, carry, own in zip(
                self.systems(system), carries, given, strict=True
            )
        ]
        growth = jnp.concatenate([one for _, one in found], axis=1)
        return (state, [carry for carry, _ in found]), growth

    def resolved(self, system, carry):
        """Ask the blocks' methods, one after the other."""
        found = []
        for block, own in zip(self.systems(system), carry[1], strict=True):
            every = jnp.ones(self.method.number(block, None), bool)
            known = self.method.resolved(block, own)
            found.append(every if known is None else known)
        return jnp.concatenate(found)

    def notes(self, system, k):
        """Say once what the blocks' methods say."""
        found = [
            self.method.notes(block, self.method.number(block, None))
            for block in self.systems(system)
        ]
        return tuple(dict.fromkeys(note for notes in found for note in notes))

    def multiplicity(self, system):
        """Count as in the blocks, one after the other."""
        each = [self.method.multiplicity(block) for block in self.systems(system)]
        return np.concatenate(each)

    def grain(self, system):
        """Find the tokens that windows of every block must be a multiple of."""
        return int(np.lcm.reduce([self.method.grain(b) for b in self.systems(system)]))


@by_structure.register
def _(recurrence: AbstractTriangularRecurrence, own: AbstractMethod) -> ByBlocks:
    del recurrence
    return ByBlocks(own)


def _triangular(system: System) -> AbstractTriangularRecurrence:
    """The recurrence, if it is block triangular."""
    if not isinstance(system.recurrence, AbstractTriangularRecurrence):
        raise ArgumentError(
            f"ByBlocks needs a block-triangular recurrence and {system.name} is none",
            hint="use QR()",
        )
    return system.recurrence
