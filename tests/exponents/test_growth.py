"""Perturbation growth against closed forms: linear maps, a decay, uniform attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.exponents import perturbation_growth
from lyapunov.sublayers.residual import Incoming

from ..helpers import assert_within


SEQ, WIDTH, TOKEN = 40, 3, 10
UNIT = 2.0**-53


def grown(flow, p=None, directions=4, seed=0):
    rng = np.random.default_rng(1)
    stream = rng.normal(size=(SEQ, WIDTH))
    half = jnp.asarray(stream / 2)
    found = perturbation_growth(
        flow, Incoming(half, half), p, None, jax.random.key(seed), directions=directions
    )
    assert found.token == TOKEN
    assert found.distances == [0, 1, 2, 4, 8, 16]
    return found, stream


def drawn(seed, directions):
    """The directions, as the definition draws them."""
    keys = jax.random.split(jax.random.key(seed), directions)
    return [np.asarray(jax.random.normal(k, (SEQ, WIDTH), jnp.float64)) for k in keys]


def rms(values):
    return np.sqrt(np.mean(np.square(values)))


@pytest.mark.parametrize("directions", [1, 4])
def test_a_linear_map_has_the_gain_of_its_matrix(directions):
    W = np.random.default_rng(2).normal(size=(WIDTH, WIDTH))
    linear = lambda at, x, p, start: (at.view(lambda a: a @ W.T, x), start)
    found, x = grown(linear, directions=directions)
    y = x + x @ W.T
    gains, now = [], []
    for v in drawn(0, directions):
        out = v + v @ W.T
        gains.append(
            np.linalg.norm(out)
            * np.linalg.norm(x)
            / (np.linalg.norm(v) * np.linalg.norm(y))
        )
        now.append(
            np.linalg.norm(v[TOKEN] @ W.T) * np.linalg.norm(x[TOKEN])
            / (np.linalg.norm(v[TOKEN]) * np.linalg.norm(y[TOKEN]))
        )  # fmt: skip
    assert_within(found.gain, rms(gains), 200 * UNIT * rms(gains))
    assert_within(found.response[0], rms(now), 50 * UNIT * rms(now))
    # a map without memory does nothing to later tokens
    assert found.response[1:] == [0.0] * 5


def test_a_decay_answers_with_its_powers():
    a = 0.9

    def decaying(at, x, p, start):
        def body(at, state, token):
            state = at.advance(state, a, token)
            return state, state

        _, y = at.scan(body, jnp.zeros(WIDTH), x)
        return y, start

    found, x = grown(decaying)
    states = np.zeros((SEQ, WIDTH))
    h = np.zeros(WIDTH)
    for t in range(SEQ):
        h = a * h + x[t]
        states[t] = h
    size = np.linalg.norm(x + states, axis=-1)
    before = np.linalg.norm(x[TOKEN])
    expected = [a**k * before / size[TOKEN + k] for k in found.distances]
    assert_within(found.response, expected, 400 * UNIT * max(expected))


def test_attention_with_equal_weights_answers_with_their_share():
    def averaging(at, x, p, start):
        weights = at.softmax(jnp.zeros((SEQ, SEQ)), jnp.tril(jnp.ones((SEQ, SEQ))))
        return at.einsum("ls,sd->ld", weights, x), start

    found, x = grown(averaging)
    mean = np.cumsum(x, axis=0) / np.arange(1, SEQ + 1)[:, None]
    size = np.linalg.norm(x + mean, axis=-1)
    before = np.linalg.norm(x[TOKEN])
    expected = [before / (TOKEN + k + 1) / size[TOKEN + k] for k in found.distances]
    assert_within(found.response, expected, 400 * UNIT * max(expected))


def test_nothing_flows_back_in_time_and_seeds_matter():
    """Assert it of a sum of all tokens before, and that other draws differ."""
    summing = lambda at, x, p, start: (at.cumsum(at.multiply(x, x)), start)
    first, _ = grown(summing, directions=1, seed=0)
    again, _ = grown(summing, directions=1, seed=0)
    other, _ = grown(summing, directions=1, seed=1)
    assert first == again
    assert first != other
    assert min(first.response) > 0
