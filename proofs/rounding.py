"""The scan lemma, running-error rules with their constants, decays stored as 1."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import sympy

from lyapunov.formats import BF16, FP8_E4M3, FP16, round_to

from ._check import (
    ball,
    has_sign,
    identity,
    induction,
    is_zero,
    lemma,
    sign,
)
from ._layers import bundled_layers
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis(
        "standard_model", "fl(x op y) = (x op y)(1 + d), |d| <= u, no underflow"
    ),
    Hypothesis("counted_depth", "no term goes through more than D additions"),
    Hypothesis("nearest", "stores round to nearest, ties to even"),
)


def derive(given):
    """Symbolic lengths, depths, u and width; scalar functions on stated domains."""
    yield from _scan(given)
    yield from _functions()
    yield from _norm()
    yield from _threshold(given)


def _scan(given):
    a1, b1, a2, b2, a3, b3 = sympy.symbols("a1 b1 a2 b2 a3 b3", real=True)
    combine = lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1])
    x, y, z = (a1, b1), (a2, b2), (a3, b3)
    left, right = combine(combine(x, y), z), combine(x, combine(y, z))
    yield identity(
        "scan: (a1, b1) before (a2, b2) is (a1 a2, a2 b1 + b2), associative, so every "
        "bracketing has the same exact value",
        left[1],
        right[1],
    )
    m, n = sympy.symbols("m n", integer=True, positive=True)
    s = sympy.Symbol("s", integer=True, positive=True)
    yield induction(
        "over bracketings: in a segment of n tokens the decay product has gone through "
        "n - 1 multiplications and term s through n - s. Joining m tokens with n: "
        "a's n - 1 and one more for a term of the first, nothing for one of the second",
        base=is_zero((sympy.Integer(1) - 1) - 0),
        step=is_zero((m - s) + (n - 1) + 1 - (m + n - s))
        and is_zero((m - 1) + (n - 1) + 1 - (m + n - 1)),
        formulas=(sympy.Eq((m - s) + (n - 1) + 1, m + n - s, evaluate=False),),
    )
    D = sympy.Symbol("D", integer=True, nonnegative=True)
    used = sympy.Symbol("j", integer=True, nonnegative=True)
    spare = D - used if "counted_depth" not in given else used
    yield sign("additions of a term: at most D, what is left of D is", spare, ">=")
    u, g = sympy.symbols("u g", nonnegative=True)
    room = sympy.Symbol("r", nonnegative=True)
    error = u - room if "standard_model" in given else u + room
    # (1 + g)(1 + u) - 1 - |factor - 1|, the factor's error being at most `error`
    left_over = (1 + g) * (1 + u) - 1 - (g * (1 + error) + error)
    yield induction(
        "k factors 1 + d with |d| = u - r <= u differ from 1 by at most (1+u)^k - 1; "
        "with g that of k, what is left at k + 1 (Higham 2002, lemma 3.1, without "
        "its restriction k u < 1)",
        base=is_zero((1 + u) ** 0 - 1),
        step=has_sign(sympy.expand(left_over), ">="),
        formulas=(sympy.Ge(sympy.expand(left_over), 0, evaluate=False),),
    )
    a, P, S, b = sympy.symbols("a P S b", nonnegative=True)
    yield identity(
        "so |error of h_t| <= (1+u)^D P_t - S_t with P = scan(a (1+u), |b|), "
        "S = scan(a, |b|); Q = P - S advances without cancellation",
        (a * (1 + u) * P + b) - (a * S + b),
        a * ((P - S) + u * P),
    )


def _functions():
    x, e = sympy.symbols("x e", nonnegative=True)
    v = sympy.Symbol("v", real=True)
    logistic = 1 / (1 + sympy.exp(-v))
    yield identity(
        "softplus: slope sigmoid",
        sympy.diff(sympy.log(1 + sympy.exp(v)), v),
        logistic,
    )
    yield sign(
        "it increases, so on [v - e, v + e] it is at most sigmoid(v + e)",
        sympy.exp(v) / (1 + sympy.exp(v)) ** 2,
        ">",
    )
    yield identity(
        "that was its derivative",
        sympy.diff(logistic, v),
        sympy.exp(v) / (1 + sympy.exp(v)) ** 2,
    )
    silu = v * logistic
    s = sympy.Symbol("sigma", real=True)
    yield identity(
        "silu: slope s (1 + v (1 - s)) with s = sigmoid(v)",
        sympy.diff(silu, v),
        logistic * (1 + v * (1 - logistic)),
    )
    slope = lambda t: _sigmoid(t) * (1 + t * (1 - _sigmoid(t)))
    yield ball("silu: |slope| <= 1.0999 on [-50, 50]", slope, -50, 50, "1.0999")
    yield ball("and from below", lambda t: -slope(t), -50, 50, "1.0999")
    yield sign(
        "beyond 50, slope and curvature are within |v| exp(-|v|) of 0 or 1, which "
        "falls from |v| = 1 on: its derivative at 1 + x",
        sympy.diff(v * sympy.exp(-v), v).subs(v, 1 + x),
        "<=",
    )
    yield ball("and is tiny at 50", lambda t: t * (-t).exp(), 50, 50, "1e-19")
    second = sympy.diff(silu, v, 2)
    yield identity(
        "silu: second derivative s (1 - s) (2 - v tanh(v / 2))",
        second.rewrite(sympy.exp),
        (logistic * (1 - logistic) * (2 - v * sympy.tanh(v / 2))).rewrite(sympy.exp),
    )
    yield identity(
        "at most 1/2: s (1 - s) = 1/4 - (s - 1/2)^2 <= 1/4 and v tanh(v / 2) >= 0",
        s * (1 - s),
        sympy.Rational(1, 4) - (s - sympy.Rational(1, 2)) ** 2,
    )
    curvature = lambda t: _sigmoid(t) * (1 - _sigmoid(t)) * (t * (t / 2).tanh() - 2)
    yield ball("and at least -1/2, on [-50, 50]", curvature, -50, 50, "0.5")
    yield identity(
        "exp: of exp(v + e) and exp(v - e) the upper is farther from exp(v), by exp(v) "
        "times a square; so |exp(v') - exp(v)| <= exp(v) expm1(e)",
        (sympy.exp(e) - 1) - (1 - sympy.exp(-e)),
        (sympy.exp(e / 2) - sympy.exp(-e / 2)) ** 2,
    )
    # (1 + e) - expm1(e)/e on [0, 1]: expm1(e)/e is the mean of exp over [0, e]
    f = e + e**2 - sympy.exp(e) + 1
    yield identity(
        "exp, in `decay`: f = e (1 + e) - expm1(e) has f(0) = f'(0) = 0",
        f.subs(e, 0) + sympy.diff(f, e).subs(e, 0),
        sympy.Integer(0),
    )
    yield ball(
        "f'' = 2 - exp(e) >= 0 on [0, 1/2], so f >= 0 there",
        lambda t: t.exp() - 2,
        0,
        0.5,
        "0",
    )
    yield ball(
        "and f >= 0 on [1/2, 1]",
        lambda t: t.exp() - 1 - t - t * t,
        0.5,
        1,
        "0",
    )


def _norm():
    n = sympy.Symbol("n", integer=True, positive=True)
    mean, epsilon = sympy.symbols("m epsilon", positive=True)
    square = mean + epsilon  # r^2, with m the mean of x_i^2, any width n
    yield identity(
        "RMSNorm: the gradient of r has entries x_i / (n r), square sum m / (n r^2) "
        "= 1/n - epsilon / (n r^2), so r is 1-Lipschitz in x / sqrt(n)",
        (n * mean) / (n**2 * square),
        1 / n - epsilon / (n * square),
    )
    yield identity(
        "the Jacobian (I - x x' / (n r^2)) / r of x / r is symmetric: 1/r across x, "
        "and along x",
        (1 - (n * mean) / (n * square)) / sympy.sqrt(square),
        epsilon / square ** sympy.Rational(3, 2),
    )
    yield sign(
        "which lies between 0 and 1/r: its norm is at most 1/r; 1/r less that is",
        mean / square ** sympy.Rational(3, 2),
        ">=",
    )


def _threshold(given):
    u = sympy.Symbol("u", positive=True)
    d = -sympy.log(1 - u / 2)
    yield identity(
        "decay stored as 1: below 1 the spacing is u, the midpoint 1 - u/2 goes to 1, "
        "whose last bit is even; exp(-d) reaches it at d = -log(1 - u/2)",
        sympy.exp(-d),
        1 - u / 2,
    )
    yield lemma(
        "rounding to nearest is monotone, so all smaller d are stored as 1, and no "
        "larger one",
        "IEEE 754-2019, section 4.3.1",
        applies="nearest" in given,
    )


def _sigmoid(t):
    return 1 / (1 + (-t).exp())


def reproduce(given):
    """All bracketings in fp16, the constants, the thresholds, the bundled model."""
    worst = _bracketings("counted_depth" in given)
    yield Number(
        "scan lemma: error over bound less 1, all 429 bracketings of 8 tokens in fp16, "
        "exact fractions",
        worst - 1,
        0.0,
        "an inequality",
    )
    yield Number(
        "the same: 1/64 less the largest share of the bound that is reached",
        1 / 64 - worst,
        0.0,
        "so that a vacuous bound would show",
    )
    with jax.enable_x64(True):
        for form in (BF16, FP16, FP8_E4M3):
            edge = form.decay_rounds_to_one_below()
            with mpmath.workdps(40):
                wanted = -mpmath.log(1 - mpmath.mpf(form.unit_roundoff) / 2)
                off = float(abs(mpmath.mpf(edge) / wanted - 1))
            below, above = (
                float(round_to(jnp.exp(jnp.asarray(-edge * s)), form.numbers()))
                for s in (1 - 1e-9, 1 + 1e-9)
            )
            turned = "nearest" in given and below == 1 and above < 1
            yield Number(
                f"{form.name}: threshold {edge:.6g}, relative to 40 digits",
                off if turned else float("inf"),
                2.0**-52,
                "one log1p; just below it a decay is stored as 1, just above it is not",
            )
        layers = bundled_layers()
        decays = np.exp(
            np.concatenate([(one.dt[:, :, None] * one.A).ravel() for one in layers])
        )
        sizes = np.concatenate(
            [(one.dt[:, :, None] * -one.A).ravel() for one in layers]
        )
        stored = np.asarray(round_to(jnp.asarray(decays), BF16.numbers())) == 1
        edge = BF16.decay_rounds_to_one_below()
        clear = np.abs(sizes / edge - 1) > 1e-9
        wrong = stored[clear] != (sizes[clear] <= edge)
    yield Number(
        f"bundled model: decays ({stored.mean():.2%} stored as 1 in bf16) on the wrong "
        "side of the threshold",
        float(wrong.sum()),
        0.0,
        "a count",
    )


@functools.cache
def _trees(first, last):
    if last - first == 1:
        return (first,)
    return tuple(
        (left, right)
        for cut in range(first + 1, last)
        for left in _trees(first, cut)
        for right in _trees(cut, last)
    )


def _bracketings(counted):
    """Largest error / bound over all trees."""
    rng = np.random.default_rng(0)
    worst = 0.0
    unit = Fraction(1, 2**11)
    for _ in range(3):
        # no product of eight of these comes near fp16's subnormals
        a = rng.uniform(0.7, 1.0, 8).astype(np.float16)
        b = (rng.choice([-1, 1], 8) * rng.uniform(0.5, 2.0, 8)).astype(np.float16)
        exact, P, S = Fraction(0), Fraction(0), Fraction(0)
        for one, drive in zip(a, b, strict=True):
            one, drive = Fraction(float(one)), Fraction(float(drive))
            exact = one * exact + drive
            P = one * (1 + unit) * P + abs(drive)
            S = one * S + abs(drive)
        for tree in _trees(0, 8):
            _, found, depth = _evaluate(tree, a, b)
            depth = depth if counted else -8 * 64
            bound = (1 + unit) ** depth * P - S
            error = abs(Fraction(float(found)) - exact)
            worst = max(worst, float(error / bound) if bound > 0 else float("inf"))
    return worst


def _evaluate(tree, a, b):
    """(product, state, additions of the term with most), each operation in fp16."""
    if isinstance(tree, int):
        return a[tree], b[tree], 0
    left, right = (_evaluate(part, a, b) for part in tree)
    product = left[0] * right[0]
    state = right[0] * left[1] + right[1]
    return product, state, max(left[2], right[2]) + 1


STATEMENT = Statement(
    "rounding",
    "The scan lemma, the running-error rules and the threshold of a decay stored as 1",
    HYPOTHESES,
    "standard model and running errors: Higham 2002; scan lemma in every bracketing "
    "and the constants of silu and decay: ours",
    "lyapunov.arithmetic.BoundedArithmetic; Format.decay_rounds_to_one_below",
    derive,
    reproduce,
)
