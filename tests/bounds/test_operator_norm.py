"""The certified operator norm: never below the largest singular value."""

import flint
import numpy as np
import pytest

from lyapunov.bounds.operator_norm import operator_norm_bound


def hilbert(n):
    i = np.arange(n)
    return 1.0 / (i[:, None] + i[None, :] + 1)


MATRICES = {
    "wide": lambda rng: rng.normal(size=(20, 300)),
    "tall": lambda rng: rng.normal(size=(300, 20)),
    "one entry": lambda rng: np.array([[-3.0]]),
    "one row": lambda rng: rng.normal(size=(1, 1000)),
    "one column": lambda rng: rng.normal(size=(1000, 1)),
    "rank one": lambda rng: np.outer(rng.normal(size=50), rng.normal(size=40)),
    "all equal": lambda rng: np.ones((64, 64)),
    "identity": lambda rng: np.eye(33),
    "clustered": lambda rng: np.diag(1 - 1e-9 * np.arange(40.0)),
    "ill conditioned": lambda rng: hilbert(30),
    "outlier": lambda rng: np.eye(40) + 1e4 * (np.arange(1600).reshape(40, 40) == 777),
    "huge": lambda rng: 1e30 * rng.normal(size=(8, 9)),
    "tiny": lambda rng: 1e-30 * rng.normal(size=(9, 8)),
    "hidden direction": lambda rng: np.diag([1.0] * 200 + [1.5]),
}


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("name", MATRICES)
def test_bound_is_above_the_largest_singular_value(rng, name, on_device):
    """Assert it against LAPACK's value and its error, and within 3 percent."""
    matrix = MATRICES[name](rng)
    bound = operator_norm_bound(matrix, on_device=on_device)
    value = np.linalg.norm(matrix, 2)
    # backward stable: off by a modest multiple of eps ||W||
    assert bound >= value * (1 - 100 * 2.0**-53)
    assert bound <= 1.03 * value


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("name", ["wide", "clustered", "all equal", "one row"])
def test_bound_is_certified_by_exact_arithmetic(rng, name, on_device):
    """Assert that s^2 I - W W^T has a Cholesky factor in rigorous balls."""
    matrix = MATRICES[name](rng)[:16]
    bound = operator_norm_bound(matrix, on_device=on_device)
    with flint.ctx.workprec(300):
        W = flint.arb_mat([[flint.arb(float(x)) for x in row] for row in matrix])
        n = W.nrows()
        gap = flint.arb_mat(n, n)
        square = W * W.transpose()
        for i in range(n):
            for j in range(n):
                gap[i, j] = (flint.arb(bound) ** 2 if i == j else 0) - square[i, j]
        for k in range(n):  # LDL^T: all pivots positive
            assert gap[k, k] > 0
            for i in range(k + 1, n):
                factor = gap[i, k] / gap[k, k]
                for j in range(k, n):
                    gap[i, j] = gap[i, j] - factor * gap[k, j]


def test_bound_of_nothing_and_of_what_is_not_finite():
    """Assert 0 for zeros, inf for inf and NaN."""
    assert operator_norm_bound(np.zeros((3, 4))) == 0.0
    for bad in (np.inf, -np.inf, np.nan):
        assert operator_norm_bound(np.array([[1.0, bad]])) == np.inf


def test_bound_is_attained_by_a_vector(rng):
    """Assert that it is not vacuous: some x has ||W x|| above 0.97 of it."""
    W = rng.normal(size=(40, 60))
    x = np.linalg.svd(W)[2][0]
    assert np.linalg.norm(W @ x) >= 0.97 * operator_norm_bound(W)
