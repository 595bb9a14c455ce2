"""The step Jacobian of Mamba-1, Mamba-2 and Mamba-3 is diagonal, and known."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy
from jax.flatten_util import ravel_pytree
from sympy import KroneckerDelta as delta

from lyapunov import symbolic
from lyapunov.recurrences import (
    Mamba1Inputs,
    Mamba1Recurrence,
    Mamba2Inputs,
    Mamba2Recurrence,
    Mamba3Carried,
    Mamba3Inputs,
    Mamba3JointRecurrence,
)

from ._check import identity
from ._layers import UNIT, bundled_layers, random_layer
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("inputs_held", "dt, B, C are functions of the input alone, held fixed"),
    Hypothesis("diagonal", "A is diagonal (a scalar a head in Mamba-2 and Mamba-3)"),
)


def derive(given):
    """Entries for symbolic indices: any number of channels, heads and states."""
    i, j, n, m, p, q, t = sympy.symbols("i j n m p q t", integer=True)
    indexed: Any = sympy.IndexedBase  # its stub knows of no indices
    dt = indexed("dt", positive=True)
    A = indexed("A", negative=True)
    h = indexed("h", real=True)

    # what is added to the library's own derivative when a hypothesis is dropped
    extra = sympy.Integer(0)
    if "inputs_held" not in given:
        slope = indexed("w", real=True)  # d dt[t, i] / d h[j, m]
        extra += A[i, n] * slope[i, j, m] * sympy.exp(dt[t, i] * A[i, n]) * h[i, n]
    if "diagonal" not in given:
        extra += indexed("M", real=True)[n, m] * delta(i, j)
    yield identity(
        "Mamba-1, read off the library's own recurrence: entry [i n, j m]",
        symbolic.step_jacobian("mamba1") + extra,
        sympy.exp(dt[t, i] * A[i, n]) * delta(i, j) * delta(n, m),
    )
    yield identity(
        "Mamba-2, likewise: entry [i p n, j q m] of heads i, j",
        symbolic.step_jacobian("mamba2") + extra,
        sympy.exp(dt[t, i] * A[i]) * delta(i, j) * delta(p, q) * delta(n, m),
    )

    yield identity(
        "Mamba-3, likewise: its trapezoidal drive has no state in it; the decay may "
        "now depend on the input through A as well (two ranks are written out; all "
        "enter the drive alone, by one sum)",
        symbolic.step_jacobian("mamba3") + extra,
        sympy.exp(dt[t, i] * A[t, i]) * delta(i, j) * delta(p, q) * delta(n, m),
    )
    angle, rate = sympy.symbols("theta omega", real=True)
    yield identity(
        "Mamba-3's rotary angle theta_t = theta_{t-1} + omega_t is carried beside the "
        "state and does not read it: its own block is 1, exponent 0, so the joint "
        "cache is not contracted; the state given k and v is",
        sympy.diff(angle + rate, angle),
        sympy.Integer(1),
        sympy.Derivative(angle + rate, angle),
    )


def reproduce(given):
    """Forward-mode derivatives of the library's steps against the formula."""
    with jax.enable_x64(True):
        layers = [random_layer(seed, seq=4) for seed in range(4)]
        yield _number("random Mamba-1 layers", max(map(_mamba1, layers)), layers)
        yield _number(
            "random Mamba-2 layers", max(_mamba2(s) for s in range(4)), layers
        )
        found = [_mamba3(seed) for seed in range(4)]
        yield _number(
            "random Mamba-3 layers, rank 2", max(one[0] for one in found), layers
        )
        yield Number(
            "their joint caches: angle's block off the identity, last keys' and "
            "values' blocks off 0, anything below the diagonal",
            max(one[1] for one in found),
            0.0,
            "a copy has derivative 1, what is not read 0",
        )
        cut = [
            layer._replace(
                dt=layer.dt[:3, :6], u=layer.u[:3, :6], B=layer.B[:3], A=layer.A[:6]
            )
            for layer in bundled_layers()
        ]
        yield _number("bundled model, 6 channels a layer", max(map(_mamba1, cut)), cut)


def _number(text, deviation, layers):
    size = max(float(np.max(-layer.A) * np.max(layer.dt)) for layer in layers)
    return Number(
        f"{text}: relative to the decay",
        deviation,
        8 * UNIT * (1 + size),
        "two exp within 2 ulp of a product rounded once each",
    )


def _mamba1(layer):
    recurrence = Mamba1Recurrence(jnp.asarray(layer.A))
    start = jnp.ones(layer.A.shape)
    worst = 0.0
    for dt, u, B in zip(layer.dt, layer.u, layer.B, strict=True):
        inputs = Mamba1Inputs(jnp.asarray(dt), jnp.asarray(u), jnp.asarray(B))
        worst = max(
            worst,
            _worst(
                jax.jacfwd(lambda h, x=inputs: recurrence.step(h, x))(start),
                np.exp(dt[:, None] * layer.A),
            ),
        )
    return worst


def _mamba2(seed):
    rng = np.random.default_rng(seed)
    A, dt = -np.exp(rng.normal(size=3)), rng.exponential(size=3)
    inputs = Mamba2Inputs(
        jnp.asarray(dt), jnp.ones((3, 2)), jnp.asarray(rng.normal(size=(1, 4)))
    )
    recurrence = Mamba2Recurrence(jnp.asarray(A))
    found = jax.jacfwd(lambda h: recurrence.step(h, inputs))(jnp.ones((3, 2, 4)))
    return _worst(found, np.broadcast_to(np.exp(dt * A)[:, None, None], (3, 2, 4)))


def _mamba3(seed):
    """The state's block against the decays, and the other blocks of the joint step."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    A, dt = -jnp.exp(normal(2)), jnp.exp(normal(2))
    inputs = Mamba3Inputs(
        dt, A, jax.nn.sigmoid(normal(2)), normal(2, 1), normal(2, 2, 4), normal(2, 2, 3)
    )
    carried = Mamba3Carried(
        normal(2, 3, 4), normal(2, 2, 4), normal(2, 2, 3), normal(2, 1)
    )
    flat, unravel = ravel_pytree(carried)
    recurrence = Mamba3JointRecurrence()
    J = np.asarray(
        jax.jacfwd(lambda x: ravel_pytree(recurrence.step(unravel(x), inputs))[0])(flat)
    )
    ends = np.cumsum([0, *(part.size for part in carried)])
    blocks = [slice(*pair) for pair in pairwise(ends)]
    state, keys, values, angle = (J[own, own] for own in blocks)
    others = max(np.abs(keys).max(), np.abs(values).max())
    others = max(others, np.abs(angle - np.eye(len(angle))).max())
    below = max(np.abs(J[own.stop :, own]).max(initial=0.0) for own in blocks)
    decay = np.broadcast_to(np.exp(np.asarray(dt * A))[:, None, None], (2, 3, 4))
    return _worst(state, decay), float(max(others, below))


def _worst(found, decay):
    """Largest entry off the diagonal, or relative difference on it."""
    found = np.asarray(found).reshape(decay.size, decay.size)
    off = np.abs(found - np.diag(np.diag(found))).max()
    return float(max(off, np.abs(np.diag(found) / np.ravel(decay) - 1).max()))


STATEMENT = Statement(
    "step_jacobian",
    "The step Jacobian is diagonal: exp(dt A), for Mamba-1, Mamba-2 and Mamba-3",
    HYPOTHESES,
    "paper (2406.00209, for Mamba-1 and Mamba-2); Mamba-3 and its angle: ours",
    "lyapunov.symbolic; lyapunov.recurrences; lyapunov.exponents.ClosedForm",
    derive,
    reproduce,
)
