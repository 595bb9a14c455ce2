"""Whole language models in NumPy and fp64, token by token, from published code."""

from . import mamba1, mamba3, mamba_ssm, openelm


__all__ = ["mamba1", "mamba3", "mamba_ssm", "openelm"]
