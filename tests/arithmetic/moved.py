"""Operands moved within their errors, and results held to the bounds of a rule.

An execution may start anywhere within v +- e and return any result within the declared
relative error and underflow. The true distance of that result from the exact one, in
256-bit balls, must not exceed the bound, elementwise and in L2.
"""

from functools import partial
from typing import Any

import flint
import jax.numpy as jnp
import numpy as np

from lyapunov.arithmetic import Bounded, BoundedArithmetic, RoundingModel
from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL

from ..helpers import gamma
from .balls import BITS, above, arb, choices


together = partial(zip, strict=True)
SIZE = 48
MODELS = {
    # as declared for the kernels
    "kernel": KERNEL.model(),
    # far coarser, so that products of errors matter
    "coarse": RoundingModel(*(jnp.asarray(2.0**-8) for _ in KERNEL.model()))._replace(
        underflow=jnp.asarray(2.0**-126), softplus_absolute=jnp.asarray(2.0**-20)
    ),
    "none": RoundingModel.none(),
}
# The bound's own fp64 arithmetic: at most 32 operations of nonnegative numbers. What
# ends in SAFETY must hold as it stands; `compare` adds 2^-26 and more to all.
OWN = 1 + gamma(32, 2.0**-53)
# 256 bits of numbers up to 1e6, a hundred operations
ARB_ROUNDING = 2.0**-220


def interpreter(model="kernel", sites=None, **depths):
    return BoundedArithmetic(sites or {}, MODELS[model], **depths)


def inputs(rng, low=-6.0, high=6.0):
    """Values and errors of every relation: none, tiny, moderate, larger than v."""
    v = rng.uniform(low, high, SIZE)
    v[:6] = [0.0, low, high, low / 1e6, high / 1e6, 1.0]
    e = np.abs(v) * 10.0 ** rng.uniform(-8, 0.5, SIZE)
    e[::7] = 0.0
    e[5::7] = 3.0
    return v, e


def as_bounded(v, e):
    return Bounded(jnp.asarray(v), jnp.asarray(e))


def hold(bound: Bounded, distances, strict=False) -> np.ndarray:
    """Assert the bound for an execution; the largest share of it that was reached."""
    distances = np.asarray(distances)
    error = np.asarray(bound.error) * (1.0 if strict else OWN)
    over = distances > error + ARB_ROUNDING
    assert not over.any(), (
        f"element {np.argmax(over)}: {distances[over][0]!r} over {error[over][0]!r}"
    )
    norm = np.linalg.norm(distances)
    assert norm <= float(bound.norm) * OWN + SIZE * ARB_ROUNDING, (
        norm,
        float(bound.norm),
    )
    return distances / np.where(error > 0, error, np.inf)


def unary(
    rng, operation, function, v, e, relative, absolute: Any = 0.0, model="kernel"
):
    """Draw executions of a function of one variable; the best share reached."""
    bound = operation(interpreter(model), as_bounded(v, e))
    reached = np.zeros(SIZE)
    absolute = float(absolute)
    with flint.ctx.workprec(BITS):
        exact = [function(arb(x)) for x in v]
        for move in choices(rng, SIZE, 1):
            moved = [arb(x) + arb(s) * arb(d) for x, s, d in together(v, move, e)]
            results = [function(x) for x in moved]
            for sign in choices(rng, SIZE, 0):
                distances = []
                for x, y, y0, s in together(moved, results, exact, sign):
                    wrong = y * (1 + arb(s) * relative(x)) + arb(s) * absolute
                    distances.append(above(abs(wrong - y0)))
                reached = np.maximum(reached, hold(bound, distances))
    return reached


def linear(constant, argument):
    return lambda x: arb(constant) + arb(argument) * abs(x)
