"""The exponents of a delta rule's head sum to a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import sympy

import lyapunov
from lyapunov.recurrences import DeltaRecurrence

from ._check import identity, induction, is_zero, lemma
from ._delta import inputs, random_head, steps
from ._layers import UNIT
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("same_key", "what is read and what is written is one key"),
    Hypothesis("nonzero", "beta |k|^2 != 1 and no gate is 0; else the sum is -inf"),
)


def derive(given):
    """For any number of keys, by induction over them."""
    beta, s, last = sympy.symbols("beta s kappa", real=True)
    # beta times the inner product of the key written along with the key read
    overlap = s if "same_key" in given else sympy.Symbol("p", real=True)
    closed = lambda squares: 1 - beta * squares
    before = 1 - beta * overlap
    inverse = s / before if "same_key" in given else s / (1 - beta * s)
    bordered = before * (1 - beta * last**2 - beta**2 * last**2 * inverse)
    yield induction(
        "det(1 - beta k k') = 1 - beta |k|^2: one more key, of entry kappa, borders "
        "the matrix A by -beta kappa k; det of that is det(A) times the Schur "
        "complement, with k' A^-1 k = s / (1 - beta s)",
        base=is_zero(closed(last**2) - (1 - beta * last**2)),
        step=is_zero(sympy.simplify(bordered - closed(s + last**2))),
        formulas=(
            sympy.Eq(bordered, closed(s + last**2), evaluate=False),
        ),
    )  # fmt: skip
    yield lemma(
        "that of a product is the product: log |det| of a step is log |1 - beta |k|^2| "
        "and the sum of the log gates, added over tokens",
        "Horn and Johnson, Matrix Analysis, 2nd ed., section 0.3; the determinant "
        "lemma itself is Sherman and Morrison's",
    )
    yield lemma(
        "the exponents of finitely many tokens, by QR or by singular values, are the "
        "logs of factors whose product is |det|; where no factor is 0 their mean over "
        "tokens is finite",
        "Benettin et al. (1980), Meccanica 15, 9-20",
        applies="nonzero" in given,
    )
    norm, epsilon = sympy.symbols("nu epsilon", positive=True)
    yield identity(
        "of a key divided by sqrt(nu^2 + epsilon), at beta = 1, what is left is "
        "epsilon / (nu^2 + epsilon): the smallest exponent measures the epsilon",
        1 - norm**2 / (norm**2 + epsilon),
        epsilon / (norm**2 + epsilon),
    )


def reproduce(given):
    """NumPy's determinants, and sums of the library's exponents."""
    apart, sums = 0.0, 0.0
    with jax.enable_x64(True):
        for seed in range(4):
            head = random_head(seed, 48, 5, most=2.0, per_key=seed % 2 == 0)
            matrices = steps(head)
            if "same_key" not in given:
                other = np.random.default_rng(seed).normal(size=head.key.shape)
                outer = np.einsum("t,ti,tj->tij", head.rate, other, head.key)
                matrices = (np.eye(5) - outer) * np.exp(head.log_gate)[:, None, :]
            closed = head.log_gate.sum(axis=1) + np.log(
                np.abs(1 - head.rate * (head.key**2).sum(axis=1))
            )
            apart = max(apart, np.abs(np.linalg.slogdet(matrices)[1] - closed).max())
            found = lyapunov.lyapunov_spectrum(
                DeltaRecurrence(), jnp.zeros((1, 1, 5)), inputs(head)
            )
            sums = max(sums, abs(float(found.exponents.sum()) - closed.mean()))
    least = min(
        np.abs(1 - h.rate * (h.key**2).sum(axis=1)).min()
        for h in (random_head(seed, 48, 5, most=2.0) for seed in range(4))
    )
    yield Number(
        "random steps: log |det| by NumPy against the closed form, nats",
        float(apart), 200 * UNIT / float(least), "entries of 1 cancel to the least "
        "|1 - beta |k|^2| that is drawn; 5 x 5, 40 roundings an entry",
    )  # fmt: skip
    yield Number(
        "sums of the library's exponents against it, nats a token",
        float(sums), 400 * UNIT, "5 exponents of at most 10, by sums of 48 tokens",
    )  # fmt: skip


STATEMENT = Statement(
    "delta_determinant",
    "The exponents of a head sum to the mean of log |1 - beta |k|^2| and of its log "
    "gates",
    HYPOTHESES,
    "elsewhere: the determinant lemma; that it gives the sum of a delta rule's "
    "exponents exactly, and what the smallest one measures: ours",
    "lyapunov.recurrences.DeltaRecurrence.log_determinant; lyapunov.exponents.OnKeys; "
    "the field `heads.sum` of a report",
    derive,
    reproduce,
)
