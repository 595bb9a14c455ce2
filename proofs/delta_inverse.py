"""The entries of a chunk's inverse are products of steps, and none is large."""

from fractions import Fraction

import numpy as np
import sympy

from ._check import counterexample, identity, induction, is_zero, sign
from ._delta import one_key, random_head, steps, system
from ._layers import UNIT
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("decay_first", "the state fades before it is read"),
    Hypothesis("rate", "0 <= beta |k|^2 <= 2 at every token"),
    Hypothesis("fading", "no decay exceeds 1"),
)
WRITTEN_OUT = 4
"""Tokens of the chunk that is written out, of two keys."""


def derive(given):
    """For any chunk by induction, then one written out in all of its symbols."""
    y, c, k = sympy.symbols("y_n c k_n", real=True)
    beta = sympy.Symbol("beta", nonnegative=True)
    # the state behind a unit write at token j, read at k: y faded, c = k.y
    read = c if "decay_first" in given else sympy.Symbol("c_0", real=True)
    write = -beta * read
    yield induction(
        "a unit write at token j alone: S_j = k_j. Later writes w_i = -beta_i k_i' D_i "
        "S_{i-1} add k_i w_i, so that S_i = D_i S_{i-1} + k_i w_i = M_i S_{i-1}: entry "
        "n, with y = D_i S_{i-1} and c = k_i' y",
        base=is_zero(k - k),
        step=is_zero((y + k * write) - (y - beta * k * c)),
        formulas=(sympy.Eq(y + k * write, y - beta * k * c, evaluate=False),),
    )
    found, claimed = _written_out("decay_first" in given)
    yield identity(
        f"so (1 + A)^-1, A_ij = beta_i k_i' D_i ... D_(j+1) k_j, has the entries "
        f"-beta_i k_i' D_i M_(i-1) ... M_(j+1) k_j below its diagonal: "
        f"{WRITTEN_OUT} tokens with a gate a channel, written out, times 1 + A",
        found * claimed,
        sympy.eye(WRITTEN_OUT),
        sympy.MatMul(sympy.MatrixSymbol("1+A", WRITTEN_OUT, WRITTEN_OUT),
                     sympy.MatrixSymbol("Inv", WRITTEN_OUT, WRITTEN_OUT)),
    )  # fmt: skip
    over = sympy.Symbol("o", nonnegative=True)
    largest = 1 - over if "rate" in given else 1 + over
    yield sign(
        "steps do not expand (delta_norm), so that the size of an entry is at most "
        "beta_i |k_i| |k_j|: 1 - ||M|| for ||M|| = 1 - o",
        1 - largest,
        ">=",
    )
    fade = 1 - over if "fading" in given else 1 + over
    yield sign("and D_i itself does not: 1 - D for D = 1 - o", 1 - fade, ">=")
    size, rate = sympy.symbols("s beta", positive=True)
    spare = sympy.Symbol("t", nonnegative=True)
    yield sign(
        "of keys of norm 1 and less that is at most beta_i: 1 for a sigmoid, 2 for "
        "twice one; what is left, with |k_i| |k_j| = s / (s + t)",
        sympy.simplify(rate - rate * size / (size + spare)),
        ">=",
    )
    entries = _repeated(8)
    yield counterexample(
        "without that they grow: one key of |k|^2 = 4 eight times, beta = 1, no gate: "
        "each step is a factor -3",
        max(map(abs, entries)) == 4 * 3**6 > 4,
        f"first column {', '.join(str(one) for one in entries)}",
    )


def _written_out(decay_first: bool):
    """1 + A and the claimed inverse, in symbols."""
    n = WRITTEN_OUT
    beta = sympy.symbols(f"beta:{n}")
    key = [sympy.Matrix(sympy.symbols(f"k{i}_:2")) for i in range(n)]
    gate = [sympy.diag(*sympy.symbols(f"d{i}_:2")) for i in range(n)]
    step = lambda i: (sympy.eye(2) - beta[i] * key[i] * key[i].T) * gate[i]
    found, claimed = sympy.eye(n), sympy.eye(n)
    for i in range(n):
        for j in range(i):
            faded, pushed = key[j], key[j]
            for m in range(j + 1, i):
                faded, pushed = gate[m] * faded, step(m) * pushed
            own = gate[i] if decay_first else sympy.eye(2)
            found[i, j] = beta[i] * (key[i].T * own * faded)[0]
            claimed[i, j] = -beta[i] * (key[i].T * gate[i] * pushed)[0]
    return found, claimed


def _repeated(n: int) -> list[int]:
    """The inverse's first column for one key of |k|^2 = 4, by substitution, exact."""
    column = [Fraction(1)]
    for _ in range(1, n):
        column.append(-4 * sum(column, Fraction(0)))
    return [int(one) for one in column]


def reproduce(given):
    """NumPy's inverses of random chunks of 64."""
    apart, above, least = 0.0, -np.inf, np.inf
    for seed in range(4):
        most = (1.0, 2.0)[seed % 2] if "rate" in given else 4.0
        head = random_head(seed, 64, 16, most=most, per_key=seed < 2)
        if seed == 3:
            head = one_key(head, most)
        if "decay_first" not in given:
            head = head._replace(log_gate=np.roll(head.log_gate, -1, axis=0))
        inverse = np.linalg.inv(np.eye(64) + system(head))
        if "decay_first" not in given:
            head = head._replace(log_gate=np.roll(head.log_gate, 1, axis=0))
        matrices, gates = steps(head), np.exp(head.log_gate)
        claimed = np.eye(64)
        for j in range(64):
            pushed = head.key[j]
            for i in range(j + 1, 64):
                read = head.key[i] @ (gates[i] * pushed)
                claimed[i, j] = -head.rate[i] * read
                pushed = matrices[i] @ pushed
        size = np.linalg.norm(head.key, axis=1)
        limit = head.rate[:, None] * size[:, None] * size[None]
        below = np.tril(np.abs(inverse), -1)
        apart = max(apart, np.abs(inverse - claimed).max())
        above = max(above, (below - np.tril(limit, -1)).max())
        least = min(least, 1 - (below[below > 0] / limit[below > 0]).max())
    yield Number(
        "chunks of 64 tokens and 16 keys: NumPy's inverse off the products, entries of "
        "at most 2",
        float(apart), 64 * 64 * 16 * UNIT, "64 substitutions of 64 terms, steps of 16",
    )  # fmt: skip
    yield Number(
        "entries above beta_i |k_i| |k_j|",
        float(above), 64 * 64 * UNIT, "an inequality, up to the same",
    )  # fmt: skip
    yield Number(
        "the least room that an entry leaves, as a share of its bound",
        float(least), 0.1, "so that a vacuous bound would show",
    )  # fmt: skip


STATEMENT = Statement(
    "delta_inverse",
    "The entries of a chunk's inverse are -beta_i k_i' D_i M_(i-1) ... M_(j+1) k_j, at "
    "most beta_i |k_i| |k_j|",
    HYPOTHESES,
    "at most 1 without gates at beta = 1: elsewhere (Su 2026, kexue.fm 11563); the "
    "chunk's system: DeltaNet (2406.06484), with gates 2412.06464; entries as products "
    "of steps, with rates up to 2 and gates a channel: ours",
    "what a chunk's stored inverse may hold, and that a larger one is no rounding",
    derive,
    reproduce,
)
