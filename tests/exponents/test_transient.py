"""Transient growth against products in many digits, and the Kreiss matrix theorem."""

import math

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from lyapunov.exponents import kreiss_constant, transient_growth
from lyapunov.recurrences import DecayAndDrive, DiagonalRecurrence

from .tolerance import tolerance


def linear(x, matrix):
    return matrix @ x


def grown(Js, **options):
    Js = jnp.asarray(Js)
    return transient_growth(linear, jnp.zeros(Js.shape[-1]), Js, **options)


def log_norm(product) -> float:
    """Of an mpmath matrix, from the largest eigenvalue of P^T P."""
    values = mpmath.eigsy(product.T * product, eigvals_only=True)
    return float(mpmath.log(max(values)) / 2)


@pytest.mark.parametrize("scale", [1.0, 1e-80, 1e80])
def test_norms_are_those_of_products_in_many_digits(scale):
    """Assert every start and stop, far beyond fp64's range as well."""
    Js = scale * np.random.default_rng(0).normal(size=(9, 3, 3))
    found = grown(Js, from_every_token=True)
    with mpmath.workdps(400):
        for start in range(9):
            product = mpmath.eye(3)
            for stop in range(start, 9):
                product = mpmath.matrix(Js[stop].tolist()) * product
                wanted = log_norm(product)
                error = 100 * tolerance(9 * 9) + tolerance(20, abs(wanted))
                got = float(found.log_norms[start, stop])
                assert got == pytest.approx(wanted, abs=error)
    assert np.isneginf(np.asarray(found.log_norms)[np.tril_indices(9, -1)]).all()
    one = grown(Js)
    np.testing.assert_allclose(one.log_norms[0], found.log_norms[0], rtol=1e-14)


def test_the_largest_is_found_with_its_tokens():
    """Assert a shear in the middle that grows 50-fold and is undone later."""
    Js = np.tile(0.9 * np.eye(2), (20, 1, 1))
    Js[7] = [[1, 50], [0, 1]]
    Js[12] = [[1, -50], [0, 1]]
    found = grown(Js, from_every_token=True)
    assert found.where == (7, 8)
    assert float(found.max_log_norm) == pytest.approx(
        math.log((50 + math.sqrt(50**2 + 4)) / 2), abs=tolerance(60)
    )
    # from the first token the same shear comes after seven decays
    first = grown(Js)
    assert first.where == (0, 8)
    assert float(first.max_log_norm) == pytest.approx(
        float(found.max_log_norm) + 7 * math.log(0.9), abs=tolerance(100)
    )
    # all exponents are below 0, and what is left at the end has decayed
    assert float(first.log_norms[0, -1]) == pytest.approx(
        18 * math.log(0.9), abs=tolerance(4000)
    )


def test_diagonal_recurrences_never_grow():
    """Assert the largest sum of log decays, and the dense path beside it."""
    log_decay = -np.random.default_rng(1).exponential(size=(25, 4))
    log_decay[9, 1] = -np.inf
    inputs = DecayAndDrive(jnp.asarray(log_decay), jnp.ones((25, 4)))
    closed = transient_growth(
        DiagonalRecurrence(), jnp.zeros(4), inputs, from_every_token=True
    )
    dense = transient_growth(
        DiagonalRecurrence().step, jnp.zeros(4), inputs, from_every_token=True
    )
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(closed.log_norms, dense.log_norms, atol=1e-13)
    sums = np.cumsum(log_decay[3:], axis=0).max(axis=1)
    np.testing.assert_allclose(closed.log_norms[3, 3:], sums, atol=tolerance(30, 50))
    assert float(closed.max_log_norm) < 0


def test_products_that_vanish_are_minus_infinity():
    """Assert -inf from the zero matrix on, and the tokens before it as they are."""
    Js = np.tile(2 * np.eye(2), (6, 1, 1))
    Js[3] = 0
    found = np.asarray(grown(Js).log_norms)[0]
    np.testing.assert_allclose(found[:3], math.log(2) * np.arange(1, 4), rtol=1e-14)
    assert np.isneginf(found[3:]).all()


def nilpotent_kreiss(c: float) -> float:
    """Of [[0, c], [0, 0]], from the closed form of its resolvent, in 30 digits."""
    with mpmath.workdps(30):

        def value(r):
            s = c / r
            return (r - 1) / r * (s + mpmath.sqrt(s**2 + 4)) / 2

        slope = lambda r: mpmath.diff(value, r)
        best = mpmath.findroot(slope, (1.5, 6.0), solver="anderson", tol=1e-20)
        return float(value(best))


@pytest.mark.parametrize("c", [3.0, 10.0, 1e3, 1e9, 1e14])
def test_kreiss_constant_of_a_nilpotent_matrix(c):
    """Assert the value to 1e-12 and the certificate below the truth."""
    found = kreiss_constant(np.array([[0, c], [0, 0]]))
    wanted = nilpotent_kreiss(c)
    assert found.value == pytest.approx(wanted, rel=1e-12)
    # K is known to 30 digits and rounded once
    assert wanted * (1 - 1e-12) <= found.lower <= wanted * (1 + 2.0**-52)


def test_kreiss_constant_at_the_circle_is_the_projectors_norm():
    """Assert sqrt(1 + (c / (1 - b))^2) for [[1, c], [0, b]], a limit from outside."""
    found = kreiss_constant(np.array([[1, 5.0], [0, 0.5]]))
    wanted = math.sqrt(1 + 10**2)
    assert wanted * (1 - 1e-6) <= found.lower <= wanted


@pytest.mark.parametrize(
    "A",
    [
        np.diag([0.9, -0.5, 0.1]),
        np.array([[0, -1.0], [1.0, 0]]),
        np.eye(3),
        np.zeros((2, 2)),
        np.array([[0.3, 0.4j], [0.4j, 0.3]]),
    ],
)
def test_kreiss_constant_of_a_normal_matrix_is_1(A):
    """Assert 1, exactly."""
    assert kreiss_constant(A) == (1.0, 1.0, complex(math.inf))


@pytest.mark.parametrize(
    "A",
    [np.diag([1.1, 0.5]), np.array([[1, 1.0], [0, 1]]), np.eye(3) + np.eye(3, k=1),
     np.array([[0, -1, 1, 0], [1, 0, 0, 1], [0, 0, 0, -1], [0, 0, 1, 0.0]])],
)  # fmt: skip
def test_kreiss_constant_is_infinite_where_powers_are_not_bounded(A):
    """Assert it outside the circle and of defective eigenvalues on it."""
    found = kreiss_constant(A)
    assert found.value == math.inf
    assert found.lower > 1e5
    assert abs(found.z) > 1


@pytest.mark.parametrize("seed", range(8))
def test_kreiss_matrix_theorem(seed):
    """Assert K <= max ||A^n|| <= e d K, and that K is not a triviality."""
    rng = np.random.default_rng(seed)
    d = int(rng.integers(2, 8))
    A = np.triu(rng.normal(size=(d, d)), 1) * 2 + np.diag(rng.uniform(-0.9, 0.9, d))
    if seed % 2:
        A = A + 1j * np.triu(rng.normal(size=(d, d)), 1)
    found = kreiss_constant(A)
    powers, power = [1.0], np.eye(d)
    for _ in range(300):
        power = A @ power
        powers.append(float(np.linalg.norm(power, 2)))
    assert found.lower <= max(powers) * (1 + 1e-12)
    assert max(powers) <= math.e * d * found.value
    assert found.lower >= found.value * (1 - 1e-6)
    # on these the theorem's left side is within a small factor
    assert max(powers) <= 4 * found.lower
    # a denser search with another parametrisation finds no more than a refined peak
    for r in np.linspace(1.001, 4, 60):
        z = r * np.exp(2j * math.pi * np.arange(120)[:, None, None] / 120)
        s = np.linalg.svd(z * np.eye(d) - A, compute_uv=False)[:, -1]
        assert ((r - 1) / s).max() <= found.value * (1 + 1e-9)


@pytest.mark.parametrize(
    ("A", "words"),
    [
        (np.ones(3), "square"),
        (np.ones((2, 3)), "square"),
        (np.full((2, 2), np.nan), "finite"),
    ],
)
def test_what_is_no_square_matrix_is_refused(A, words):
    """Assert the shape or the reason."""
    with pytest.raises(ValueError, match=words):
        kreiss_constant(A)
