"""True values in 256 bits, and executions drawn from a declared set."""

import math

import flint
import numpy as np


BITS = 256


def arb(x) -> flint.arb:
    return flint.arb(float(x))


def softplus(x: flint.arb) -> flint.arb:
    return x.exp().log1p()


def silu(x: flint.arb) -> flint.arb:
    return x / (1 + (-x).exp())


def above(x: flint.arb) -> float:
    """An fp64 number that is certainly not below x."""
    if x == 0:
        return 0.0
    return math.nextafter(float((x.mid() + x.rad()).str(25, radius=False)), math.inf)


def choices(rng, shape, count: int):
    """Signs and shares in [-1, 1]: both ends, alternations, and random inside."""
    yield np.ones(shape)
    yield -np.ones(shape)
    yield np.where(np.arange(np.prod(shape)).reshape(shape) % 2, 1.0, -1.0)
    for _ in range(count):
        yield rng.choice([-1.0, 0.0, 1.0], shape)
        yield rng.uniform(-1, 1, shape)
