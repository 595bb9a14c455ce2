"""Keys rounded to a format can let a delta rule expand: by how much, and when not."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import sympy

from ._check import counterexample, identity, sign
from ._delta import Head, library_row
from ._layers import UNIT
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("nearest", "stores round to nearest, |k_i' - k_i| <= u |k_i|"),
    Hypothesis("normalised", "|k| <= 1 before it is stored"),
    Hypothesis("rate", "0 <= beta <= b"),
    Hypothesis("sixteen_bits", "u <= 2/5, as of every format with a fraction"),
)
FORMATS = {"bf16": (2.0**-8, ml_dtypes.bfloat16), "fp16": (2.0**-11, np.float16)}
SHARP = 4064
"""Entries of a key of norm 1, all alike, that bf16 rounds up by nearly u."""


def derive(given):
    """For any format and number of keys; the counterexample is in exact fractions."""
    u, b = sympy.symbols("u b", nonnegative=True)
    r, t = sympy.symbols("r t", nonnegative=True)
    # the relative change of an entry: u - r, with r = 2 u - t for the lowest
    left = r * (2 + t) if "nearest" in given else -r * (2 + 2 * u + r)
    yield sign(
        "an entry becomes k (1 + e), e = u - r: (1 + u)^2 - (1 + e)^2 = "
        "r (2 + 2 u - r) = r (2 + t), t = 2 u - r >= 0",
        left,
        ">=",
    )
    short = sympy.Symbol("s", nonnegative=True)
    norm = 1 - short if "normalised" in given else 1 + short
    yield sign(
        "so |k'|^2 <= (1 + u)^2 |k|^2 <= (1 + u)^2, with |k|^2 = 1 - s",
        sympy.expand((1 + u) ** 2 * (1 - norm)),
        ">=",
    )
    spare = sympy.Symbol("s", nonnegative=True)
    rate = b - spare if "rate" in given else b + spare
    yield sign(
        "and beta |k'|^2 <= b (1 + u)^2, with beta = b - s: with delta_norm, the "
        "largest exponent is at most the mean gate + log max(1, b (1 + u)^2 - 1)",
        sympy.expand((1 + u) ** 2 * (b - rate)),
        ">=",
    )
    x = sympy.Symbol("x", nonnegative=True)
    small = sympy.Rational(2, 5) / (1 + x) if "sixteen_bits" in given else 2 * (1 + x)
    yield sign(
        "a sigmoid's rates, b = 1, never expand: (1 + u)^2 - 1 < 1 for "
        "u = 2 / (5 + 5 x)",
        sympy.together(2 - (1 + small) ** 2),
        ">",
    )
    most = 2 * (1 + u) ** 2 - 1
    paid = sympy.Symbol("p", nonnegative=True)
    yield sign(
        "twice a sigmoid's, b = 2, do not where the gate pays: a decay of "
        "(1 - p) / (2 (1 + u)^2 - 1) leaves a norm of 1 - p",
        sympy.simplify(1 - (1 - paid) / most * most),
        ">=",
    )
    yield identity(
        "in bf16, u = 2^-8, that is 1.57e-2 a token",
        most.subs(u, sympy.Rational(1, 256)) - 1,
        sympy.Rational(513, 32768),
    )
    squares, key = sympy.symbols("s k_n", positive=True)
    yield identity(
        "one key again and again, beta = 2, no gate: P k = (1 - 2 s) k, s = |k|^2; a "
        "growth of log(2 s - 1) a token exactly, where s > 1",
        key - 2 * key * squares,
        (1 - 2 * squares) * key,
    )
    stored, norm = _sharp()
    midpoint = Fraction(257, 256) / 64
    yield counterexample(
        f"and bf16 makes such keys: {SHARP} entries of 1/sqrt({SHARP}) lie above the "
        "midpoint 257/16384 of two bf16 numbers and are stored as the upper one, "
        "129/8192",
        SHARP * midpoint**2 < 1 and stored == Fraction(129, 8192),
        f"|k'|^2 - 1 = {float(norm - 1):.4g}, of at most {(1 + 2.0**-8) ** 2 - 1:.4g}",
    )


def _sharp() -> tuple[Fraction, Fraction]:
    """An entry as bf16 stores it, and the square of the key's norm, both exact."""
    entry = Fraction(float(ml_dtypes.bfloat16(SHARP**-0.5)))
    return entry, SHARP * entry**2


def reproduce(given):
    """Stored keys of three kinds; the growth of one key by the library."""
    rng = np.random.default_rng(0)
    for name, (unit, dtype) in FORMATS.items():
        worst = -np.inf
        for draw in (rng.normal(size=(2000, 64)), rng.exponential(size=(2000, 64))):
            key = draw / np.linalg.norm(draw, axis=1, keepdims=True)
            stored = key.astype(dtype).astype(np.float64)
            if "nearest" not in given:
                # away from 0, by up to two units
                away = stored * (1 + 4 * unit)
                stored = away.astype(dtype).astype(np.float64)
            worst = max(worst, (stored**2).sum(axis=1).max() - (1 + unit) ** 2)
        yield Number(
            f"{name}: |k'|^2 above (1 + u)^2, 4,000 keys of 64 entries",
            float(worst), 200 * UNIT, "an inequality, 64 squares added",
        )  # fmt: skip
    _, norm = _sharp()
    wanted = float(np.log(float(2 * norm - 1)))
    # as long a key, of fewer entries
    key = np.full((200, 64), np.sqrt(float(norm) / 64))
    repeated = Head(np.zeros((200, 64)), np.full(200, 2.0), key)
    yield Number(
        "one key of that norm, 200 tokens: the library's largest exponent off "
        "log(2 |k'|^2 - 1), nats a token",
        abs(library_row(repeated).max[0] - wanted), 4 * 64 * UNIT,
        "a step is sums of 64 terms",
    )  # fmt: skip
    yield Number(
        "how far below the ceiling log(2 (1 + u)^2 - 1) that is, as a share of it",
        1 - wanted / float(np.log(2 * (1 + 2.0**-8) ** 2 - 1)), 0.01,
        "so that a vacuous ceiling would show",
    )  # fmt: skip


STATEMENT = Statement(
    "delta_keys",
    "With keys stored to nearest and rates up to b, the largest exponent is at most "
    "the mean gate + log max(1, b (1 + u)^2 - 1), and one repeated key comes near",
    HYPOTHESES,
    "that beta <= 2 keeps |1 - beta| <= 1: elsewhere (Grazzi et al. 2411.12537, for "
    "keys of norm 1); keys as they are stored, the ceiling and that it is sharp: ours",
    "finding LYA022",
    derive,
    reproduce,
)
