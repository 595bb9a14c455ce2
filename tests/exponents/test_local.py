"""Growth over windows: it adds up to the spectrum, and each window stands alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.exponents import QR, finite_time_exponents, lyapunov_spectrum
from lyapunov.recurrences import (
    DecayAndDrive,
    DiagonalRecurrence,
    Mamba2Inputs,
    Mamba2Recurrence,
)

from .tolerance import tolerance


def henon(x, _):
    return jnp.array([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])


def linear(x, matrix):
    return matrix @ x


def matrices(tokens=40, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(tokens, d, d))


def gram_schmidt_growth(products, frame):
    """Logs of what classical orthonormalisation takes out at every token."""
    logs = []
    for J in products:
        frame, triangle = np.linalg.qr(J @ frame)
        logs.append(np.log(np.abs(np.diag(triangle))))
    return np.array(logs)


@pytest.mark.parametrize("window", [1, 7, 40, 100])
def test_windows_add_up_to_the_spectrum(window):
    """Assert means over windows against the exponents, the last window shorter."""
    Js = matrices()
    found = finite_time_exponents(linear, jnp.ones(5), jnp.asarray(Js), window=window)
    wanted = lyapunov_spectrum(linear, jnp.ones(5), jnp.asarray(Js), method=QR())
    # condition numbers of random 5 x 5 matrices enter; 1e3 is generous
    error = 1e3 * tolerance(40)
    np.testing.assert_allclose(found.mean, wanted.exponents, rtol=0, atol=error)
    assert found.exponents.shape == (-(-40 // min(window, 40)), 5)
    assert int(found.tokens.sum()) == 40
    assert int(found.ends[-1]) == 40


def test_each_window_is_the_growth_of_its_own_tokens():
    """Assert local exponents against NumPy's QR, and windows against their sums."""
    Js = matrices(seed=3)
    local = finite_time_exponents(linear, jnp.ones(5), jnp.asarray(Js))
    logs = gram_schmidt_growth(Js, np.eye(5))
    order = np.argsort(-logs.sum(axis=0))
    np.testing.assert_allclose(
        local.exponents, logs[:, order], rtol=0, atol=1e3 * tolerance(40)
    )
    windows = finite_time_exponents(linear, jnp.ones(5), jnp.asarray(Js), window=12)
    for i, (a, b) in enumerate([(0, 12), (12, 24), (24, 36), (36, 40)]):
        np.testing.assert_allclose(
            windows.exponents[i],
            local.exponents[a:b].mean(axis=0),
            rtol=0,
            atol=tolerance(20, 10),
        )


def test_local_exponents_of_a_diagonal_recurrence_are_its_log_decays():
    """Assert them exactly, ordered by their means, and by QR of the Jacobians too."""
    log_decay = -np.random.default_rng(1).exponential(size=(30, 4))
    log_decay[11, 2] = -np.inf
    inputs = DecayAndDrive(jnp.asarray(log_decay), jnp.ones((30, 4)))
    found = finite_time_exponents(DiagonalRecurrence(), jnp.zeros(4), inputs, k=4)
    order = np.argsort(-log_decay.mean(axis=0))
    np.testing.assert_array_equal(found.exponents, log_decay[:, order])
    plain = finite_time_exponents(DiagonalRecurrence().step, jnp.zeros(4), inputs)
    # the zero decay is -inf in its own window, and leaves the other columns alone
    assert np.isneginf(found.exponents).sum() == 1
    np.testing.assert_allclose(
        plain.exponents[:12], found.exponents[:12], rtol=0, atol=tolerance(40)
    )
    np.testing.assert_allclose(
        plain.exponents[12:, :3], found.exponents[12:, :3], rtol=0, atol=tolerance(40)
    )


def test_leading_vectors_start_where_the_spectrum_starts():
    """Assert k = 2 of 5 against lyapunov_spectrum with the same key."""
    Js, key = jnp.asarray(matrices(seed=4)), jax.random.key(7)
    found = finite_time_exponents(linear, jnp.ones(5), Js, k=2, key=key, window=8)
    wanted = lyapunov_spectrum(linear, jnp.ones(5), Js, k=2, key=key, method=QR())
    error = 1e3 * tolerance(40)
    np.testing.assert_allclose(found.mean, wanted.exponents, rtol=0, atol=error)


def test_one_decay_a_head_is_one_column():
    """Assert Mamba-2's dt A by token, with the coordinates that share them."""
    rng = np.random.default_rng(5)
    dt = rng.exponential(size=(10, 3))
    A = -np.array([1.0, 0.2, 3.0])
    inputs = Mamba2Inputs(jnp.asarray(dt), jnp.ones((10, 3, 2)), jnp.ones((10, 1, 4)))
    recurrence, state = Mamba2Recurrence(jnp.asarray(A)), jnp.zeros((3, 2, 4))
    found = finite_time_exponents(recurrence, state, inputs)
    wanted = dt * A
    order = np.argsort(-wanted.sum(axis=0))
    np.testing.assert_array_equal(found.exponents, wanted[:, order])
    assert np.asarray(found.multiplicity).tolist() == [8, 8, 8]
    spectrum = lyapunov_spectrum(recurrence, state, inputs)
    np.testing.assert_allclose(
        found.mean, spectrum.exponents, rtol=0, atol=tolerance(20, 30)
    )


def test_windows_are_whole_blocks():
    """Assert windows of blocks of 4, and that others are refused."""
    Js = jnp.asarray(matrices())
    blocks = finite_time_exponents(
        linear, jnp.ones(5), Js, window=8, method=QR(block=4)
    )
    plain = finite_time_exponents(linear, jnp.ones(5), Js, window=8)
    # four products of random 5 x 5 matrices: condition numbers to the fourth
    np.testing.assert_allclose(blocks.exponents, plain.exponents, atol=1e-7)
    with pytest.raises(ValueError, match="multiple of 4"):
        finite_time_exponents(linear, jnp.ones(5), Js, window=6, method=QR(block=4))


def test_autonomous_growth_varies_where_its_mean_does_not():
    """Assert Henon's determinant in every single step, and jit and vmap."""
    run = jax.jit(lambda x: finite_time_exponents(henon, x, 500).exponents)
    local = run(jnp.array([0.1, 0.1]))
    np.testing.assert_allclose(
        local.sum(axis=1), np.log(0.3), rtol=0, atol=tolerance(200)
    )
    assert float(local[:, 0].std()) > 0.3
    batch = jax.vmap(run)(jnp.array([[0.1, 0.1], [0.2, 0.0]]))
    np.testing.assert_allclose(batch[0, :20], local[:20], atol=1e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": jnp.zeros(2, jnp.complex64)}, "real numbers"),
        ({"window": 0}, "window is 0"),
        ({"k": 3}, "k is 3"),
        ({"inputs": 0}, "no tokens"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_words(change, words):
    """Assert that each misuse names what was given."""
    settings = {"state": jnp.zeros(2), "inputs": 5} | change
    state, inputs = settings.pop("state"), settings.pop("inputs")
    with pytest.raises(ValueError, match=words):
        finite_time_exponents(lambda x, _: x / 2, state, inputs, **settings)
