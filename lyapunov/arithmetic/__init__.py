"""One interface, several interpreters: a flow is written once and read many ways.

exact: fp64, the reference. rounded: a format at every stored site, the emulator.
bounded: (value, error), the certified bounds. perturbed: a free offset at every
stored site, for adjoints, tangents and searches. sampled: random offsets of the
roundings' sizes. symbolic: SymPy. An `Operation` adds to what all of them know.
"""

from ._bounded_values import (
    SAFETY,
    Bounded,
    BoundedState,
    RoundingModel,
    constant,
    where_known,
)
from ._form import Form
from ._interface import AbstractArithmetic, ScanKernel, Weight
from ._operation import AbstractOperation, Operation
from .bounded import AbstractBoundedArithmetic, BoundedArithmetic
from .exact import Exact
from .perturbed import Perturbed
from .rounded import Rounded
from .rules.declared import Declared
from .sampled import Sampled


__all__ = [
    "SAFETY",
    "AbstractArithmetic",
    "AbstractBoundedArithmetic",
    "AbstractOperation",
    "Bounded",
    "BoundedArithmetic",
    "BoundedState",
    "Declared",
    "Exact",
    "Form",
    "Operation",
    "Perturbed",
    "Rounded",
    "RoundingModel",
    "Sampled",
    "ScanKernel",
    "Weight",
    "constant",
    "where_known",
]
