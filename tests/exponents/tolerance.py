"""Tolerances from counts of operations, not from what happens to pass."""


def tolerance(n_operations: int, scale: float = 1.0) -> float:
    """The first-order error of so many fp64 roundings of values up to `scale`."""
    return n_operations * 2.0**-53 * scale
