"""Lyapunov exponents of recurrences, and what they say of the layers of a network."""

from ._automatic import Automatic
from ._batch_means import AbstractErrorBars, BatchMeans, ErrorBars, Windows
from ._by_blocks import ByBlocks
from ._closed_form import ClosedForm
from ._cosines import SlowestCosines, slowest_cosines
from ._covariant import CovariantVectors, covariant_lyapunov_vectors
from ._decays import Decays
from ._dimension import kaplan_yorke_dimension
from ._error_bars import stderr_of_mean
from ._growth import perturbation_growth
from ._heads import head_exponents
from ._initialisation import at_initialisation
from ._layer import gather_exponents, layer_exponents, with_time_steps
from ._local import FiniteTimeExponents, finite_time_exponents
from ._method import AbstractChoice, AbstractMethod, System, by_structure
from ._on_keys import OnKeys
from ._parallel import ParallelInTime
from ._qr import QR
from ._result import SpectrumResult
from ._spectrum import Converged, lyapunov_spectrum, lyapunov_spectrum_of
from ._structure import check_structure
from ._suspicions import (
    HINT,
    StoredParameters,
    Suspicion,
    adds_nothing,
    suspects,
    suspicions_of,
)
from ._tangent import TangentGrowth
from ._transient import (
    KreissConstant,
    TransientGrowth,
    kreiss_constant,
    transient_growth,
)


__all__ = [  # noqa: RUF022
    # spectra
    "lyapunov_spectrum",
    "lyapunov_spectrum_of",
    "SpectrumResult",
    "Converged",
    "kaplan_yorke_dimension",
    # methods
    "Automatic",
    "ClosedForm",
    "ByBlocks",
    "OnKeys",
    "QR",
    "ParallelInTime",
    "TangentGrowth",
    "AbstractMethod",
    "AbstractChoice",
    "System",
    "by_structure",
    "check_structure",
    # error bars
    "SlowestCosines",
    "BatchMeans",
    "AbstractErrorBars",
    "ErrorBars",
    "Windows",
    "slowest_cosines",
    # growth at finite times
    "finite_time_exponents",
    "FiniteTimeExponents",
    "covariant_lyapunov_vectors",
    "CovariantVectors",
    "transient_growth",
    "TransientGrowth",
    "kreiss_constant",
    "KreissConstant",
    # layers of a network
    "layer_exponents",
    "head_exponents",
    "with_time_steps",
    "Decays",
    "gather_exponents",
    "stderr_of_mean",
    "perturbation_growth",
    # parameters that look lost, or untrained
    "suspicions_of",
    "StoredParameters",
    "Suspicion",
    "suspects",
    "HINT",
    "adds_nothing",
    "at_initialisation",
]
