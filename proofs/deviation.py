"""How far a perturbed state moves: once, and at every token."""

from fractions import Fraction

import numpy as np
import sympy

from lyapunov.bounds import perturbation

from ._check import (
    counterexample,
    has_sign,
    identity,
    induction,
    is_zero,
    limit,
    sign,
)
from ._layers import UNIT, bundled_layers, random_layer
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("inputs_held", "both trajectories read the same dt, B, C and inputs"),
    Hypothesis("nonnegative", "decays are at least 0"),
    Hypothesis("below_one", "for 1 / (1 - sup a): every decay is at most q < 1"),
)


def derive(given):
    """One coordinate; the maximum over coordinates follows entry by entry."""
    nonnegative = True if "nonnegative" in given else None
    a = sympy.Symbol("a", nonnegative=nonnegative, real=True)
    h, b, delta, e, N, zeta = sympy.symbols("h b delta e N zeta", real=True)
    other = sympy.Integer(0) if "inputs_held" in given else sympy.Symbol("d_b")
    yield identity(
        "the difference of two trajectories of h' = a h + b, e injected",
        (a * (h + delta) + b + other + e) - (a * h + b),
        a * delta + e,
    )
    product = sympy.Symbol("P_N", positive=True)
    start = sympy.Symbol("epsilon", positive=True)
    yield induction(
        "once, e = 0 afterwards: |delta_N| = epsilon P_N, P_N the product of N decays",
        base=is_zero(start * 1 - start),
        step=is_zero(a * (start * product) - start * (a * product)),
    )
    total = sympy.Symbol("L_N", real=True)
    yield identity(
        "the paper's form: P_N = exp(L_N), zeta = L_N / N the largest mean log decay "
        "over these tokens, so |delta_N| <= epsilon e^(N zeta), with constant 1",
        start * sympy.exp(N * zeta).subs(zeta, total / N),
        start * sympy.exp(total),
        start * sympy.exp(sympy.UnevaluatedExpr(N) * (total / N)),
    )
    scan = sympy.Symbol("s", positive=True)
    room, spare = sympy.symbols("r rho", nonnegative=True)
    # |delta| = eps s - r, |e| = eps - rho
    step = start * (a * scan + 1) - (a * (start * scan - room) + (start - spare))
    yield induction(
        "at every token, |e_t| <= epsilon: |delta_t| <= epsilon s_t with "
        "s_t = a_t s_{t-1} + 1, s_0 = 1 (r and rho are what is left of the bounds)",
        base=is_zero(start * 1 - start),
        step=has_sign(sympy.expand(step), ">="),
        formulas=(sympy.Ge(sympy.expand(step), 0, evaluate=False),),
    )
    yield identity(
        "attained: injections of one sign and size epsilon",
        a * (start * scan) + start,
        start * (a * scan + 1),
    )
    gap = sympy.Symbol("g", positive=True if "below_one" in given else None, real=True)
    # q = 1 - g, a = q - p
    below = sympy.Symbol("p", nonnegative=True)
    claim = 1 / gap - (a * (1 / gap - room) + 1)
    yield identity(
        "uniformly: with q = 1 - g = a + p and s = 1/g - r the next s stays below 1/g "
        "by p/g + a r",
        claim.subs(a, 1 - gap - below),
        below / gap + (1 - gap - below) * room,
    )
    yield sign("so s_t <= 1 / (1 - q) for all t", below / gap + a * room, ">=")
    yield sign("and it starts below: 1/g - 1 = q/g with q >= 0", a / gap, ">=")

    n = sympy.Symbol("N", integer=True, positive=True)
    yield limit(
        "not the first read as the second: with a = 1 the exponent is 0 and "
        "epsilon e^(N zeta) stays epsilon, while s_N = N + 1",
        (n + 1) / sympy.exp(0 * n),
        n,
        sympy.oo,
    )
    ratio = sum(Fraction(9, 10) ** k for k in range(11)) / Fraction(9, 10) ** 10
    yield counterexample(
        "nor with a strictly negative exponent: a = 9/10, N = 10",
        ratio > 19,
        f"persistent / one-off = {float(ratio):.4g}",
    )
    m = sympy.Symbol("m", integer=True, positive=True)
    yield identity(
        "not epsilon / (1 - e^lambda) under varying decay: m tokens with a = 1, then "
        "one with 2^-(m+1), repeated, have e^lambda = 1/2 and so claim 2 epsilon",
        (1**m * sympy.Integer(2) ** -(m + 1)) ** (1 / (m + 1)),
        sympy.Rational(1, 2),
    )
    yield induction(
        "but s grows by 1 at each of those m tokens, to at least m + 1, beyond 2 from "
        "m = 2 on and without limit",
        base=sympy.Integer(1) >= 1,
        step=is_zero(1 * (m + 1) + 1 - (m + 2)),
    )


def reproduce(given):
    """The library's bounds against exact rational trajectories."""
    violation, slack = -np.inf, 0.0
    for seed in range(3):
        layer = random_layer(seed, seq=24, d_inner=2, d_state=2)
        log_decay = layer.dt[:, :, None] * layer.A
        if "nonnegative" not in given or "below_one" not in given:
            log_decay = -log_decay
        for found, bound in _pairs(log_decay):
            violation = max(violation, found / bound - 1)
            slack = max(slack, 1 - found / bound)
    yield Number(
        "random layers: exact rational deviation over the library's bound, less 1",
        float(violation),
        0.0,
        "an inequality",
    )
    yield Number(
        "random layers: what the bound leaves of the exact deviation, attained",
        float(slack),
        64 * 24 * UNIT,
        "outward rounding of at most 64 roundings a token, 24 tokens",
    )
    violation, slack, beyond = -np.inf, 0.0, 0.0
    for layer in bundled_layers():
        log_decay = layer.dt[:, :, None] * layer.A
        own = np.exp(log_decay)
        s = largest = np.ones(own.shape[1:])
        for a in own:
            s = a * s + 1
            largest = np.maximum(largest, s)
        bound = perturbation.persistent_gain(log_decay)
        violation = max(violation, float((largest / bound - 1).max()))
        slack = max(slack, float((1 - largest / bound).max()))
        mean = np.exp(log_decay.mean(axis=0))
        beyond = max(beyond, float((largest * (1 - mean)).max()))
    yield Number(
        "bundled model: scan(a, 1) over the library's bound, less 1",
        violation,
        0.0,
        "an inequality",
    )
    yield Number(
        "bundled model: room of that bound",
        slack,
        16 * 64 * UNIT,
        "8 units outward and as many own roundings a token, 64 tokens",
    )
    yield Number(
        "bundled model: 1 less by how much scan(a, 1) exceeds 1 / (1 - e^lambda) on "
        f"these tokens (factor {beyond:.3g})",
        1 - beyond,
        0.0,
        "the counterexample is met in a trained model",
    )


def _pairs(log_decay):
    """(exact deviation / epsilon, the library's bound) for both kinds."""
    decays = np.exp(log_decay)
    once, every = Fraction(0), Fraction(0)
    for place in np.ndindex(decays.shape[1:]):
        product, s, largest = Fraction(1), Fraction(1), Fraction(1)
        for a in map(Fraction, decays[(slice(None), *place)]):
            product, s = product * a, a * s + 1
            largest = max(largest, s)
        once, every = max(once, product), max(every, largest)
    if (log_decay > 0).any():  # the library refuses these; what its formula would say
        yield float(every), float(1 / (1 - decays.max()))
        return
    yield float(once), perturbation.one_off_bound(1.0, log_decay).value
    yield float(every), perturbation.persistent_bound(1.0, log_decay).value


STATEMENT = Statement(
    "deviation",
    "Deviation: eps e^(N zeta) once, eps max scan(a, 1) <= eps / (1 - sup a) at every "
    "token",
    HYPOTHESES,
    "one-off: paper (2406.00209), constant 1 ours; persistent bound and both "
    "counterexamples: ours (discrete Gronwall)",
    "lyapunov.bounds.perturbation",
    derive,
    reproduce,
)
