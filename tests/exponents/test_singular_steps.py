"""Steps that are nearly singular: rates that rounding hides, and exact zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp

from lyapunov.exponents import (
    QR,
    ParallelInTime,
    finite_time_exponents,
    lyapunov_spectrum,
    lyapunov_spectrum_of,
)
from lyapunov.exponents._singular import log_determinant
from lyapunov.recurrences import GivenJacobians


METHODS = [QR(), QR(block=10), ParallelInTime()]


def turned(angle, falls, tokens=100):
    """A rotation in the first two coordinates times diag(e^fall)."""
    d = len(falls)
    rotation = np.eye(d)
    rotation[:2, :2] = [
        [np.cos(angle), -np.sin(angle)],
        [np.sin(angle), np.cos(angle)],
    ]
    return np.tile(rotation @ np.diag(np.exp(np.array(falls))), (tokens, 1, 1))


def eigenvalues(matrix):
    """Logs of the moduli in 60 digits, the largest first: one matrix at every step."""
    with mp.workdps(60):
        found = mp.eig(mp.matrix(matrix.tolist()), left=False, right=False)
        return sorted((float(mp.log(abs(x))) for x in found), reverse=True)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("fall", [-36.5, -60.0])
def test_a_rate_that_rounding_hides_is_had_from_the_determinant(method, fall):
    """Assert the eigenvalues of a rotation times diag(1, e^fall), which are -0.046 and
    fall + 0.046: a rate below the unit roundoff in one step, and their sum."""
    jacobians = turned(0.3, [0.0, fall])
    wanted = eigenvalues(jacobians[0])
    found = lyapunov_spectrum_of(jacobians, method=method, transient=20)
    np.testing.assert_allclose(found.exponents, wanted, rtol=0, atol=1e-8)
    assert float(found.exponents.sum()) == pytest.approx(fall, abs=1e-12)
    assert not [note for note in found.notes if "-inf" in note]


def test_a_block_that_loses_vectors_is_gone_through_step_by_step():
    """Assert two rates of three, lost within blocks of 10, as by QR() at every step."""
    rng = np.random.default_rng(0)
    bases = np.linalg.qr(rng.normal(size=(60, 3, 3)))[0]
    fall = np.diag(np.exp([-1.0, -7.0, -13.0]))
    jacobians = np.einsum("tij,jk,tkl->til", bases, fall, bases[::-1])
    blocks = lyapunov_spectrum_of(jacobians, method=QR(block=10))
    steps = lyapunov_spectrum_of(jacobians, method=QR())
    assert not [note for note in blocks.notes if "-inf" in note]
    assert np.isfinite(np.asarray(blocks.exponents)).all()
    np.testing.assert_allclose(blocks.exponents, steps.exponents, rtol=0, atol=1e-9)
    # and with fewer vectors than entries, where there is no determinant
    some = lyapunov_spectrum_of(jacobians, k=2, method=QR(block=10), transient=10)
    assert np.isfinite(np.asarray(some.exponents)).all()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_an_exact_zero_stays_minus_infinity_and_is_told(method):
    """Assert -inf with the token of a step that sends a direction to 0, also where the
    step only then turns, and with more than one."""
    jacobians = turned(0.3, [0.0, -1.0, -2.0], tokens=40)
    jacobians[17] = jacobians[17] @ np.diag([1.0, 0.0, 1.0])
    found = lyapunov_spectrum_of(jacobians, method=method)
    assert np.isneginf(np.asarray(found.exponents)).sum() == 1
    assert "-inf: the step at token 17 is exactly singular" in found.notes[-1]
    jacobians[17] = jacobians[17] @ np.diag([1.0, 1.0, 0.0])
    found = lyapunov_spectrum_of(jacobians, method=method)
    assert np.isneginf(np.asarray(found.exponents)).sum() == 2


def test_rates_that_are_hidden_are_told_from_zeros():
    """Assert -inf with a note that the Jacobian cannot tell, where it is rank 1 to
    within rounding, and with one that no step is singular, where its sum is known and
    two rates are lost."""
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    hidden = basis @ np.diag(np.exp([0.0, -40.0, -80.0])) @ basis.T
    found = lyapunov_spectrum_of(np.tile(hidden, (12, 1, 1)))
    assert np.isneginf(np.asarray(found.exponents)).any()
    assert "token 0 is singular to within rounding" in found.notes[-1]
    scaled = basis @ np.diag(np.exp([0.0, -40.0, -80.0]))
    found = lyapunov_spectrum_of(np.tile(scaled, (12, 1, 1)))
    assert np.isneginf(np.asarray(found.exponents)).sum() == 2
    assert "no step is singular; rounding hides rates" in found.notes[-1]


def test_local_exponents_and_derivatives_know_the_hidden_rate():
    """Assert the rate at every token, and the derivative of the sum of exponents by a
    log decay, which is 1, under vmap too."""
    jacobians = jnp.asarray(turned(0.3, [0.0, -40.0], tokens=12))
    local = finite_time_exponents(GivenJacobians(), jnp.zeros(2), jacobians)
    np.testing.assert_allclose(local.exponents.sum(axis=1), -40, rtol=0, atol=1e-11)

    def total(fall):
        falls = jnp.array([0.0, 1.0]) * fall

        def step(x, _):
            return jacobians[0] @ (x * jnp.exp(falls + jnp.array([0.0, 40.0])))

        return lyapunov_spectrum(step, jnp.ones(2), 5, method=QR()).exponents.sum()

    # the second is not hidden: the branch that is not taken must not spoil it
    slopes = jax.vmap(jax.grad(total))(jnp.array([-40.0, -1.0]))
    np.testing.assert_allclose(slopes, 1.0, rtol=1e-9)


def test_determinants_are_right_however_rows_and_columns_are_scaled():
    """Assert against 600 digits, 0 where a row is, and not known at rank 1."""
    rng = np.random.default_rng(2)
    for d in (2, 3, 6):
        scales = np.exp(rng.uniform(-60, 60, size=(2, d)))
        matrix = scales[0][:, None] * rng.normal(size=(d, d)) * scales[1]
        with mp.workdps(600):  # which takes pivots below its digits for 0
            wanted = float(mp.log(abs(mp.det(mp.matrix(matrix.tolist())))))
        found, zero = log_determinant(jnp.asarray(matrix))
        assert float(found) == pytest.approx(wanted, abs=1e-10)
        assert not bool(zero)
    found, zero = log_determinant(jnp.diag(jnp.array([1.0, 0.0])))
    assert np.isneginf(float(found))
    assert bool(zero)
    found, _ = log_determinant(jnp.outer(jnp.array([0.3, 0.7]), jnp.array([0.1, 0.9])))
    assert np.isneginf(float(found))
