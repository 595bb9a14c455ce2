"""Tolerances from counts of operations, not from what happens to pass."""

from ..helpers import gamma


def tolerance(n_operations: int, scale: float = 1.0) -> float:
    """What so many fp64 roundings of values up to `scale` can add up to."""
    return gamma(n_operations, 2.0**-53) * scale
