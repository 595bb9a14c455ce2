"""A chunk's backward error: whatever its writes are, it is a recurrence of others."""

import numpy as np
import sympy

from ._check import has_sign, identity, induction, is_zero
from ._delta import Head, one_key, random_head, steps, system
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("same_keys", "the residual is formed with the keys that are written"),
    Hypothesis("start_faded", "the state before the chunk is read as it has faded"),
    Hypothesis("rate", "0 <= beta |k|^2 <= 2 at every token (for the bound alone)"),
)
WRITTEN_OUT = 3
"""Tokens of the chunk that is written out, of two keys and one value."""


def derive(given):
    """For any chunk by induction, then one written out in all of its symbols."""
    beta, v, w = sympy.symbols("beta v w", real=True)
    # what the key reads: of the state before the chunk, faded, and of writes since
    from_start, since = sympy.symbols("p q", real=True)
    start = from_start if "start_faded" in given else sympy.Symbol("p_0", real=True)
    residual = beta * (v - start) - (w + beta * since)
    yield identity(
        "rho_i = beta_i (v_i - k_i' D_i ... D_1 S_0) - ((1 + A) w)_i for any writes w. "
        "Row i of A is beta_i times what k_i reads of the writes since (q), the other "
        "what it reads of S_0 (p); both together are k_i' D_i S_{i-1}: so w_i is the "
        "recurrence's write less rho_i",
        beta * (v - (from_start + since)) - residual,
        w,
    )
    found, wanted = _written_out("same_keys" in given, "start_faded" in given)
    yield identity(
        f"the chunk's last state, D_C ... D_1 S_0 + sum of D_C ... D_(i+1) k_i w_i, is "
        f"that of the recurrence with its i-th write less rho_i: {WRITTEN_OUT} tokens "
        "with a gate a channel, written out",
        found,
        wanted,
        sympy.MatrixSymbol("S_C", 2, 1),
    )
    E, norm, size, more = sympy.symbols("e m r e_0", nonnegative=True)
    spare = sympy.Symbol("s", nonnegative=True)
    # |M| <= 1 lets the sum of |k| |rho| stand without the norms
    step = 1 - spare if "rate" in given else 1 + spare
    yield induction(
        "so the error is M_i E_(i-1) - k_i rho_i, of norm at most m_i e_(i-1) + |k_i| "
        "|rho_i|; with m_i = 1 - s <= 1 (delta_norm) at most e_0 + the sum of |k_i| "
        "|rho_i|",
        base=is_zero((more + 0) - more),
        step=has_sign(sympy.expand((E + size) - (step * E + size)), ">="),
        formulas=(sympy.Ge(E + size, norm * E + size, evaluate=False),),
    )


def _written_out(same_keys: bool, start_faded: bool):
    """The chunk's last state, and the recurrence's with changed writes, in symbols."""
    n = WRITTEN_OUT
    beta, v, w = (sympy.symbols(f"{name}:{n}") for name in ("beta", "v", "w"))
    key = [sympy.Matrix(sympy.symbols(f"k{i}_:2")) for i in range(n)]
    read = key if same_keys else [
        sympy.Matrix(sympy.symbols(f"h{i}_:2")) for i in range(n)
    ]  # fmt: skip
    gate = [sympy.diag(*sympy.symbols(f"d{i}_:2")) for i in range(n)]
    start = sympy.Matrix(sympy.symbols("S0_:2"))
    faded, writes, state = start, [], start
    for i in range(n):
        faded = gate[i] * faded
        seen = faded if start_faded else start
        own = [beta[i] * (v[i] - (key[i].T * seen)[0]) - w[i]]
        for j in range(i):
            pushed = read[j]
            for m in range(j + 1, i + 1):
                pushed = gate[m] * pushed
            own.append(-beta[i] * (key[i].T * pushed)[0] * w[j])
        writes.append(sum(own))
    for i in range(n):
        state = gate[i] * state
        state = state + key[i] * (beta[i] * (v[i] - (key[i].T * state)[0]) - writes[i])
    chunk = faded
    for i in range(n):
        pushed = key[i]
        for m in range(i + 1, n):
            pushed = gate[m] * pushed
        chunk = chunk + pushed * w[i]
    return chunk, state


def reproduce(given):
    """Chunks with a rounded inverse and right side, or a wrong inverse, in fp64."""
    over = -np.inf
    faded = "start_faded" in given
    most = 2.0 if "rate" in given else 4.0
    for seed, unit in enumerate((2.0**-8, 2.0**-8, 2.0**-24, 2.0**-11)):
        head = random_head(seed, 64, 16, most=most, per_key=seed < 2)
        error, bound = _chunk(head, unit, np.zeros(64), faded)
        over = max(over, error / bound - 1)
    yield Number(
        "chunks of 64 with a rounded inverse: error over e_0 + sum |k| |rho|, less 1",
        float(over), 1e-9, "an inequality, and what fp64 makes of 64 steps beside it",
    )  # fmt: skip
    head, wrong = one_key(random_head(4, 64, 16), most), np.eye(64) / 256
    error, bound = _chunk(head, 0.0, wrong[0], faded)
    yield Number(
        "one key 64 times, the first write alone wrong: the same",
        error / bound - 1, 1e-9, "the same",
    )  # fmt: skip
    error, bound = _chunk(random_head(5, 64, 16), 0.0, wrong[-1], faded)
    yield Number(
        "the last write alone wrong: the bound over the error, less 1",
        abs(bound / error - 1), 1e-9, "nothing follows that could cancel it",
    )  # fmt: skip
    yield Number(
        "one key 16 times, beta 1: 1/2 less the residual of an inverse by three rounds "
        "of Newton in place of four",
        0.5 - _newton_residual(), 0.0, "A^8 is not 0 where A^16 is",
    )  # fmt: skip


def _chunk(
    head: Head, unit: float, wrong: np.ndarray, start_faded: bool
) -> tuple[float, float]:
    """The last state's error, and the bound of it, of one value.

    **Arguments:**

    - `unit`: by which the inverse is rounded. `wrong`: added to the right side.
    """
    rng = np.random.default_rng(0)
    value, start = rng.normal(size=64), rng.normal(size=16)
    faded = np.exp(np.cumsum(head.log_gate, axis=0)) * start
    A = system(head)
    inverse = np.linalg.inv(np.eye(64) + A)
    inverse = inverse * (1 + unit * rng.uniform(-1, 1, inverse.shape))
    seen = (head.key * (faded if start_faded else start)).sum(axis=1)
    right = head.rate * (value - seen)
    write = inverse @ (right + wrong)
    residual = right - write - A @ write
    state, exact = start, start
    for i, M in enumerate(steps(head)):
        # the chunk's last state is that of its writes, one after the other
        state = np.exp(head.log_gate[i]) * state + head.key[i] * write[i]
        exact = M @ exact + head.rate[i] * head.key[i] * value[i]
    sizes = np.linalg.norm(head.key, axis=1) * np.abs(residual)
    return float(np.linalg.norm(state - exact)), float(sizes.sum())


def _newton_residual() -> float:
    """Of 1 - (1 + A) X, largest entry, after three rounds from 1."""
    whole, inverse = np.tril(np.ones((16, 16))), np.eye(16)
    for _ in range(3):
        inverse = inverse @ (2 * np.eye(16) - whole @ inverse)
    return float(np.abs(np.eye(16) - whole @ inverse).max())


STATEMENT = Statement(
    "delta_chunk",
    "A chunk with any writes is the token recurrence with its writes less their "
    "residual, so its error is at most the sum of |k| |rho|",
    HYPOTHESES,
    "residuals as backward errors: elsewhere (Higham 2002, chapter 7; of the "
    "triangular systems of delta rules, Sobczyk et al. 2605.21325 study inverses); "
    "that a residual is a change of the writes of the recurrence, and the bound: ours",
    "the op-local test of a chunk, whatever way its inverse was found",
    derive,
    reproduce,
)
