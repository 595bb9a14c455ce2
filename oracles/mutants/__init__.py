"""Kernels broken on purpose, each in one way, by the stored tensor where it shows."""

from . import faults, mamba1, mamba2, mamba3


__all__ = ["faults", "mamba1", "mamba2", "mamba3"]
