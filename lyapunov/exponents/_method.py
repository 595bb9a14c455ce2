"""What a method of Lyapunov exponents is, and the system that it is given.

A method is given a system whose state is flat, goes along the tokens a chunk at a time,
and returns the growth over windows of tokens. All of them accumulate logarithms:
products of thousands of decays leave the range of fp64, their logarithms do not.

One file a method: `ClosedForm`, `OnKeys`, `ByBlocks`, `TangentGrowth`, `QR`,
`ParallelInTime`, and `Automatic`, which leaves the work to the one that the structure
allows.
"""

import abc
import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._errors import ArgumentError
from ..recurrences.base import AbstractRecurrence
from ._given import check_step


Carry = TypeVar("Carry")
"""What a method carries along the tokens: a pytree of arrays, its own type."""


class System(eqx.Module):
    """Hold a driven system with a flat state."""

    step: Callable
    """(flat state, input) -> flat state."""
    state: Float[Array, " d"]
    """Before the first token."""
    recurrence: AbstractRecurrence | None
    """The recurrence whose step this is; None for a plain function."""
    unravel: Callable = eqx.field(static=True)

    @staticmethod
    def of(step: Callable | AbstractRecurrence, state: Any) -> "System":
        """Flatten a step, or a recurrence, and the state that it starts from."""
        flat, unravel = ravel_pytree(state)
        recurrence = step if isinstance(step, AbstractRecurrence) else None
        return System(_Flat(step, unravel), flat, recurrence, unravel)

    @property
    def name(self) -> str:
        """Tell in words which step was given."""
        return repr(self.step.step if isinstance(self.step, _Flat) else self.step)


class _Flat(eqx.Module):
    """A step function on flat states."""

    step: Any
    unravel: Callable = eqx.field(static=True)

    def __call__(self, flat, inputs):
        one = self.step.step if isinstance(self.step, AbstractRecurrence) else self.step
        before = self.unravel(flat)
        after = one(before, inputs)
        check_step(before, after)
        return ravel_pytree(after)[0]


class AbstractMethod(eqx.Module, Generic[Carry]):
    """Compute the k largest exponents of a `System`, in one way of several."""

    @abc.abstractmethod
    def start(self, system: System, k: int, key: PRNGKeyArray) -> Carry:
        """Make what is carried along the tokens, as it is before the first.

        **Arguments:**

        - `k`: as many as `number` has allowed.
        - `key`: for a random start.

        **Raises:** `ArgumentError` for a structure that the method cannot use, with
        the method that can.
        """

    @abc.abstractmethod
    def advance(
        self, system: System, carry: Carry, inputs: Any, n_tokens: int, width: int
    ) -> tuple[Carry, Float[Array, "windows found"]]:
        """Go on by `n_tokens` tokens and measure the growth over windows of them.

        **Arguments:**

        - `carry`: from `start` or an earlier `advance`.
        - `inputs`: of these tokens, stacked; None for an autonomous system.
        - `width`: tokens a window, a multiple of `grain`.

        **Returns:** the carry, and the log growth of every direction that is
        followed, k or more, over each window; the last may be shorter.
        """

    @abc.abstractmethod
    def notes(self, system: System, k: int) -> tuple[str, ...]:
        """Say in words what a reader of the result must know."""

    def resolved(self, system: System, carry: Carry) -> Bool[Array, " found"] | None:
        """Find the directions whose own growth is known, not only that of several.

        None where all are, unless overridden.
        """
        del system, carry
        return None

    def multiplicity(self, system: System) -> Int[np.ndarray, " found"]:
        """Count the coordinates that share each exponent that the method can give.

        As many entries as there are exponents: all that come by default, and the most
        that can be asked for. One a coordinate unless overridden.
        """
        return np.ones(system.state.size, int)

    def number(self, system: System, k: int | None) -> int:
        """Settle how many exponents are computed: k, or all where it is None.

        **Raises:** `ArgumentError` for more than there are, or none.
        """
        shared = self.multiplicity(system)
        most, entries = len(shared), system.state.size
        if k is None:
            return most
        if 1 <= k <= most:
            return k
        hint = f"k from 1 to {most}"
        if most == entries:
            told = f"the state has {most} entries"
        elif shared.sum() == entries:
            told = f"the distinct exponents are {most} in number"
            hint += "; `SpectrumResult.repeated` has one a coordinate"
        else:
            told = f"{self} gives {most} exponent{'s' if most > 1 else ''}"
            hint = "use QR()"
        raise ArgumentError(f"k is {k} and {told}", hint=hint)

    def grain(self, system: System) -> int:
        """Find the tokens that the width of a window must be a multiple of."""
        del system
        return 1

    def chosen(self, system: System) -> "AbstractMethod":
        """Find the method that does the work: itself, but for one that chooses."""
        del system
        return self

    def name(self, system: System) -> str:
        """Tell what the exponents were computed by."""
        del system
        return str(self)


@functools.singledispatch
def by_structure(
    recurrence: AbstractRecurrence | None, own: AbstractMethod
) -> AbstractMethod | None:
    """Find the method that a declared structure allows; None where none is declared.

    The file of a method registers it for its structure, an abstract recurrence.

    **Arguments:**

    - `own`: the method that asks, for what a structure is made of.
    """
    del recurrence, own


class AbstractChoice(AbstractMethod[PyTree]):
    """Leave the work to a method that the system's structure allows."""

    @abc.abstractmethod
    def dense(self) -> AbstractMethod:
        """Make the method for a system that declares no structure."""

    def chosen(self, system):
        """Find it by the recurrence's declared structure."""
        found = by_structure(system.recurrence, self)
        return self.dense() if found is None else found

    def start(self, system, k, key):
        """Start the chosen method."""
        return self.chosen(system).start(system, k, key)

    def advance(self, system, carry, inputs, n_tokens, width):
        """Advance the chosen method."""
        return self.chosen(system).advance(system, carry, inputs, n_tokens, width)

    def resolved(self, system, carry):
        """Ask the chosen method."""
        return self.chosen(system).resolved(system, carry)

    def notes(self, system, k):
        """Say what the chosen method says."""
        return self.chosen(system).notes(system, k)

    def multiplicity(self, system):
        """Count as the chosen method does."""
        return self.chosen(system).multiplicity(system)

    def grain(self, system):
        """Find the tokens that the chosen method's windows must be a multiple of."""
        return self.chosen(system).grain(system)
