"""Lyapunov exponents: the spectrum of a recurrence and per-layer statistics."""

from ._batch_means import AbstractErrorBars, BatchMeans, ErrorBars
from ._cosines import SlowestCosines
from ._covariant import CovariantVectors, covariant_lyapunov_vectors
from ._dimension import kaplan_yorke_dimension
from ._growth import perturbation_growth
from ._layer import gather_exponents, layer_exponents
from ._local import FiniteTimeExponents, finite_time_exponents
from ._methods import AbstractMethod, ByBlocks, ClosedForm, System, TangentGrowth
from ._parallel import ParallelInTime
from ._qr import QR
from ._result import SpectrumResult
from ._spectrum import Converged, lyapunov_spectrum, lyapunov_spectrum_of
from ._structure import check_structure
from ._suspicions import lost_dynamics
from ._transient import (
    KreissConstant,
    TransientGrowth,
    kreiss_constant,
    transient_growth,
)


__all__ = [
    "QR",
    "AbstractErrorBars",
    "AbstractMethod",
    "BatchMeans",
    "ByBlocks",
    "ClosedForm",
    "Converged",
    "CovariantVectors",
    "ErrorBars",
    "FiniteTimeExponents",
    "KreissConstant",
    "ParallelInTime",
    "SlowestCosines",
    "SpectrumResult",
    "System",
    "TangentGrowth",
    "TransientGrowth",
    "check_structure",
    "covariant_lyapunov_vectors",
    "finite_time_exponents",
    "gather_exponents",
    "kaplan_yorke_dimension",
    "kreiss_constant",
    "layer_exponents",
    "lost_dynamics",
    "lyapunov_spectrum",
    "lyapunov_spectrum_of",
    "perturbation_growth",
    "transient_growth",
]
