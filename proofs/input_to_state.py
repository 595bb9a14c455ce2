"""A layer is input-to-state stable, with its gain; attention's cache is not."""

import numpy as np
import sympy

from ._check import has_sign, identity, induction, is_zero, limit, rises_from_zero, sign
from ._layers import UNIT, bundled_layers, random_layer, states
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("negative", "A = -alpha < 0"),
    Hypothesis("bounded_dt", "0 <= dt <= dt_max"),
    Hypothesis("bounded_drive", "|B_t u_t| <= M over the sequence"),
    Hypothesis("dt_below", "dt >= d0 > 0, for the start to be forgotten"),
)


def derive(given):
    """One channel and state; h' = exp(-dt alpha) h + dt B u."""
    alpha = sympy.Symbol("alpha", positive=True if "negative" in given else None)
    x = sympy.Symbol("x", nonnegative=True)
    yield rises_from_zero(
        "with x = dt alpha: x <= (1 + x)(1 - exp(-x))",
        (1 + x) * (1 - sympy.exp(-x)) - x,
        x,
    )
    most, spare = sympy.symbols("M rho", nonnegative=True)
    dt, room = sympy.symbols("dt r", nonnegative=True)
    largest = dt + room if "bounded_dt" in given else dt - room
    gain = (1 + largest * alpha) / alpha * most
    yield sign(
        "(1 + dt_max alpha) - (1 + dt alpha) = alpha r >= 0, dt_max = dt + r; so one "
        "token's drive dt M <= G (1 - a) with a = exp(-dt alpha) and "
        "G = (1 + dt_max alpha) M / alpha",
        sympy.expand((gain - (1 + dt * alpha) / alpha * most) * alpha),
        ">=",
    )
    drive = most - spare if "bounded_drive" in given else most + spare
    yield sign("|B u| <= M, what is left of M", sympy.expand(most - drive), ">=")
    a, beta, G, start = sympy.symbols("a beta G h_0", nonnegative=True)
    left = sympy.Symbol("s", nonnegative=True)
    claim = a * beta * start + G * (1 - a * beta)
    # |h| = beta h_0 + G (1 - beta) - s, the drive at most G (1 - a)
    reached = a * (beta * start + G * (1 - beta) - left) + G * (1 - a)
    yield induction(
        "|h_t| <= beta_t |h_0| + G (1 - beta_t), beta_t the product of the decays",
        base=is_zero((1 * start + G * (1 - 1)) - start),
        step=has_sign(sympy.expand(claim - reached), ">="),
        formulas=(sympy.Eq(claim - reached, a * left, evaluate=False),),
    )
    T = sympy.Symbol("T", integer=True, positive=True)
    floor = (
        sympy.Symbol("d_0", positive=True) if "dt_below" in given else sympy.Integer(0)
    )
    rate = sympy.Symbol("alpha", positive=True)
    yield limit(
        "the start is forgotten: beta_T <= exp(-T d_0 alpha). With the gain this is "
        "input-to-state stability (Sontag 1989), and |h| <= |h_0| + G since beta <= 1",
        sympy.exp(-T * floor * rate),
        T,
        sympy.Integer(0),
    )
    W, u = sympy.symbols("W u", nonnegative=True)
    yield identity(
        "the gain is nonlinear: B = W u, so |B u| <= |W| |u|^2; doubling the input "
        "makes four times the bound",
        (W * (2 * u) * (2 * u)) / 4,
        W * u * u,
    )
    t = sympy.Symbol("t", integer=True, positive=True)
    score = sympy.log(t)
    weight = sympy.exp(score) / (sympy.exp(score) + t)
    yield identity(
        "attention lacks this: with t tokens of score 0 behind it, a first token of "
        "score log t has weight 1/2 for every t, so no function of time alone that "
        "tends to 0 bounds what a perturbed cache entry does",
        weight,
        sympy.Rational(1, 2),
    )
    yield limit(
        "and with equal scores it fades like 1/(t + 1), slower than any e^(-ct): the "
        "ratio to it",
        (1 / (t + 1)) / sympy.exp(-t),
        t,
        sympy.oo,
    )


def reproduce(given):
    """The bound against states, from the start 0 and from a large one."""
    layers = [random_layer(seed) for seed in range(4)]
    if "negative" not in given:
        layers = [one._replace(dt=-one.dt) for one in layers]
    for name, group in (
        ("random layers", layers),
        ("bundled model, all layers", bundled_layers()),
    ):
        worst = -np.inf
        for layer in group:
            worst = max(worst, _share(layer, 0.0), _share(layer, 10.0))
        yield Number(
            f"{name}: largest |h| over the bound, less 1",
            worst - 1,
            0.0,
            "an inequality",
        )
    layer = random_layer(0)
    # a constant drive: h goes to dt M / (1 - a), the bound to (1 + x) M / alpha
    dt = np.full((4000, 1), 1e-2)
    steady = layer._replace(
        dt=dt, u=np.ones((4000, 1)), B=np.ones((4000, 1)), A=np.array([[-1.0]])
    )
    found = _share(steady, 0.0)
    yield Number(
        "constant drive, x = 0.01: 1 less the share of the bound that is reached",
        1 - found,
        0.01 / 2 + 4000 * 8 * UNIT,
        "x / (1 - exp(-x)) >= 1 + x / 2, against 1 + x",
    )
    weights = np.array([t / (t + t) for t in map(float, range(1, 2000))])
    yield Number(
        "attention: weight of the first of t + 1 tokens, off 1/2",
        float(np.abs(weights - 0.5).max()),
        4 * UNIT,
        "a sum and a division",
    )


def _share(layer, start):
    """Largest |h_t| / (beta_t |h_0| + G (1 - beta_t)), G from the sequence so far."""
    begin = np.full(layer.A.shape, start)
    h = states(layer, begin)
    alpha = -layer.A
    drive = np.abs(layer.u[:, :, None] * layer.B[:, None, :]).max(axis=0)
    gain = (1 + layer.dt.max(axis=0)[:, None] * alpha) / alpha * drive
    beta = np.exp(np.cumsum(layer.dt[:, :, None] * layer.A, axis=0))
    bound = beta * np.abs(begin) + gain * -np.expm1(np.log(np.maximum(beta, 1e-300)))
    return float((np.abs(h) / bound).max())


STATEMENT = Statement(
    "input_to_state",
    "A layer is input-to-state stable: |h| <= |h0| + (1 + dt_max |A|) / |A| sup |B u|",
    HYPOTHESES,
    "notion: Sontag 1989; this bound and its constant: ours; ISS of selective SSMs by "
    "other means: Zubic and Scaramuzza, 2505.11602",
    "max_abs_state of the report; the suspicions of lyapunov.exponents",
    derive,
    reproduce,
)
