"""Lyapunov exponents: the spectrum of a recurrence and per-layer statistics."""

from ._layer import gather_exponents, layer_exponents
from ._suspicions import lost_dynamics


__all__ = ["gather_exponents", "layer_exponents", "lost_dynamics"]
