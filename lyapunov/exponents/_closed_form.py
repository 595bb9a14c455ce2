"""Means of log decays, for diagonal recurrences."""

import jax
import numpy as np

from .._errors import ArgumentError
from ..recurrences.base import AbstractDiagonalRecurrence, AbstractScalarRecurrence
from ._method import AbstractMethod, System, by_structure
from ._windows import windows_of


class ClosedForm(AbstractMethod[None]):
    r"""Take the means of the log decays: exact, for diagonal recurrences.

    $\lambda_i = \frac1T \sum_t \log a_{t,i}$, the product of diagonal Jacobians
    being diagonal. No trajectory is computed. Where all coordinates of a head share a
    decay, there is one exponent a head, with its multiplicity.
    """

    def start(self, system, k, key):
        """Refuse a recurrence that is not diagonal; nothing is carried."""
        del k, key
        _diagonal(system)

    def advance(self, system, carry, inputs, n_tokens, width):
        """Sum log decays over windows of tokens."""
        recurrence = _diagonal(system)
        scalar = isinstance(recurrence, AbstractScalarRecurrence)
        one = recurrence.head_log_decay if scalar else recurrence.log_decay
        log_decay = jax.vmap(one)(inputs).reshape(n_tokens, -1)
        return carry, windows_of(log_decay, width)

    def notes(self, system, k):
        """Say nothing: exact."""
        return ()

    def multiplicity(self, system):
        """Count the coordinates of a head, where a head shares a decay."""
        if not isinstance(system.recurrence, AbstractScalarRecurrence):
            return super().multiplicity(system)
        # the state of a head-wise recurrence is one array, its first axis the heads
        heads = jax.tree.leaves(system.unravel(system.state))[0].shape[0]
        return np.full(heads, system.state.size // heads)


@by_structure.register
def _(recurrence: AbstractDiagonalRecurrence, own: AbstractMethod) -> ClosedForm:
    del recurrence, own
    return ClosedForm()


def _diagonal(system: System) -> AbstractDiagonalRecurrence:
    """The recurrence, if it is diagonal."""
    if not isinstance(system.recurrence, AbstractDiagonalRecurrence):
        raise ArgumentError(
            f"ClosedForm needs a diagonal recurrence and {system.name} is none",
            hint="use QR()",
        )
    return system.recurrence
