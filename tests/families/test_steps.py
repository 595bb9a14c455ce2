"""Every kind of sublayer token by token, in parts and whole: one function."""

import functools
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from lyapunov.arithmetic import Exact
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.mamba_ssm import (
    CONFIGS,
    drawn,
    full_config,
    mamba_ssm_shapes,
    save as save_mamba_ssm,
)
from oracles.checkpoints.transformers import make, save

from ..helpers import assert_within, gamma


SEQ, UNIT = 8, 2.0**-53
OF = {
    "falcon_mamba": ["mamba1"],
    "mamba2": ["mamba2"],
    "zamba": ["shared", "mamba1"],
    "zamba2": ["shared", "mamba2"],
    "nemotron_h": ["experts", "attention", "mlp"],
    "falcon_h1": ["mamba2", "attention", "mlp"],
    "granitemoehybrid": ["mamba2", "experts"],
    "olmo2": ["attention", "mlp"],
    "mamba_ssm": ["attention"],
}
# what a quick run leaves out is another family's of the same kind
AGAIN = [
    ("zamba2", "mamba2"), ("granitemoehybrid", "mamba2"), ("zamba", "shared"),
    ("falcon_h1", "mamba2"),
    ("granitemoehybrid", "experts"), ("falcon_h1", "attention"), ("falcon_h1", "mlp"),
]  # fmt: skip
KINDS = [
    pytest.param(
        (family, kind), marks=[pytest.mark.slow] if (family, kind) in AGAIN else []
    )
    for family, kinds in OF.items()
    for kind in kinds
]


@functools.cache
def model(family):
    folder = Path(tempfile.mkdtemp(prefix="lyapunov-test-"))
    if family == "mamba_ssm":
        config = full_config(CONFIGS["attention with a convolution"])
        weights = drawn(mamba_ssm_shapes(config), np.random.default_rng(5))
        return lyapunov.load(save_mamba_ssm(folder, weights, config))
    settings = next(iter(CONFIGURATIONS[family].values()))
    return lyapunov.load(save(make(family, **settings), folder))


@functools.cache
def prepared(family, kind):
    """A flow, its parameters and a stream that it may read."""
    network = model(family)
    found = next(one for one in network.sublayers if one.kind == kind)
    width = network.config.d_model * (2 if found.embedded else 1)
    stream = np.random.default_rng(6).normal(size=(SEQ, width))
    run = eqx.filter_jit(lambda x, p, start: found.flow(Exact(), x, p, start))
    return run, network.parameters(found.layer), jnp.asarray(stream)


@pytest.fixture(params=KINDS, ids=lambda one: " ".join(one))
def sublayer(request):
    """As `prepared` gives it, for each kind of each family."""
    return prepared(*request.param)


@pytest.mark.parametrize(
    "lengths",
    [[6, 1, 1], pytest.param([1] * 3 + [5], marks=pytest.mark.slow)],
    ids=["prefill and steps", "steps first"],
)
def test_parts_give_the_whole(sublayer, lengths):
    """Assert outputs and what is carried, for parts shorter than any window too."""
    run, p, stream = sublayer
    whole, after = run(stream, p, p.initial_state())
    state, outputs, first = p.initial_state(), [], 0
    for length in lengths:
        out, state = run(stream[first : first + length], p, state)
        outputs.append(out)
        first += length
    parts = jnp.concatenate(outputs)
    # one function, whose sums XLA may order otherwise; some hundred roundings a token
    assert_within(parts, whole, gamma(1000, UNIT) * np.abs(whole).max(), "output")
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert_within(one, other, gamma(1000, UNIT) * np.abs(other).max(), "state")


def test_the_future_does_not_reach_the_past(sublayer):
    """Assert causality: other tokens later change no output before."""
    run, p, stream = sublayer
    whole, _ = run(stream, p, p.initial_state())
    other, _ = run(stream.at[5:].multiply(-3.0), p, p.initial_state())
    np.testing.assert_array_equal(whole[:5], other[:5])
    assert (np.asarray(whole[5]) != np.asarray(other[5])).any()


def test_what_is_carried_matters(sublayer):
    """Assert that parts begun anew differ, where a sublayer carries anything."""
    run, p, stream = sublayer
    start = p.initial_state()
    whole, _ = run(stream, p, start)
    anew, _ = run(stream[7:], p, start)
    distance = np.abs(np.asarray(anew - whole[7:])).max()
    carries = bool(jax.tree.leaves(start))
    assert (distance > 1e-6) == carries
