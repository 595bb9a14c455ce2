"""Gates a channel give a delta rule no exponents a channel."""

import numpy as np
import sympy

from ._check import identity, lemma, sign
from ._delta import Head, library_row, log_norm, product, random_head, steps
from ._layers import UNIT
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("mixing", "keys across channels, beta / 2 > 4 a / (1 + a)^2"),
    Hypothesis("rate", "0 <= beta |k|^2 <= 2 (for the bound from above)"),
    Hypothesis("decays", "0 < a < 1"),
)


def derive(given):
    """Two channels whose gates take turns: decays (1, a), then (a, 1)."""
    a = sympy.Symbol("a", positive=True)
    r = sympy.Symbol("r", positive=True)
    step = lambda d: sympy.Matrix([[1 - r, r], [r, 1 - r]]) * sympy.diag(*d)
    two = step((a, 1)) * step((1, a))
    yield identity(
        "k = (1, -1) / sqrt(2), r = beta / 2: trace of the product of two steps",
        two.trace(),
        r**2 * (1 + a**2) + 2 * a * (1 - r) ** 2,
    )
    yield identity(
        "its half is above a = e^(2 mean gate), mean gates being the same in both "
        "channels, by r (r (1 + a)^2 - 4 a) / 2",
        two.trace() / 2 - a,
        r * (r * (1 + a) ** 2 - 4 * a) / 2,
    )
    more = sympy.Symbol("m", positive=True)
    least = 4 * a / (1 + a) ** 2
    mixed = least + more if "mixing" in given else least / (1 + more)
    yield sign(
        "which is positive for r = 4 a / (1 + a)^2 + m",
        sympy.simplify(mixed * (1 + a) ** 2 - 4 * a),
        ">",
    )
    room = sympy.Symbol("p", positive=True)
    small = 1 / (1 + room) if "decays" in given else 1 + room
    yield sign(
        "and that is a rate: 4 a / (1 + a)^2 < 1, a = 1 / (1 + p), is (1 - a)^2 > 0",
        sympy.factor((1 - small) if "decays" in given else -((1 - small) ** 2)),
        ">",
    )
    yield lemma(
        "half a trace is at most the spectral radius, and the exponent of a product "
        "of period two is half the log of that: it exceeds every channel's mean gate",
        "Horn and Johnson, Matrix Analysis, 2nd ed., section 1.2 and theorem 5.6.12",
    )
    reflected = two.subs(r, 1)
    yield identity(
        "at beta = 2 channels change places with the gates: the product is "
        "diag(1, a^2), an exponent of 0, the mean of the largest gate",
        reflected,
        sympy.diag(1, a**2),
    )
    over = sympy.Symbol("o", nonnegative=True)
    g = sympy.Symbol("g", real=True)
    own = g - over if "rate" in given else g + over
    yield sign(
        "no rate gives more: log ||M_t|| <= max_i g_ti (delta_norm), so the largest "
        "exponent is at most the mean of that",
        g - own,
        ">=",
    )


def reproduce(given):
    """The example by the library and by NumPy; random heads below the bound."""
    c, tokens = 10.0, 100
    gates = np.zeros((tokens, 2))
    gates[::2, 1] = gates[1::2, 0] = -c
    key = np.full((tokens, 2), np.sqrt(0.5)) * [1, -1]
    if "mixing" not in given:
        key = np.tile([1.0, 0.0], (tokens, 1))
    apart, short, excess = 0.0, -np.inf, -np.inf
    for rate in (0.5, 1.0, 1.9):
        head = Head(gates, np.full(tokens, rate), key)
        radius = np.abs(np.linalg.eigvals(product(steps(head)[:2]))).max()
        exponent, found = float(np.log(radius)) / 2, log_norm(head)
        apart = max(apart, abs(library_row(head).max[0] - found))
        short = max(short, exponent - found)
        excess = max(excess, gates.mean(axis=0).max() + 1 - exponent)
    over = -np.inf
    for seed in range(4):
        most = 2.0 if "rate" in given else 4.0
        head = random_head(seed, 64, 4, most=most, per_key=True)
        over = max(over, log_norm(head) - head.log_gate.max(axis=1).mean())
    yield Number(
        "gates of 0 and -10 in turns, beta 0.5, 1 and 1.9: the library's largest "
        "exponent off the norm of NumPy's product, nats a token",
        apart, 100 * UNIT, "logs of up to 10, products of 2 x 2 matrices",
    )  # fmt: skip
    yield Number(
        "half the log of the spectral radius of two steps above that",
        short, 100 * UNIT, "an inequality, up to the same",
    )  # fmt: skip
    yield Number(
        "the largest mean gate of a channel and a whole nat above the exponent",
        float(excess), 0.0, "an inequality",
    )  # fmt: skip
    yield Number(
        "random heads of 4 channels: log norm a token above the mean largest gate",
        float(over), 400 * UNIT, "an inequality, 64 products of 4 x 4 matrices",
    )  # fmt: skip


STATEMENT = Statement(
    "delta_channels",
    "Gates a channel give no exponents a channel: the largest can exceed every "
    "channel's mean gate, and is at most the mean of the largest",
    HYPOTHESES,
    "ours; the recurrence is that of Kimi Delta Attention (2510.26692)",
    "finding LYA006, which asks gates and not exponents; `heads.upper` of a report",
    derive,
    reproduce,
)
