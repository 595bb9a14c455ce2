"""Covariant vectors: the Jacobians send each to the next, and they grow as they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.exponents import covariant_lyapunov_vectors
from lyapunov.exponents._covariant import backward, frames_along
from lyapunov.exponents._method import System

from .tolerance import tolerance


UNIT = 2.0**-53


def henon(x, _):
    return jnp.array([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])


def henon_jacobians(states):
    x = np.asarray(states)[:-1, 0]
    return np.stack(
        [np.stack([-2.8 * x, np.ones_like(x)], 1), np.tile([0.3, 0.0], (len(x), 1))], 1
    )


def linear(x, matrix):
    return matrix @ x


def driven(tokens=300, d=5, seed=0):
    """Random matrices, the inputs of a dense linear system, far from singular."""
    rng = np.random.default_rng(seed)
    return np.eye(d) * 0.7 + 0.4 * rng.normal(size=(tokens, d, d))


def sines(Js, vectors):
    """Sines of the angles between J v_n and v_{n+1}, and norms of J v_n."""
    pushed = np.einsum("nij,njk->nik", Js, vectors[:-1])
    size = np.linalg.norm(pushed, axis=1)
    after = vectors[1:]
    along = np.sum(pushed * after, axis=1, keepdims=True)
    return np.linalg.norm(pushed - along * after, axis=1) / size, size


def allowed(Js, size):
    """Rounding of J v and of the frames, relative to what is left of v after J."""
    d = Js.shape[-1]
    norms = np.linalg.norm(Js, ord=2, axis=(1, 2))[:, None]
    # Householder QR d^2 roundings a column, the back substitution and products d each
    return (d**2 + 4 * d + 8) * 2 * UNIT * np.sqrt(d) * norms / size


@functools.cache
def henon_vectors():
    return covariant_lyapunov_vectors(henon, jnp.array([0.1, 0.1]), 2000, transient=100)


def test_on_henon_each_vector_is_sent_to_the_next():
    """Assert sin(J v_i, v_{i+1}) within rounding, on a map, and their growth."""
    found = henon_vectors()
    Js, vectors = henon_jacobians(found.states), np.asarray(found.vectors)
    sine, size = sines(Js, vectors)
    assert vectors.shape == (1801, 2, 2)
    assert (sine <= allowed(Js, size)).all()
    assert sine.max() < 1e-12
    np.testing.assert_allclose(
        found.log_growth, np.log(size), rtol=0, atol=allowed(Js, size).max()
    )


@pytest.mark.parametrize("k", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_on_a_dense_driven_system_each_vector_is_sent_to_the_next(k):
    """Assert it of the leading vectors of 5 x 5 invertible matrices, and of all."""
    Js = driven()
    found = covariant_lyapunov_vectors(
        linear, jnp.ones(5), jnp.asarray(Js), transient=60, k=k
    )
    sine, size = sines(Js[60:-60], np.asarray(found.vectors))
    assert (sine <= allowed(Js[60:-60], size)).all()
    assert sine.max() < 1e-11


def test_triangles_shifted_by_one_token_are_caught():
    """Assert that R_i in place of R_{i+1} breaks covariance, and on most tokens."""
    start = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (2, 2)))[0]
    frames = frames_along(System.of(henon, jnp.array([0.1, 0.1])), None, 500, start)
    last = jnp.array([[1.0, 0.4], [0.0, 1.0]])
    every = np.concatenate([np.asarray(start)[None], np.asarray(frames.frames)])
    states = np.concatenate([[[0.1, 0.1]], np.asarray(frames.states)])
    for shift, right in ((0, True), (1, False), (-1, False)):
        before, _ = backward(jnp.roll(frames.triangles, shift, axis=0), last)
        vectors = np.einsum("ndk,nkj->ndj", every, np.asarray(before))[50:-50]
        sine, _ = sines(henon_jacobians(states[50:-50]), vectors)
        assert (np.median(sine[:, 1]) < 1e-12) == right
        assert (np.median(sine[:, 1]) > 0.1) == (not right)


def test_growth_is_that_of_the_frames_but_for_the_ends():
    """Assert sum log g = sum log r + log a(start) - log a(end), an identity."""
    start = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (5, 5)))[0]
    frames = frames_along(
        System.of(linear, jnp.ones(5)), jnp.asarray(driven()), 300, start
    )
    before, growth = backward(frames.triangles, jnp.triu(jnp.ones((5, 5))))
    diagonal = np.diagonal(np.asarray(frames.triangles), axis1=1, axis2=2)
    ends = np.log(np.diagonal(np.asarray(before)[[0, -1]], axis1=1, axis2=2))
    wanted = np.log(diagonal).sum(axis=0) + ends[0] - ends[1]
    total = np.asarray(growth).sum(axis=0)
    np.testing.assert_allclose(total, wanted, rtol=0, atol=300 * tolerance(60))


def test_growth_of_the_vectors_is_the_exponents():
    """Assert them on a linear map whose eigenvectors and eigenvalues are known."""
    rng = np.random.default_rng(2)
    basis = rng.normal(size=(4, 4))
    basis /= np.linalg.norm(basis, axis=0)
    rates = np.array([1.5, 1.0, -0.6, 0.3])
    A = basis @ np.diag(rates) @ np.linalg.inv(basis)
    found = covariant_lyapunov_vectors(
        lambda x, _: jnp.asarray(A) @ x, jnp.ones(4), 400, transient=150
    )
    # what 150 steps leave of the start: at most (1 / 1.5)^150 = 4e-27
    error = 1e3 * np.linalg.cond(basis) * tolerance(30)
    np.testing.assert_allclose(
        found.exponents, np.log(np.abs(rates)), rtol=0, atol=error
    )
    overlap = np.abs(np.einsum("ndk,dk->nk", np.asarray(found.vectors), basis))
    np.testing.assert_allclose(overlap, 1, rtol=0, atol=error)
    gram = np.abs(basis.T @ basis)
    angles = np.arccos(np.minimum(gram, 1.0))
    away = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(
        np.asarray(found.angles)[7][away], angles[away], rtol=0, atol=10 * error
    )
    assert (np.diagonal(np.asarray(found.angles)[7]) == 0).all()


def test_the_second_vector_of_henon_is_the_stable_direction():
    """Assert it against inverse Jacobians run back from far in the future."""
    found = henon_vectors()
    Js = henon_jacobians(found.states)
    w = np.array([0.3, 1.0])
    stable = []
    for J in Js[::-1]:
        w = np.linalg.solve(J, w)
        w /= np.linalg.norm(w)
        stable.append(w)
    stable = np.array(stable[::-1])
    v = np.asarray(found.vectors)[:-1, :, 1]
    sine = np.abs(v[:, 0] * stable[:, 1] - v[:, 1] * stable[:, 0])
    assert sine[:1700].max() < 1e-12  # 100 steps or more from that end
    # far from the first vector on average, nearly tangent at times
    angle = np.asarray(found.angles)[:, 0, 1]
    assert np.median(angle) > 0.3
    assert 0 < angle.min() < 0.1


@pytest.mark.parametrize(
    ("step", "inputs", "transient", "words"),
    [
        (lambda x, u: u * x, np.where(np.arange(40)[:, None] == 17, [1.0, 0.0], 0.9),
         3, "token 17 is singular"),
        (lambda x, _: jnp.array([x[0], x[0]]) / 2, 40, 3, "token 1 is singular"),
        (lambda x, _: x**3 * 1e30, 40, 3, "token [0-9]+ is not finite"),
        (lambda x, _: x / 2, 6, 3, "needed twice"),
        (lambda x, _: x / 2, 6, -1, "transient is -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_back_is_refused_with_the_token(
    step, inputs, transient, words
):
    """Assert that singular steps are named, and too short trajectories."""
    inputs = inputs if isinstance(inputs, int) else jnp.asarray(inputs)
    with pytest.raises(ValueError, match=words):
        covariant_lyapunov_vectors(
            step, jnp.array([1.1, 1.2]), inputs, transient=transient
        )


def test_under_jit_vectors_behind_a_singular_step_are_nan():
    """Assert NaN, not a number, where an error cannot be raised."""
    scale = jnp.asarray(np.where(np.arange(40)[:, None] == 17, [1.0, 0.0], [0.9, 0.8]))

    @jax.jit
    def vectors(scale):
        found = covariant_lyapunov_vectors(
            lambda x, u: u * x, jnp.ones(2), scale, transient=3
        )
        return found.vectors

    found = np.asarray(vectors(scale))
    assert np.isnan(found[: 17 - 3 + 1]).all()
    assert np.isfinite(found[17 - 3 + 1 :]).all()
