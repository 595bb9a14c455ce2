"""Mamba-3's recurrence: Jacobian, exponents in both frames, steps, and mutants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lyapunov.exponents import QR, lyapunov_spectrum
from lyapunov.recurrences import (
    DecayAndDrive,
    Mamba3Carried,
    Mamba3Inputs,
    Mamba3JointRecurrence,
    Mamba3Recurrence,
    mamba3 as module,
)
from oracles.networks.mamba3 import rotation

from ..exponents.tolerance import tolerance
from ..helpers import assert_within, gamma


UNIT = 2.0**-53
HEADS, SIZE, D_STATE, ANGLES, TOKENS = 2, 3, 4, 1, 17
KINDS = [(1, True), (3, False)]
"""SISO with its pairs, MIMO with its own."""


def drawn(rank, seed=0):
    """A carried state and random inputs of a sequence."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    carried = Mamba3Carried(
        normal(HEADS, SIZE, D_STATE),
        normal(rank, HEADS, D_STATE),
        normal(rank, HEADS, SIZE),
        normal(HEADS, ANGLES),
    )
    inputs = Mamba3Inputs(
        dt=jnp.asarray(rng.exponential(0.5, size=(TOKENS, HEADS))),
        A=-jnp.asarray(rng.exponential(0.5, size=(TOKENS, HEADS))),
        trapezoid=jnp.asarray(rng.uniform(0.1, 0.9, size=(TOKENS, HEADS))),
        turn=normal(TOKENS, HEADS, ANGLES),
        k=normal(TOKENS, rank, HEADS, D_STATE),
        v=normal(TOKENS, rank, HEADS, SIZE),
    )
    return carried, inputs


def token(inputs, t):
    return jax.tree.map(lambda x: x[t], inputs)


def stepped(carried, inputs, pairwise):
    """What is carried after every token, in NumPy, by the reference's formulas."""
    H, k, v, theta = (np.asarray(part).copy() for part in carried)
    out = []
    for t in range(TOKENS):
        dt, A, lam, turn, new_k, new_v = (np.asarray(x[t]) for x in inputs)
        theta = theta + turn
        turned = np.empty_like(new_k)
        for h in range(HEADS):
            turned[:, h] = new_k[:, h] @ rotation(theta[h], D_STATE, pairwise).T
            alpha = np.exp(A[h] * dt[h])
            H[h] = (
                alpha * H[h]
                + (1 - lam[h]) * dt[h] * alpha * (v[:, h].T @ k[:, h])
                + lam[h] * dt[h] * (new_v[:, h].T @ turned[:, h])
            )
        k, v = turned, new_v
        out.append((H.copy(), k, v, theta))
    return out


def distance_from_numpy(rank, pairwise):
    """The largest distance of carried states, over what roundings allow."""
    carried, inputs = drawn(rank)
    recurrence, state, worst = Mamba3JointRecurrence(pairwise), carried, 0.0
    for t, expected in enumerate(stepped(carried, inputs, pairwise)):
        state = recurrence.step(state, token(inputs, t))
        for one, other in zip(state, expected, strict=True):
            # some twenty roundings a token, on sums of as many products as ranks
            allowed = gamma(40 * TOKENS, UNIT) * (1 + np.abs(other).max())
            worst = max(worst, np.abs(np.asarray(one) - other).max() / allowed)
    return worst


@pytest.mark.parametrize(("rank", "pairwise"), KINDS)
def test_steps_are_the_references(rank, pairwise):
    """Assert all that is carried after every token."""
    assert distance_from_numpy(rank, pairwise) <= 1


@pytest.mark.parametrize("mutant", ["beta", "sign", "pairs", "angle"])
def test_a_wrong_step_is_caught(monkeypatch, mutant):
    """Assert that beta without alpha, a turn the other way or of other pairs, and an
    angle of the token before do not pass."""
    update, turn = module.update, module.turn

    def wrong_update(at, state, log_decay, before, now):
        weight, k, v = before
        return update(at, state, log_decay, (weight * jnp.exp(-log_decay), k, v), now)

    def wrong_turn(at, x, cos, sin, *, pairwise):
        if mutant == "pairs":
            return turn(at, x, cos, sin, pairwise=not pairwise)
        if mutant == "sign":
            return turn(at, x, cos, -sin, pairwise=pairwise)
        return turn(at, x, jnp.ones_like(cos), 0 * sin, pairwise=pairwise)

    if mutant == "beta":
        monkeypatch.setattr(module, "update", wrong_update)
    else:
        monkeypatch.setattr(module, "turn", wrong_turn)
    assert distance_from_numpy(1, True) > 1e6


@pytest.mark.parametrize(("rank", "pairwise"), KINDS)
def test_step_jacobian_is_jacfwds(rank, pairwise):
    """Assert every entry of the closed form, and where it is 0 and 1."""
    carried, inputs = drawn(rank)
    recurrence = Mamba3JointRecurrence(pairwise)
    flat, unravel = ravel_pytree(carried)
    now = token(inputs, 0)
    dense = jax.jacfwd(lambda x: ravel_pytree(recurrence.step(unravel(x), now))[0])(
        flat
    )
    closed = np.asarray(recurrence.step_jacobian(carried, now))
    assert_within(closed, dense, gamma(64, UNIT) * np.abs(dense).max())
    # upper triangular; alpha on H, nothing on the last k and v, 1 on the angle
    assert np.count_nonzero(np.tril(closed, -1)) == 0
    alpha = np.exp(np.asarray(now.dt * now.A))
    diagonal = np.concatenate(
        [np.repeat(alpha, SIZE * D_STATE), np.zeros(carried.k.size + carried.v.size),
         np.ones(carried.angle.size)]
    )  # fmt: skip
    np.testing.assert_allclose(np.diag(closed), diagonal, rtol=8 * UNIT, atol=0)
    # all three couplings into H are there
    size = carried.state.size
    ends = np.cumsum([size, carried.k.size, carried.v.size])
    for block in np.split(closed[:size], ends, axis=1)[1:]:
        assert np.abs(block).max() > 1e-3


@pytest.mark.parametrize(("rank", "pairwise"), KINDS)
def test_exponents_are_means_of_log_decays_zero_and_minus_infinity(rank, pairwise):
    """Assert H's, the angle's and the window's, of the dense QR product."""
    carried, inputs = drawn(rank)
    joint = Mamba3JointRecurrence(pairwise)
    found = np.asarray(lyapunov_spectrum(joint, carried, inputs, method=QR()).exponents)
    log_decay = inputs.dt * inputs.A
    means = np.repeat(np.asarray(log_decay).mean(axis=0), SIZE * D_STATE)
    error = tolerance(20 * found.size, max(1, float(np.abs(means).max())))
    finite = found[np.isfinite(found)]
    expected = np.sort(np.concatenate([np.zeros(carried.angle.size), means]))[::-1]
    np.testing.assert_allclose(finite, expected, rtol=0, atol=error)
    assert np.isneginf(found).sum() == carried.k.size + carried.v.size
    # H alone is diagonal
    shape = (TOKENS, HEADS, SIZE, D_STATE)
    alone = DecayAndDrive(log_decay, jnp.ones(shape))
    closed = lyapunov_spectrum(Mamba3Recurrence(), carried.state, alone)
    assert closed.method == "ClosedForm()"
    np.testing.assert_allclose(
        closed.repeated, np.sort(means)[::-1], rtol=0, atol=error
    )


def test_exponents_are_the_same_in_the_frame_that_turns():
    """Assert them of the product of alpha times rotations, whose eigenvalues are
    complex."""
    _, inputs = drawn(1)
    product, head = np.eye(D_STATE), 0
    for t in range(TOKENS):
        alpha = np.exp(float(inputs.dt[t, head] * inputs.A[t, head]))
        one = alpha * rotation(np.asarray(inputs.turn[t, head]), D_STATE, True)
        assert np.abs(np.linalg.eigvals(one).imag).max() > 0
        product = one @ product
    values = np.log(np.linalg.svd(product, compute_uv=False)) / TOKENS
    mean = float((inputs.dt * inputs.A)[:, head].mean())
    np.testing.assert_allclose(values, mean, rtol=0, atol=tolerance(200))
