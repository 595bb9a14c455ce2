"""The maximal Lyapunov exponent is at most 0: closed form, and a Lyapunov function."""

import jax
import jax.numpy as jnp
import numpy as np
import sympy

import lyapunov
from lyapunov.recurrences import Mamba1Inputs, Mamba1Recurrence

from ._check import (
    identity,
    induction,
    is_zero,
    lemma,
    limit,
    rises_from_zero,
    sign,
)
from ._layers import UNIT, bundled_layers, random_layer, states
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("negative", "A = -exp(A_log) < 0"),
    Hypothesis("positive_dt", "dt >= 0, as softplus gives"),
    Hypothesis("bounded_below", "dt >= d0 > 0 (for the strict sign alone)"),
    Hypothesis("finite", "finitely many channels and states"),
)


def derive(given):
    """For any number T of tokens and any channel; indices are left out of one entry."""
    T = sympy.Symbol("T", integer=True, positive=True)
    A = sympy.Symbol("A", negative=True if "negative" in given else None, real=True)
    positive = True if "positive_dt" in given else None
    S, d, mean = (
        sympy.Symbol(name, nonnegative=positive, real=True)
        for name in ("S_T", "d", "m_T")
    )
    product = lambda total: sympy.exp(total * A)
    yield induction(
        "the product of T step Jacobians has the entries exp(A S_T), S_T the sum of "
        "dt over the tokens: S_{T+1} = S_T + d",
        base=is_zero(product(0) - 1),
        step=is_zero(sympy.exp(d * A) * product(S) - product(S + d)),
        formulas=(
            sympy.Eq(sympy.exp(d * A) * product(S), product(S + d), evaluate=False),
        ),
    )
    yield lemma(
        "the spectral norm of a diagonal matrix is its largest entry in magnitude",
        "Horn and Johnson, Matrix Analysis, 2nd ed., section 5.6",
    )
    yield identity(
        "so each entry contributes log(exp(A S_T)) / T = A m_T, with m_T = S_T / T",
        sympy.log(product(T * mean)) / T,
        A * mean,
        sympy.log(sympy.exp(A * T * mean), evaluate=False) / T,
    )
    yield sign("no entry grows, at any length", A * mean, "<=")
    log = sympy.Symbol("A_log", real=True)
    yield identity(
        "in terms of the parameter: the exponent at T is minus the least of "
        "exp(A_log) m_T over channels and states",
        -sympy.exp(log) * mean,
        (A * mean).subs(A, -sympy.exp(log)),
    )
    if "bounded_below" in given:
        least = sympy.Symbol("d_0", positive=True)
    else:
        least = sympy.Symbol("d_0", nonnegative=True)
    above = sympy.Symbol("s", nonnegative=True)
    yield sign(
        "strictly negative when dt >= d_0: m_T = d_0 + s with s >= 0",
        -sympy.exp(log) * (least + above),
        "<",
    )
    yield lemma(
        "the limit superior of a maximum of finitely many sequences is the maximum of "
        "theirs, and limsup(-c m_T) = -c liminf m_T for c > 0: the exponent is 0 "
        "exactly when some channel's mean dt has limit inferior 0",
        "Rudin, Principles of Mathematical Analysis, chapter 3",
        applies="finite" in given and "negative" in given,
    )
    yield limit(
        "it does happen: dt_t = 1/t has mean dt H_T / T, so exponent 0, though every "
        "step contracts",
        A * sympy.harmonic(T) / T,
        T,
        sympy.Integer(0),
    )
    x = sympy.Symbol("x", nonnegative=True)
    rate = (
        x
        if {"negative", "positive_dt"} - given.broken
        == {
            "negative",
            "positive_dt",
        }
        else -x
    )
    yield rises_from_zero(
        "Lyapunov function V(h) = sum q_i h_i^2, q_i > 0: with x = -dt A >= 0 every "
        "term of V(h) - V(J h) = sum q_i h_i^2 (1 - exp(-2 x)) is at least 0",
        1 - sympy.exp(-2 * rate),
        x,
    )


def reproduce(given):
    """Closed form against QR of the library; V along differences of trajectories."""
    with jax.enable_x64(True):
        apart, negative = 0.0, -np.inf
        for seed in range(3):
            layer = random_layer(seed, seq=40, d_inner=4, d_state=2)
            if "negative" not in given:
                layer = layer._replace(dt=-layer.dt)
            apart = max(apart, _against_qr(layer))
            negative = max(negative, _closed(layer).max())
        yield Number(
            "random layers: closed form against lyapunov_spectrum with QR, relative",
            apart,
            16 * 40 * UNIT,
            "16 roundings a token, 40 tokens",
        )
        yield Number("random layers: largest exponent", float(negative), 0.0, "a sign")
    layers = bundled_layers()
    yield Number(
        "bundled model: largest exponent of any layer",
        float(max(_closed(layer).max() for layer in layers)),
        0.0,
        "a sign",
    )
    apart, growth = 0.0, -np.inf
    for layer in layers:
        product = np.ones(layer.A.shape)
        # 8 tokens: no product underflows, each is a chain of roundings
        for dt in layer.dt[:8]:
            product = product * np.exp(dt[:, None] * layer.A)
        wanted = layer.dt[:8].mean(axis=0)[:, None] * layer.A
        seen = product > 1e-280
        apart = max(apart, np.abs(np.log(product) / 8 - wanted)[seen].max())
        one = states(layer._replace(dt=layer.dt[:8], u=layer.u[:8], B=layer.B[:8]))
        start = np.ones(layer.A.shape)
        other = states(
            layer._replace(dt=layer.dt[:8], u=layer.u[:8], B=layer.B[:8]), start
        )
        V = np.concatenate([[start.size], ((one - other) ** 2).sum(axis=(1, 2))])
        growth = max(growth, float((V[1:] / V[:-1] - 1).max()))
    yield Number(
        "bundled model: log of the products against the closed form, nats a token",
        float(apart),
        8 * UNIT * 645 * 2,
        "exponents sum to at most 645 here, 8 tokens, 2 roundings each",
    )
    yield Number(
        "bundled model: largest growth of V from token to token",
        growth,
        0.0,
        "a sign",
    )


def _closed(layer):
    return layer.dt.mean(axis=0)[:, None] * layer.A


def _against_qr(layer):
    recurrence = Mamba1Recurrence(jnp.asarray(layer.A))
    inputs = Mamba1Inputs(*map(jnp.asarray, (layer.dt, layer.u, layer.B)))
    found = lyapunov.lyapunov_spectrum(
        recurrence, jnp.zeros(layer.A.shape), inputs, method=lyapunov.QR()
    )
    wanted = np.sort(_closed(layer).ravel())[::-1]
    return float(np.abs(np.sort(found.exponents)[::-1] / wanted - 1).max())


STATEMENT = Statement(
    "maximal_exponent",
    "The maximal Lyapunov exponent is -min exp(A_log) mean dt, at most 0",
    HYPOTHESES,
    "at most 0: paper (2406.00209); closed form, strictness, the exact condition for 0 "
    "and the quadratic Lyapunov function: ours",
    "lyapunov.exponents.layer_exponents and ClosedForm; lyapunov.symbolic.exponent",
    derive,
    reproduce,
)
