"""The largest exponent of a delta rule: its bracket, and when it is the mean gate."""

import numpy as np
import sympy

from ._check import has_sign, identity, induction, is_zero, lemma, sign
from ._delta import library_row, log_norm, random_head
from ._layers import UNIT
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("rate", "0 <= beta |k|^2 <= 2 at every token"),
    Hypothesis("one_decay", "a head has one decay a token (for the equality alone)"),
    Hypothesis("not_spanned", "the keys do not span R^key_dim (for it alone)"),
)


def derive(given):
    """For any number of tokens and keys."""
    G, g = sympy.symbols("G g", real=True)
    # log of a step's norm, at most g
    over, spare = sympy.symbols("r s", nonnegative=True)
    own = g - over if "rate" in given else g + over
    yield sign("log ||M_t|| <= g_t, the largest log gate (delta_norm)", g - own, ">=")
    yield induction(
        "log ||M_T ... M_1|| <= G_T = g_1 + ... + g_T: the norm is submultiplicative, "
        "with G_T - s for the product so far and g - r for the step",
        base=is_zero(sympy.log(1) - 0),
        step=has_sign((G + g) - ((G - spare) + own), ">="),
        formulas=(sympy.Ge((G + g) - ((G - spare) + own), 0, evaluate=False),),
    )
    count = sympy.Symbol("d", integer=True, positive=True)
    top = sympy.Symbol("lambda_1", real=True)
    below = sympy.Symbol("e", nonnegative=True)
    yield sign(
        "from below: exponents are lambda_1 - e_i, and d lambda_1 less their sum, "
        "which is that of the determinants (delta_determinant), is the sum of e_i",
        count * top - (count * top - below),
        ">=",
    )
    beta = sympy.Symbol("beta", nonnegative=True)
    key, x, decay = sympy.symbols("k_n x_n d", real=True)
    c = sympy.Integer(0) if "not_spanned" in given else sympy.Symbol("c", real=True)
    yield identity(
        "an x that no key has a part along, k.x = 0, is not written: entry n of P x",
        x - beta * key * c,
        x,
        x - beta * key * sympy.Symbol("(k.x)"),
    )
    own_decay = decay if "one_decay" in given else sympy.Symbol("d_n", real=True)
    yield identity(
        "one decay a head takes x along itself: entry n of D x. So the product takes "
        "x to e^(g_1 + ... + g_T) x, and ||M_T ... M_1|| = e^(g_1 + ... + g_T) "
        "exactly, at every length, in as many directions as the keys leave out",
        own_decay * x,
        decay * x,
    )
    gamma = sympy.Symbol("gamma", positive=True)
    part = sympy.Symbol("c", real=True, nonzero=True)
    yield sign(
        "where keys span and 0 < beta |k|^2 < 2, every x meets a key: |P x|^2 = |x|^2 "
        "- gamma c^2 is less at the first one with c = k.x != 0",
        -gamma * part**2,
        "<",
    )
    yield lemma(
        "and a continuous function has its largest value on the unit sphere: the norm "
        "of the product is then less than e^(g_1 + ... + g_T)",
        "Rudin, Principles of Mathematical Analysis, theorem 4.16",
    )


def reproduce(given):
    """The library's exponents in their bracket; products of steps by NumPy."""
    most = 2.0 if "rate" in given else 4.0
    above, below, apart = [], [], 0.0
    for seed in range(4):
        head = random_head(seed, 48, 5, most=most)
        row, norm = library_row(head), log_norm(head)
        above.append(norm - head.log_gate[:, 0].mean())
        below.append(row.lower[0] - norm)
        apart = max(apart, abs(row.max[0] - norm))
    yield Number(
        "random heads: the library's largest exponent against the norm of NumPy's "
        "product, nats a token",
        apart, 400 * UNIT, "48 products of 5 x 5 matrices",
    )  # fmt: skip
    yield Number(
        "random heads: log norm a token above the mean gate",
        float(max(above)), 400 * UNIT, "an inequality, up to the same",
    )  # fmt: skip
    yield Number(
        "random heads: below the mean log determinant over key_dim",
        float(max(below)), 0.0, "an inequality",
    )  # fmt: skip
    head = random_head(9, 200, 5)
    key = head.key.copy()
    if "not_spanned" in given:
        key[:, 0] = 0
    gates = head.log_gate
    if "one_decay" not in given:
        gates = gates - np.arange(5) / 10
    found = log_norm(head._replace(key=key, log_gate=gates))
    yield Number(
        "keys in 4 of 5 dimensions, 200 tokens: log norm a token off the mean gate",
        abs(found - float(head.log_gate[:, 0].mean())), 64 * UNIT,
        "200 products of 5 x 5 matrices, in logarithms",
    )  # fmt: skip


STATEMENT = Statement(
    "delta_exponent",
    "The largest exponent lies between the mean log determinant over key_dim and the "
    "mean gate, and is the mean gate exactly where keys do not span",
    HYPOTHESES,
    "ours, of elementary parts",
    "lyapunov.exponents.head_exponents; the fields `heads.lower` and `heads.upper`",
    derive,
    reproduce,
)
