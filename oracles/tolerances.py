"""How far two right computations may lie apart, derived and never tuned."""

import numpy as np


U64 = 2.0**-53


def gamma(operations: int, unit: float) -> float:
    """Higham's gamma_n = n u / (1 - n u): relative error of n chained operations."""
    assert operations * unit < 1
    return operations * unit / (1 - operations * unit)


def condition(forward, weights, tokens, draws: int = 3) -> float:
    """How far logits move per relative error of every weight, by trying.

    A relative error of an intermediate is one of the weights that make it; the largest
    of a few draws, twice, stands for any errors of that size.
    """
    plain, worst = forward(weights, tokens), 0.0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        moved = {
            name: value * (1 + 2.0**-30 * rng.choice([-1, 1], value.shape))
            for name, value in weights.items()
        }
        distance = np.abs(forward(moved, tokens) - plain).max()
        worst = max(worst, distance * 2.0**30)
    return 2 * worst


def exact_logits(weights, config, forward, tokens):
    """NumPy's logits, and what fp64 may put between them and others."""
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    run = lambda w, tokens: forward(w, config, tokens)
    theirs = run(exact, tokens)
    longest = max(shape.shape[-1] for shape in weights.values() if shape.ndim > 1)
    roundings = 16 + longest + 2 * len(tokens)
    return theirs, condition(run, exact, tokens) * gamma(roundings, U64)
