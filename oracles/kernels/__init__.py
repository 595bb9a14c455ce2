"""Layers as mamba_ssm's kernels compute them: NumPy, fp32, one cast at each store."""

from . import mamba1, mamba1_steps, mamba2, mamba3, mamba3_ranks, served, served_delta


__all__ = [
    "mamba1",
    "mamba1_steps",
    "mamba2",
    "mamba3",
    "mamba3_ranks",
    "served",
    "served_delta",
]
