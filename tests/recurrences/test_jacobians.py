"""Closed-form step Jacobians against automatic differentiation and the flow."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree


D_INNER, D_STATE, D_CONV, RANK = 3, 2, 4, 2


def random_layer(seed, d_model=4):
    from lyapunov.arithmetic import Weight
    from lyapunov.sublayers.mamba1 import Mamba1Parameters
    from lyapunov.sublayers.norm import Norm

    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape))

    return Mamba1Parameters(
        norm=Norm(1 + 0.1 * draw(d_model), None, 1e-5),
        in_proj=Weight(draw(2 * D_INNER, d_model)),
        in_proj_bias=None,
        conv_weight=draw(D_INNER, D_CONV),
        conv_bias=draw(D_INNER),
        x_proj=Weight(draw(RANK + 2 * D_STATE, D_INNER)),
        dt_proj=Weight(draw(D_INNER, RANK)),
        dt_bias=draw(D_INNER) - 1,
        A_log=draw(D_INNER, D_STATE),
        D=draw(D_INNER),
        out_proj=Weight(draw(d_model, D_INNER)),
        out_proj_bias=None,
    )


def joint(p):
    from lyapunov.recurrences import Mamba1JointRecurrence

    return Mamba1JointRecurrence(
        p.conv_weight,
        p.conv_bias,
        p.x_proj,
        p.dt_proj,
        p.dt_bias,
        -jnp.exp(p.A_log),
    )


def random_state(seed):
    from lyapunov.recurrences import StateAndWindow

    rng = np.random.default_rng(seed)
    return StateAndWindow(
        jnp.asarray(rng.normal(size=(D_INNER, D_STATE))),
        jnp.asarray(rng.normal(size=(D_CONV - 1, D_INNER))),
    )


def dense_jacobian(recurrence, state, inputs):
    flat, unravel = ravel_pytree(state)
    return jax.jacfwd(lambda x: ravel_pytree(recurrence.step(unravel(x), inputs))[0])(
        flat
    )


@pytest.mark.parametrize("seed", range(3))
def test_step_jacobian_of_mamba1_is_diagonal_with_exp_dt_A(seed):
    """Assert that the closed form is jacfwd's matrix, off-diagonal zeros included."""
    from lyapunov.recurrences import Mamba1Inputs, Mamba1Recurrence

    rng = np.random.default_rng(seed)
    A = -jnp.exp(jnp.asarray(rng.normal(size=(D_INNER, D_STATE))))
    inputs = Mamba1Inputs(
        jnp.asarray(rng.exponential(size=D_INNER)),
        jnp.asarray(rng.normal(size=D_INNER)),
        jnp.asarray(rng.normal(size=D_STATE)),
    )
    recurrence = Mamba1Recurrence(A)
    state = jnp.asarray(rng.normal(size=(D_INNER, D_STATE)))
    closed = recurrence.step_jacobian(state, inputs)
    # two evaluations of exp(dt A), each within 2 ulp of it
    np.testing.assert_allclose(
        closed, dense_jacobian(recurrence, state, inputs), rtol=8 * 2**-53, atol=0
    )
    assert np.count_nonzero(closed) == D_INNER * D_STATE


@pytest.mark.parametrize("seed", range(3))
def test_joint_step_jacobian_is_block_triangular_with_a_nilpotent_window(seed):
    """Assert that the joint closed form is jacfwd's, and its window block nilpotent."""
    p = random_layer(seed)
    recurrence, state = joint(p), random_state(seed)
    inputs = jnp.asarray(np.random.default_rng(seed).normal(size=D_INNER))
    closed = np.asarray(recurrence.step_jacobian(state, inputs))
    differentiated = dense_jacobian(recurrence, state, inputs)
    # sums of fewer than 40 terms through chains of fewer than 20 operations
    np.testing.assert_allclose(
        closed, differentiated, rtol=0, atol=60 * 2**-53 * np.abs(closed).max()
    )
    first = D_INNER * D_STATE
    assert not closed[first:, :first].any()
    assert not np.linalg.matrix_power(closed[first:, first:], D_CONV - 1).any()
    state_block = closed[:first, :first]
    np.testing.assert_array_equal(state_block, np.diag(np.diag(state_block)))
    assert closed[:first, first:].any()
    assert not np.tril(closed, -1).any()


def test_joint_step_is_the_flow_of_the_layer():
    """Assert that stepping the joint recurrence gives the flow's window and state."""
    from lyapunov.arithmetic import Exact
    from lyapunov.recurrences import StateAndWindow
    from lyapunov.sublayers.mamba1 import initial_state, mamba1

    p = random_layer(7)
    residual = jnp.asarray(np.random.default_rng(8).normal(size=(9, 4)))
    _, after = mamba1(Exact(), residual, p, initial_state(p))

    at = Exact()
    assert p.norm is not None
    hat = at.rms_normalise(residual, p.norm.epsilon)
    normed = at.multiply(hat, p.norm.weight)
    recurrence = joint(p)
    state = StateAndWindow(
        jnp.zeros((D_INNER, D_STATE)), jnp.zeros((D_CONV - 1, D_INNER))
    )
    for x in at.matmul(normed, p.in_proj)[:, :D_INNER]:
        state = recurrence.step(state, x)
    held = np.asarray(after.state)
    assert held.shape == (D_STATE, D_INNER)
    np.testing.assert_allclose(state.window, after.window, rtol=0, atol=1e-14)
    np.testing.assert_allclose(
        state.state, held.T, rtol=0, atol=9 * 60 * 2**-53 * np.abs(held).max()
    )


def test_diagonal_step_matches_exact_rationals():
    """Assert that a step with dyadic decays is what exact rationals give."""
    from lyapunov.recurrences import DecayAndDrive, DiagonalRecurrence

    state = jnp.array([1.5, -0.25, 3.0])
    inputs = DecayAndDrive(jnp.array([0.0, -jnp.inf, 0.0]), jnp.array([0.5, 1.0, -4.0]))
    after = DiagonalRecurrence().step(state, inputs)
    decays = [Fraction(1), Fraction(0), Fraction(1)]
    for got, a, h, b in zip(after, decays, state, inputs.drive, strict=True):
        assert Fraction(float(got)) == a * Fraction(float(h)) + Fraction(float(b))


@pytest.mark.parametrize("wrong", [0.0, 1e-300, jnp.nan])
def test_A_that_does_not_decay_is_refused(wrong):
    """Assert that a concrete A that is not negative everywhere is refused in words."""
    from lyapunov.recurrences import Mamba1Recurrence

    with pytest.raises(ValueError, match="A must be negative everywhere"):
        Mamba1Recurrence(jnp.array([[-1.0, wrong]]))


def test_recurrence_can_be_made_under_jit():
    """Assert that the check of A does not get in the way of tracing."""
    from lyapunov.recurrences import Mamba1Inputs, Mamba1Recurrence

    @jax.jit
    def decay(A_log):
        inputs = Mamba1Inputs(jnp.ones(1), jnp.ones(1), jnp.ones(2))
        return Mamba1Recurrence(-jnp.exp(A_log)).log_decay(inputs)

    np.testing.assert_array_equal(decay(jnp.zeros((1, 2))), [[-1.0, -1.0]])
