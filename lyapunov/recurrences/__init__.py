"""State updates, one file a family, each written once over the arithmetic."""

from .base import (
    AbstractDiagonalRecurrence,
    AbstractRecurrence,
    DecayAndDrive,
    DiagonalRecurrence,
)
from .mamba1 import (
    Mamba1Inputs,
    Mamba1JointRecurrence,
    Mamba1Recurrence,
    StateAndWindow,
)


__all__ = [
    "AbstractDiagonalRecurrence",
    "AbstractRecurrence",
    "DecayAndDrive",
    "DiagonalRecurrence",
    "Mamba1Inputs",
    "Mamba1JointRecurrence",
    "Mamba1Recurrence",
    "StateAndWindow",
]
