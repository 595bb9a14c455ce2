"""The whole teacher-forced stack: its exponents are those of its layers together."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from .tolerance import tolerance


pytest.importorskip("flint")

TOKENS = 48
SHAPE = {"layers": 2, "d_model": 3, "d_inner": 3, "d_state": 2, "d_conv": 3}
SETTLE = SHAPE["layers"] * (SHAPE["d_conv"] - 1)
STATES = SHAPE["layers"] * SHAPE["d_inner"] * SHAPE["d_state"]
WINDOWS = SHAPE["layers"] * SHAPE["d_inner"] * (SHAPE["d_conv"] - 1)


@pytest.fixture(scope="module")
def stack():
    """A stack, its inputs, its dense Jacobians and the layers' log decays."""
    from analysis.stack_exponents import random_stack, run

    made = random_stack(3, **SHAPE)
    xs = jnp.asarray(np.random.default_rng(4).normal(size=(TOKENS, 3)))
    return made, xs, *map(np.asarray, run(made, xs))


def test_step_of_the_stack_is_the_network_run_token_by_token(stack):
    """Assert that stepping gives the windows and states of a whole-sequence run."""
    from lyapunov.arithmetic import Exact
    from lyapunov.sublayers.mamba1 import initial_state, mamba1
    from lyapunov.sublayers.residual import Incoming, sublayer

    made, xs, *_ = stack
    state, _ = jax.lax.scan(lambda h, x: (made.step(h, x), None), made.start(), xs)
    residual, hidden = xs, jnp.zeros_like(xs)
    for p, (h, window) in zip(made.layers, reversed(state), strict=True):
        start = initial_state(p)
        residual, hidden, after = sublayer(
            Exact(), mamba1, Incoming(residual, hidden), p, start
        )
        for got, wanted in ((h, after.state), (window, after.window)):
            # sums of up to 10 terms in a chain of 20 operations, a token and a layer
            error = tolerance(200 * TOKENS, float(jnp.abs(wanted).max()))
            np.testing.assert_allclose(got, wanted, rtol=0, atol=error)


def test_step_jacobian_is_triangular_with_the_layers_decays_on_the_diagonal(stack):
    """Assert exact zeros below the diagonal, decays and 0 on it, coupling above."""
    from analysis.stack_exponents import structure

    *_, jacobians, log_decays = stack
    assert jacobians.shape == (TOKENS, STATES + WINDOWS, STATES + WINDOWS)
    found = structure(jacobians, log_decays)
    assert found["largest_below_diagonal"] == 0
    assert found["largest_diagonal_error"] <= tolerance(8)
    assert found["largest_above_diagonal"] > 1


@pytest.mark.parametrize("tokens", [1, 5])
def test_eigenvalues_of_the_product_unite_exactly(stack, tokens):
    """Assert equal characteristic polynomials in rationals, coordinates shuffled."""
    from analysis.stack_exponents import eigenvalues_unite

    *_, jacobians, log_decays = stack
    found = eigenvalues_unite(jacobians[:tokens], log_decays[:tokens], seed=0)
    assert found["characteristic_polynomials_equal"]
    assert found["zero_eigenvalues"] == WINDOWS
    assert found["largest_log_eigenvalue_error"] <= tolerance(8 * tokens, 4)


def test_spectrum_of_the_stack_is_the_closed_forms_of_its_layers(stack):
    """Assert that QR through all layers gives the layers' exponents and -inf."""
    from lyapunov.exponents import QR, lyapunov_spectrum

    made, xs, _, log_decays = stack
    got = lyapunov_spectrum(made.step, made.start(), xs, method=QR()).exponents
    wanted = np.sort(log_decays.mean(axis=0))[::-1]
    assert np.isneginf(got[STATES:]).all()
    error = tolerance(20, np.abs(wanted[:STATES]).max())
    np.testing.assert_allclose(got[:STATES], wanted[:STATES], rtol=0, atol=error)


@pytest.mark.parametrize("tokens", [8, TOKENS])
def test_singular_values_in_the_log_domain_are_those_of_the_product(stack, tokens):
    """Assert log singular values against an SVD of the product in many digits."""
    from analysis.stack_exponents import log_singular_values

    *_, jacobians, _ = stack
    got = log_singular_values(jacobians[:tokens], STATES, SETTLE)
    with mpmath.workdps(60 + 3 * tokens):
        product = mpmath.eye(STATES + WINDOWS)
        for jacobian in jacobians[:tokens]:
            product = mpmath.matrix(jacobian.tolist()) * product
        values = sorted(mpmath.svd_r(product, compute_uv=False), reverse=True)
        wanted = [float(mpmath.log(value)) for value in values[:STATES]]
        # the windows' directions are gone, to the digits that there are
        assert all(value < mpmath.mpf(10) ** -50 for value in values[STATES:])
    # six sweeps of QR over the tokens, some 30 operations a column each
    error = tolerance(6 * 30 * tokens)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=error)


def test_finite_time_difference_is_there_and_shrinks(stack):
    """Assert that singular values are not the eigenvalues at T, and approach them."""
    from analysis.stack_exponents import finite_time, run

    made, *_ = stack
    xs = jnp.asarray(np.random.default_rng(5).normal(size=(512, 3)))
    both = run(made, xs)
    short, long = (
        finite_time(*both, SETTLE, tokens)["largest_difference"] for tokens in (8, 512)
    )
    assert short > 1e-3
    # by 1/T it would be 64 times smaller; pairs of near exponents are slower
    assert 0 < long < short / 8
