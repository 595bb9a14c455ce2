"""Lyapunov exponents: the spectrum of a recurrence and per-layer statistics."""

from ._growth import perturbation_growth
from ._layer import gather_exponents, layer_exponents
from ._methods import QR, AbstractMethod, ClosedForm, System, TangentGrowth
from ._result import SpectrumResult
from ._spectrum import lyapunov_spectrum
from ._suspicions import lost_dynamics


__all__ = [
    "QR",
    "AbstractMethod",
    "ClosedForm",
    "SpectrumResult",
    "System",
    "TangentGrowth",
    "gather_exponents",
    "layer_exponents",
    "lost_dynamics",
    "lyapunov_spectrum",
    "perturbation_growth",
]
