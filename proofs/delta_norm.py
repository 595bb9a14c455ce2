"""No step of a delta rule grows anything by more than its largest decay."""

from typing import Any

import jax
import numpy as np
import sympy
from sympy import KroneckerDelta as delta

from lyapunov.recurrences import DeltaRecurrence

from ._check import identity, lemma, sign
from ._delta import inputs, random_head, steps
from ._layers import UNIT
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("rate", "0 <= beta |k|^2 <= 2"),
    Hypothesis("decays", "D is diagonal with entries of at least 0"),
    Hypothesis("two_keys", "key_dim >= 2"),
)


def derive(given):
    """For any number of keys: in |x|^2, k.x and |k|^2, or for symbolic indices."""
    beta, s, n = sympy.symbols("beta s n", nonnegative=True)
    c = sympy.Symbol("c", real=True)
    gamma = beta * (2 - beta * s)
    yield identity(
        "P = 1 - beta k k' with s = |k|^2, c = k.x, n = |x|^2: |P x|^2 = "
        "n - gamma c^2, gamma = beta (2 - beta s)",
        n - 2 * beta * c * c + beta**2 * c**2 * s,
        n - gamma * c**2,
    )
    room = sympy.Symbol("r", nonnegative=True)
    # beta s = 2 - r
    left = room if "rate" in given else -room
    yield sign("beta s = 2 - r, r >= 0: gamma = beta r", beta * left, ">=")
    q = beta * s
    yield identity(
        "along k: the eigenvalue 1 - beta s, whose square is 1 - gamma s",
        (1 - q) ** 2,
        1 - gamma * s,
    )
    yield lemma(
        "P is symmetric with the eigenvalues 1 (across k, key_dim - 1 times) and "
        "1 - beta s, so that ||P|| = max(1, |1 - beta s|); with one decay a head the "
        "norm of the step is that decay times this, exactly",
        "Horn and Johnson, Matrix Analysis, 2nd ed., sections 4.1 and 5.6",
        applies="two_keys" in given,
    )
    i, j = sympy.symbols("i j", integer=True)
    indexed: Any = sympy.IndexedBase  # its stub knows of no indices
    k, d = indexed("k", real=True), indexed("d", nonnegative=True)
    # the sum over m of P_mi P_mj, that of k_m^2 being s
    square = delta(i, j) - 2 * beta * k[i] * k[j] + beta**2 * s * k[i] * k[j]
    yield identity(
        "M' M = D^2 - gamma (D k)(D k)': entry (i, j), the sum over m written with s",
        d[i] * square * d[j],
        d[i] * d[j] * delta(i, j) - gamma * (d[i] * k[i]) * (d[j] * k[j]),
    )
    decay = {"nonnegative": True} if "decays" in given else {"real": True}
    own, x = sympy.Symbol("d_i", **decay), sympy.Symbol("x", real=True)
    above = sympy.Symbol("e", nonnegative=True)
    yield sign(
        "from above: with D_i = D_max - e a term of D_max^2 |x|^2 - |D x|^2 is "
        "e (2 D_i + e) x^2 >= 0, and gamma c^2 >= 0",
        above * (2 * own + above) * x**2,
        ">=",
    )
    k1, k2, d1, d2 = (
        *sympy.symbols("k1 k2", real=True),
        *sympy.symbols("d1 d2", nonnegative=True),
    )
    second = (d2 * k2, -d1 * k1) if "two_keys" in given else (sympy.Integer(1), 0)
    yield identity(
        "from below: in the plane of the two largest decays x = (d2 k2, -d1 k1) has "
        "(D k).x = 0 (where both are 0, any x of it has)",
        d1 * k1 * second[0] + d2 * k2 * second[1],
        sympy.Integer(0),
        d1 * k1 * sympy.Symbol("x_1") + d2 * k2 * sympy.Symbol("x_2"),
    )
    yield sign(
        "so |M x|^2 = |D x|^2 >= d2^2 |x|^2, with d1 = d2 + e: the largest singular "
        "value lies between the second largest decay and the largest",
        ((d2 + above) ** 2 - d2**2) * x**2,
        ">=",
    )
    yield lemma(
        "that is the interlacing of a diagonal matrix less a matrix of rank one",
        "Golub 1973, SIAM Review 15, 318-334; Horn and Johnson, theorem 4.3.9",
        applies="rate" in given,
    )
    yield identity(
        "beyond: beta s = 2 + r makes ||P|| = 1 + r, and no step exceeds D_max (1 + r)",
        sympy.Abs(1 - (2 + room)),
        1 + room,
        sympy.Abs(sympy.Symbol("1 - beta s")),
    )


def reproduce(given):
    """NumPy's singular values of random steps, and what the library declares."""
    most = 2.0 if "rate" in given else 3.0
    above, below, exact, declared = [], [], [], []
    with jax.enable_x64(True):
        for seed in range(6):
            per_key = seed % 2 == 0
            head = random_head(seed, 64, 5, most=most, per_key=per_key)
            norms = np.linalg.norm(steps(head), 2, axis=(1, 2))
            ordered = np.sort(np.exp(head.log_gate), axis=1)
            above.append((norms / ordered[:, -1] - 1).max())
            below.append((1 - norms / ordered[:, -2]).max())
            bounds = np.exp(jax.vmap(DeltaRecurrence().log_norm_bound)(inputs(head)))
            declared.append((norms / bounds[:, 0] - 1).max())
            if not per_key:
                exact.append(np.abs(norms / bounds[:, 0] - 1).max())
    rounding = "singular values of 5 x 5 matrices of norm 1, each within 40 roundings"
    yield Number(
        "random steps: norm over the largest decay, less 1",
        float(max(above)), 40 * UNIT, rounding,
    )  # fmt: skip
    yield Number(
        "random steps: second largest decay over the norm, from 1",
        float(max(below)), 40 * UNIT, rounding,
    )  # fmt: skip
    yield Number(
        "the library's bound of the norm: norm over it, less 1",
        float(max(declared)), 40 * UNIT, rounding,
    )  # fmt: skip
    yield Number(
        "the same where a head has one decay: an equality",
        float(max(exact)), 40 * UNIT, rounding,
    )  # fmt: skip


STATEMENT = Statement(
    "delta_norm",
    "A step of a delta rule has a norm between its two largest decays, while "
    "beta |k|^2 <= 2",
    HYPOTHESES,
    "elsewhere: eigenvalues of 1 - beta k k' (DeltaNet, 2406.06484; in [-1, 1] up to "
    "beta = 2, Grazzi et al. 2411.12537), interlacing (Golub 1973); the bracket of a "
    "step with a gate a channel, put together from these: ours",
    "lyapunov.recurrences.DeltaRecurrence.log_norm_bound; bounds a column of a state",
    derive,
    reproduce,
)
