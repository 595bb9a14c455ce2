"""What the exponents of one recurrence do not bound: depth, gate, feedback, rounding.

Each counterexample has every layer's exponent strictly negative.
"""

import jax
import jax.numpy as jnp
import numpy as np
import sympy

import lyapunov
from lyapunov.formats import BF16, round_to

from ._check import counterexample, identity, limit, sign
from ._layers import UNIT, bundled_layers
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("gain_above_one", "depth: a layer may pass on more than it is given"),
    Hypothesis("unbounded_output", "gate: what is gated may be large"),
    Hypothesis("fed_back", "feedback: the next input depends on the state"),
    Hypothesis("finite_precision", "rounding: the decay is stored in bf16"),
)


def derive(given):
    """Constants are exact; L, y and N are symbolic."""
    a, x = sympy.symbols("a x", positive=True)
    L = sympy.Symbol("L", integer=True, positive=True)
    more = sympy.Symbol("c", positive=True)
    gain = 1 + more if "gain_above_one" in given else 1 / (1 + more)
    yield sign("each layer: h' = a h + x with a = 1/2, exponent", -sympy.log(2), "<")
    h = sympy.Symbol("h")
    (rest,) = sympy.solve(sympy.Eq(h, h / 2 + x), h)
    yield identity(
        "depth: h rests at 2 x under a constant input x, so y = g h / 2 answers g x",
        gain * rest / 2,
        gain * x,
    )
    yield limit(
        "so L layers answer a change of the input by the factor g^L, without limit, "
        "whatever the exponents",
        gain**L,
        L,
        sympy.oo,
    )
    y = sympy.Symbol("y", positive=True)
    z = sympy.Symbol("z", real=True)
    silu = z / (1 + sympy.exp(-z))
    slope = sympy.diff(y * silu, z).subs(z, 0)
    yield identity(
        "gate: the slope of y silu(z) by z, at 0",
        slope,
        y / 2,
        sympy.Subs(sympy.Derivative(y * silu, z), z, 0),
    )
    largest = y if "unbounded_output" in given else sympy.Integer(1) + 0 * y
    yield limit(
        "no constant bounds it for all y, and y is what the recurrence puts out",
        largest / 2,
        y,
        sympy.oo,
    )
    b, C, h = sympy.symbols("b C h", real=True)
    back = C * h if "fed_back" in given else sympy.Symbol("u", real=True)
    closed = sympy.diff(a * h + b * back, h)
    yield identity(
        "feedback: u = C h closes the loop",
        closed,
        a + b * C,
        sympy.Derivative(a * h + b * back, h),
    )
    half = closed.subs({a: sympy.Rational(1, 2), b: 1, C: 1})
    yield sign(
        "a = 1/2, b = C = 1: exponent of the loop, log 3/2, while the layer's is "
        "-log 2",
        sympy.log(half) if half.is_positive else half,
        ">",
    )
    decay = sympy.exp(-sympy.Rational(1, 1000))
    unit = sympy.Rational(1, 256) if "finite_precision" in given else sympy.Integer(0)
    yield sign(
        "rounding: exp(-1/1000) lies less than u/2 below 1 (u = 2^-8 in bf16), so it "
        "is stored as 1",
        unit / 2 - (1 - decay),
        ">",
    )
    n = sympy.Symbol("N", integer=True, positive=True)
    stored = sympy.Integer(1) if "finite_precision" in given else decay
    yield limit("the stored recurrence never forgets", stored**n, n, sympy.Integer(1))
    yield counterexample(
        "and while the exact deviation has left fewer than 1 in 20000 after 10000 "
        "tokens, the stored one is whole",
        sympy.exp(-10) < sympy.Rational(1, 20000) and stored**2 == 1,
    )


def reproduce(given):
    """The same four, run with the library."""
    with jax.enable_x64(True):
        growth = 2.0 if "gain_above_one" in given else 0.5
        change = 1.0
        for _ in range(8):
            h = 0.0
            for _ in range(60):
                h = 0.5 * h + change
            change = growth * h / 2
        yield Number(
            "depth: 8 layers of gain 2 answer 256, relative",
            abs(change / 256 - 1),
            8 * 2.0**-59 + 8 * 64 * UNIT,
            "2^-60 of each layer's answer is still to come, 64 roundings a layer",
        )
        y = 1e6 if "unbounded_output" in given else 1.0
        found = float(jax.grad(lambda z: y * jax.nn.silu(z))(jnp.asarray(0.0)))
        yield Number(
            "gate: slope 5e5 at y = 1e6, relative",
            abs(found / 5e5 - 1),
            8 * UNIT,
            "a product and a sigmoid at 0",
        )
        C = 1.0 if "fed_back" in given else 0.0
        result = lyapunov.lyapunov_spectrum(
            lambda h, _: 0.5 * h + C * h, jnp.ones(1), 50
        )
        yield Number(
            "feedback: lyapunov_spectrum of the loop against log 3/2",
            abs(float(result.exponents[0]) - np.log(1.5)),
            64 * UNIT,
            "a logarithm a step, averaged",
        )
        decay = jnp.exp(jnp.asarray(-1e-3))
        if "finite_precision" in given:
            decay = round_to(decay, BF16.numbers())
        yield Number(
            "rounding: the deviation after 10000 tokens against 1",
            abs(float(decay) ** 10000 - 1),
            0.0,
            "1 is exact",
        )
        share = np.mean(
            [
                np.mean(
                    np.asarray(
                        round_to(
                            jnp.exp(jnp.asarray(layer.dt[:, :, None] * layer.A)),
                            BF16.numbers(),
                        )
                    )
                    == 1
                )
                for layer in bundled_layers()
            ]
        )
    yield Number(
        f"bundled model: {share:.2%} of all decays would be stored as 1 in bf16; "
        "0 less that share",
        -float(share),
        -1e-12,
        "the case is met in a trained model",
    )


STATEMENT = Statement(
    "left_out",
    "What the theorem leaves out: depth, the gate, feedback of tokens, rounding",
    HYPOTHESES,
    "ours (feedback: the remark that a certificate covers the state's block alone is "
    "common in control)",
    "lyapunov.bounds (T0 to T4 exist for these); decay_is_one of the report",
    derive,
    reproduce,
)
