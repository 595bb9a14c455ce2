"""The step Jacobian of Mamba-1, Mamba-2 and Mamba-3 is diagonal, and known."""

import jax
import jax.numpy as jnp
import numpy as np
import sympy
from sympy import KroneckerDelta as delta

from lyapunov import symbolic
from lyapunov.recurrences import (
    Mamba1Inputs,
    Mamba1Recurrence,
    Mamba2Inputs,
    Mamba2Recurrence,
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
    dt = sympy.IndexedBase("dt", positive=True)
    A = sympy.IndexedBase("A", negative=True)
    h = sympy.IndexedBase("h", real=True)

    # what is added to the library's own derivative when a hypothesis is dropped
    extra = sympy.Integer(0)
    if "inputs_held" not in given:
        slope = sympy.IndexedBase("w", real=True)  # d dt[t, i] / d h[j, m]
        extra += A[i, n] * slope[i, j, m] * sympy.exp(dt[t, i] * A[i, n]) * h[i, n]
    if "diagonal" not in given:
        extra += sympy.IndexedBase("M", real=True)[n, m] * delta(i, j)
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

    # Mamba-3: trapezoidal, v and k of two tokens; r runs over the ranks of MIMO
    r = sympy.Symbol("r", integer=True)
    ranks = sympy.Symbol("R", integer=True, positive=True)
    v, k, before, key = (
        sympy.IndexedBase(s, real=True) for s in ("v", "k", "vp", "kp")
    )
    part = sympy.Symbol("lambda", positive=True)
    decay = lambda head: sympy.exp(dt[t, head] * A[t, head])
    drive = part * dt[t, i] * v[t, r, p] * k[t, r, n]
    old = (1 - part) * dt[t, i] * decay(i) * before[r, p] * key[r, n]
    after = decay(i) * h[i, p, n] + sympy.Sum(drive + old, (r, 1, ranks))
    yield identity(
        "Mamba-3, any rank R: the trapezoidal drive has no state in it; the decay may "
        "now depend on the input through A as well",
        after.diff(h[j, q, m]) + extra,
        decay(i) * delta(i, j) * delta(p, q) * delta(n, m),
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
        yield _number(
            "random Mamba-3 steps (NumPy, trapezoidal, rank 2)",
            max(_mamba3(s) for s in range(4)),
            layers,
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
    """One head, rank 2, by the definition in NumPy; the step is affine in the state,
    so its derivative is a difference of two states divided by what separates them."""
    rng = np.random.default_rng(seed)
    A, dt, part = -np.exp(rng.normal()), rng.exponential(), rng.uniform()
    v, old_v = rng.integers(-4, 5, (2, 2, 3)).astype(float)
    k, old_k = rng.integers(-4, 5, (2, 2, 2)).astype(float)

    def step(h):
        decay = np.exp(dt * A)
        kept = decay * h + (1 - part) * dt * decay * np.einsum(
            "rp,rn->pn", old_v, old_k
        )
        return kept + part * dt * np.einsum("rp,rn->pn", v, k)

    # a power of two so large that the drive is lost below its last bits
    unit = np.eye(6).reshape(6, 3, 2) * 2.0**200
    rows = np.array([step(one) - step(0 * one) for one in unit]) / 2.0**200
    found = rows.reshape(6, 6).T.reshape(3, 2, 3, 2)
    return _worst(found, np.full((3, 2), np.exp(dt * A)))


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
