"""One interface, several interpreters: a flow is written once and read many ways.

exact: fp64, the reference. rounded: a format at every stored site, the emulator.
bounded: (value, error), the certified bounds. perturbed: a free offset at every
stored site, for adjoints, tangents and searches. sampled: random offsets of the
roundings' sizes. symbolic: SymPy.
"""

from ._bounded_values import Bounded, BoundedState, RoundingModel
from ._interface import AbstractArithmetic, Weight
from .bounded import BoundedArithmetic
from .exact import Exact
from .perturbed import Perturbed
from .rounded import Rounded
from .sampled import Sampled


__all__ = [
    "AbstractArithmetic",
    "Bounded",
    "BoundedArithmetic",
    "BoundedState",
    "Exact",
    "Perturbed",
    "Rounded",
    "RoundingModel",
    "Sampled",
    "Weight",
]
