"""Kernels broken on purpose, each in one way, by the stored tensor where it shows."""

__all__ = ["faults", "mamba1", "mamba2", "mamba3"]
