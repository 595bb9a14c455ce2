"""What the library is held to: reference implementations that share nothing with it.

`networks` are whole language models in fp64, a loop over tokens; `kernels` are layers
in fp32 with one cast at each stored tensor, and `mutants` are kernels broken on
purpose; `checkpoints` are small models written to folders; `scan_orders` are ways to
compute a recurrence, and `tolerances` how far two right computations may lie apart.
Tests and studies import it; it imports nothing of theirs and nothing of `lyapunov`.
"""

from . import checkpoints, kernels, mutants, networks, scan_orders, tolerances


__all__ = [
    "checkpoints",
    "kernels",
    "mutants",
    "networks",
    "scan_orders",
    "tolerances",
]
