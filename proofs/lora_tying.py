"""LoRA on a projection that makes dt, B and C ties their adaptations together."""

from typing import Any

import jax
import numpy as np
import sympy

import lyapunov

from ._check import counterexample, identity, lemma
from ._layers import UNIT
from ._statement import Hypothesis, Number, Statement


HYPOTHESES = (
    Hypothesis("one_adapter", "one pair U V of rank r adapts the whole matrix"),
    Hypothesis("low_rank", "r is below the columns and the rows of dt, B, C together"),
)


def derive(given):
    """Symbolic rank r and sizes; rows fall into blocks as the checkpoint has them."""
    i, j, k = sympy.symbols("i j k", integer=True)
    r = sympy.Symbol("r", integer=True, positive=True)
    first = sympy.Symbol("o", integer=True, nonnegative=True)
    indexed: Any = sympy.IndexedBase  # its stub knows of no indices
    U, V, own, W = (indexed(name) for name in ("U", "V", "V_B", "W"))
    right = V if "one_adapter" in given else own
    x = indexed("x")
    block = lambda factor, row: sympy.Sum(U[row, k] * factor[k, j], (k, 1, r))
    yield identity(
        "row i of the block that starts at o (dt, B or C in x_proj; z, x, B, C, dt in "
        "in_proj of Mamba-2) is adapted by (U_block V)[i, j]: the same V for each",
        block(right, first + i),
        block(V, first + i),
    )
    d = sympy.Symbol("d", integer=True, positive=True)
    seen = sympy.Sum(block(V, first + i) * x[j], (j, 1, d))
    code = sympy.Sum(V[k, j] * x[j], (j, 1, d))
    fixed: Any = {d: 3, r: 2}
    yield identity(
        "every adapted block reads the token through the same r numbers V x (written "
        "out for d = 3, r = 2; for all d and r it is that finite sums commute)",
        sympy.expand(seen.subs(fixed).doit()),
        sympy.expand(sympy.Sum(U[first + i, k] * code, (k, 1, r)).subs(fixed).doit()),
    )
    yield lemma(
        "finite sums commute (Fubini), and rank(U V) <= r: the stacked adaptation of "
        "dt, B and C has rank at most r, its rows lie in the row space of V",
        "Horn and Johnson, Matrix Analysis, 2nd ed., section 0.4.5",
        applies="one_adapter" in given,
    )
    e = sympy.eye(3)
    yield counterexample(
        "not tied when dt, B and C have adapters of their own: rank 1 each, with "
        "V = e_1, e_2, e_3, stack to rank 3",
        sympy.Matrix.vstack(e[0, :], e[1, :], e[2, :]).rank() == 3,
    )
    free = sympy.Matrix(3, 3, lambda a, b: W[a, b])
    yield identity(
        "nor when r reaches the number of columns: any change W is (U = W) (V = I)",
        free * e,
        free,
    )
    most = 1 if "low_rank" in given else 3
    yield counterexample(
        "so it does restrict for smaller r: the identity of 3 x 3 is no U V of rank r",
        most < e.rank(),
        f"rank {e.rank()} against r = {most}",
    )
    M = indexed("M")
    made: Any = sympy.Sum(W[first + i, j] * x[j], (j, 1, d))
    yield identity(
        "and an adapter on dt_proj, M, leaves B and C = W_block x as they are: they "
        "are split off before it",
        made.diff(M[i, k]),
        sympy.Integer(0),
    )


def reproduce(given):
    """Random adapters on the bundled model's x_proj, every layer."""
    rank, rng = 2, np.random.default_rng(0)
    model = lyapunov.load()
    worst, alike, blocks_worst = 0.0, 0.0, np.inf
    with jax.enable_x64(True):
        for layer in model.sublayers:
            p = model.parameters(layer.layer)
            W = np.asarray(p.x_proj.matrix)
            n, split = p.A_log.shape[1], p.dt_proj.matrix.shape[1]
            parts = [slice(0, split), slice(split, split + n), slice(split + n, None)]
            U = rng.normal(size=(W.shape[0], rank))
            V = rng.normal(size=(rank, W.shape[1])) * np.abs(W).max()
            if "one_adapter" in given:
                adapted = W + U @ V
            else:
                adapted = W + np.concatenate(
                    [U[part] @ rng.normal(size=V.shape) for part in parts]
                )
            change = adapted - W
            values = np.linalg.svd(change, compute_uv=False)
            worst = max(worst, values[rank] / values[0])
            separate = np.concatenate(
                [U[part] @ rng.normal(size=V.shape) for part in parts]
            )
            blocks_worst = min(blocks_worst, np.linalg.matrix_rank(separate))
            space = np.linalg.svd(V, full_matrices=False)[2]
            for part in parts:
                outside = change[part] - change[part] @ space.T @ space
                alike = max(alike, np.abs(outside).max() / np.abs(change).max())
    size = 256 * 8 * UNIT
    yield Number(
        "bundled model, rank 2 on x_proj: third singular value of the change over the "
        "first",
        float(worst),
        size,
        "8 roundings an entry, 256 columns",
    )
    yield Number(
        "the same: what of dt, B and C lies outside the row space of V, relative",
        float(alike),
        size,
        "the same",
    )
    yield Number(
        "three adapters instead: 6 less the rank of the change",
        float(6 - blocks_worst),
        0.0,
        "an integer",
    )


STATEMENT = Statement(
    "lora_tying",
    "LoRA on x_proj (in_proj in Mamba-2) ties the adaptations of dt, B and C",
    HYPOTHESES,
    "paper (2406.00209); when it does not tie: ours",
    "adapters in lyapunov.checkpoints, whose W + U V is what exponents are computed of",
    derive,
    reproduce,
)
