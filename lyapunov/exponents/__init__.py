"""Lyapunov exponents: the spectrum of a recurrence and per-layer statistics."""

from ._covariant import CovariantVectors, covariant_lyapunov_vectors
from ._dimension import kaplan_yorke_dimension
from ._growth import perturbation_growth
from ._layer import gather_exponents, layer_exponents
from ._local import FiniteTimeExponents, finite_time_exponents
from ._methods import QR, AbstractMethod, ClosedForm, System, TangentGrowth
from ._result import SpectrumResult
from ._spectrum import lyapunov_spectrum
from ._suspicions import lost_dynamics
from ._transient import (
    KreissConstant,
    TransientGrowth,
    kreiss_constant,
    transient_growth,
)


__all__ = [
    "QR",
    "AbstractMethod",
    "ClosedForm",
    "CovariantVectors",
    "FiniteTimeExponents",
    "KreissConstant",
    "SpectrumResult",
    "System",
    "TangentGrowth",
    "TransientGrowth",
    "covariant_lyapunov_vectors",
    "finite_time_exponents",
    "gather_exponents",
    "kaplan_yorke_dimension",
    "kreiss_constant",
    "layer_exponents",
    "lost_dynamics",
    "lyapunov_spectrum",
    "perturbation_growth",
    "transient_growth",
]
