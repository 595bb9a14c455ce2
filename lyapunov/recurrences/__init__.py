"""State updates, one file a family, each written once over the arithmetic."""

from . import _fused_scan as fused_scan
from .base import (
    AbstractDiagonalRecurrence,
    AbstractKeyRecurrence,
    AbstractRecurrence,
    AbstractScalarRecurrence,
    AbstractTriangularRecurrence,
    DecayAndDrive,
    DiagonalRecurrence,
    GivenJacobians,
)
from .cells import (
    GRU,
    LSTM,
    MLSTM,
    RWKV4,
    RWKV6,
    SLSTM,
    CellNormaliserHidden,
    HiddenAndCell,
    LinearAttention,
)
from .delta import DeltaInputs, DeltaRecurrence
from .mamba1 import (
    Mamba1Inputs,
    Mamba1JointRecurrence,
    Mamba1Recurrence,
    StateAndWindow,
)
from .mamba2 import Mamba2Inputs, Mamba2Recurrence
from .mamba3 import Mamba3Carried, Mamba3Inputs, Mamba3JointRecurrence, Mamba3Recurrence


__all__ = [
    "GRU",
    "LSTM",
    "MLSTM",
    "RWKV4",
    "RWKV6",
    "SLSTM",
    "AbstractDiagonalRecurrence",
    "AbstractKeyRecurrence",
    "AbstractRecurrence",
    "AbstractScalarRecurrence",
    "AbstractTriangularRecurrence",
    "CellNormaliserHidden",
    "DecayAndDrive",
    "DeltaInputs",
    "DeltaRecurrence",
    "DiagonalRecurrence",
    "GivenJacobians",
    "HiddenAndCell",
    "LinearAttention",
    "Mamba1Inputs",
    "Mamba1JointRecurrence",
    "Mamba1Recurrence",
    "Mamba2Inputs",
    "Mamba2Recurrence",
    "Mamba3Carried",
    "Mamba3Inputs",
    "Mamba3JointRecurrence",
    "Mamba3Recurrence",
    "StateAndWindow",
    "fused_scan",
]
