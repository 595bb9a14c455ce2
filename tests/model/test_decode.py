"""Step by step, in chunks and whole: one network."""

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import lyapunov
from lyapunov.arithmetic import Exact, Rounded
from lyapunov.implementations import mamba_ssm_prefill
from lyapunov.sublayers.mamba1 import initial_state, mamba1
from oracles.checkpoints.mamba1 import save_transformers
from oracles.networks.mamba1 import Sizes, random_weights

from ..helpers import assert_within, gamma


SEQ = 32
UNIT = 2.0**-53


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    sizes = Sizes(layers=1)
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("decode") / "model"
    save_transformers(folder, random_weights(rng, sizes), sizes)
    stream = jnp.asarray(rng.normal(size=(SEQ, sizes.d_model)))
    return lyapunov.load(folder).parameters(0), stream


@eqx.filter_jit
def run(x, p, start):
    return mamba1(Exact(), x, p, start)


def in_chunks(x, p, lengths):
    state, outputs, first = initial_state(p), [], 0
    for length in lengths:
        out, state = run(x[first : first + length], p, state)
        outputs.append(out)
        first += length
    assert first == len(x)
    return jnp.concatenate(outputs), state


@pytest.mark.parametrize(
    "lengths",
    [[1] * SEQ, [7, 1, 24], [2, 1, 1, 28], [24, 8]],
    ids=lambda lengths: f"{len(lengths)} parts",
)
def test_parts_give_the_whole(layer, lengths):
    """Assert outputs, window and state; parts shorter than the conv's window too."""
    p, stream = layer
    whole, after = run(stream, p, initial_state(p))
    parts, last = in_chunks(stream, p, lengths)
    # the order inside a token is the same, but XLA may order sums otherwise
    scale = np.abs(np.asarray(whole)).max()
    assert_within(parts, whole, gamma(200, UNIT) * scale, "output")
    assert_within(last.window, after.window, gamma(200, UNIT) * 10, "window")
    scale = np.abs(np.asarray(after.state)).max()
    assert_within(last.state, after.state, gamma(200, UNIT) * scale, "state")


def test_the_future_does_not_reach_the_past(layer):
    """Assert causality: other tokens later change no output before, bit for bit."""
    p, stream = layer
    whole, _ = run(stream, p, initial_state(p))
    changed = stream.at[20:].multiply(-3.0)
    other, _ = run(changed, p, initial_state(p))
    np.testing.assert_array_equal(whole[:20], other[:20])
    assert (np.asarray(whole[20]) != np.asarray(other[20])).any()


def test_a_stale_state_is_noticed(layer):
    """Assert that window and state both matter to what comes next."""
    p, stream = layer
    whole, _ = run(stream, p, initial_state(p))
    _, state = run(stream[:24], p, initial_state(p))
    for forget in ("window", "state"):
        stale = eqx.tree_at(
            lambda s, n=forget: getattr(s, n), state, replace_fn=jnp.zeros_like
        )
        out, _ = run(stream[24:], p, stale)
        assert np.abs(np.asarray(out - whole[24:])).max() > 1e-6


def test_decoding_in_bf16_keeps_what_it_stores_representable(layer):
    """Assert that the emulator's carried window is in the format, and parts agree.

    The conv's window is cut from a stored tensor; the state stays wide.
    """
    p, stream = layer
    sites = mamba_ssm_prefill("bf16").site_numbers()

    @jax.jit
    def one(x, p, start):
        return mamba1(Rounded(sites), x, p, start)

    whole, _ = one(stream, p, initial_state(p))
    state, outputs = initial_state(p), []
    for first in range(0, SEQ, 8):
        out, state = one(stream[first : first + 8], p, state)
        outputs.append(out)
        window = np.asarray(state.window, np.float64)

        assert np.array_equal(window, window.astype(ml_dtypes.bfloat16).astype(float))
    # identical operations on identical numbers, rounded to 8 bits each
    parts = np.concatenate([np.asarray(o) for o in outputs])
    different = parts != np.asarray(whole)
    assert different.mean() <= 0.01
    step = 2.0**-7 * np.abs(np.asarray(whole))
    assert (np.abs(parts - np.asarray(whole)) <= step)[different].all()
