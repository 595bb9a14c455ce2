"""transformers' decoding, one token a call, is within its bounds in every family."""

import importlib
import tempfile
from pathlib import Path

import numpy as np
import pytest

import lyapunov
from lyapunov.implementations import Transformers, executions_for
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save

from .runs import divergences
from .test_executions import LOOSEST, LOOSEST_SHARED, SLACK, ratio


SEQ = 12
QUICK = ("mamba2",)


@pytest.fixture(autouse=True)
def wide():
    """fp64, as in a check."""
    import jax

    with jax.enable_x64(True):
        yield


def loaded(family, **changes):
    """A small random model and tokens."""
    settings = next(iter(CONFIGURATIONS[family].values()))
    network = make(family, **{**settings, **changes})
    folder = Path(tempfile.mkdtemp(prefix="lyapunov-test-"))
    model = lyapunov.load(save(network, folder))
    tokens = np.random.default_rng(3).integers(0, model.config.vocab_size, (1, SEQ))
    return model, tokens


def held(model, tokens, precision):
    """Each sublayer of one run against its bounds."""
    (execution,) = executions_for(
        model.config,
        [precision],
        architecture=model.layout.architecture,
        measure="transformers",
        mode="decode",
    )
    trace = Transformers(execution).trace(model, tokens)
    for found in divergences(model, execution, trace):
        assert found.whole.measured_square.shape == (1, SEQ)
        yield found


@pytest.mark.parametrize(
    "family",
    [
        f if f in QUICK else pytest.param(f, marks=pytest.mark.slow)
        for f in CONFIGURATIONS
    ],
)
@pytest.mark.parametrize(
    "precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)]
)
def test_no_element_exceeds_its_bound(family, precision):
    """Assert zero violations and tight bounds."""
    model, tokens = loaded(family)
    for layer, operations, whole, first in held(model, tokens, precision):
        place = family, precision, layer.layer, layer.kind
        assert first is None, (place, first)
        most = LOOSEST_SHARED if layer.kind == "shared" else LOOSEST
        assert SLACK <= ratio(whole) <= most, (place, ratio(whole))
        assert operations, place


def decayed_twice(right):
    def step(state, x, dt, A, *given, **named):
        return right(state, x, dt, 2 * A, *given, **named)

    return step


def forgetting(right):
    def step(state, *given, **named):
        out = right(state, *given, **named)
        state.zero_()
        return out

    return step


def state_in_bf16(right):
    def step(state, *given, **named):
        out = right(state, *given, **named)
        state.copy_(state.bfloat16().float())
        return out

    return step


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(decayed_twice, marks=pytest.mark.slow),
        pytest.param(forgetting, marks=pytest.mark.slow),
        state_in_bf16,
    ],
)
def test_a_broken_step_is_caught(monkeypatch, broken):
    """Assert it in fp16, where a state in bf16 shows."""
    module = importlib.import_module("transformers.models.mamba2.modeling_mamba2")
    name = "mamba2_selective_state_update"
    right = getattr(module, name)
    monkeypatch.setattr(module, name, broken(right))
    model, tokens = loaded("mamba2")
    assert any(first for *_, first in held(model, tokens, "fp16"))


@pytest.mark.slow
def test_a_cache_that_loses_a_token_is_caught(monkeypatch):
    """Assert that attention over all keys but the first is no longer within bounds."""
    from transformers.cache_utils import DynamicLayer

    right = DynamicLayer.update

    def update(self, *given, **named):
        keys, values = right(self, *given, **named)
        if keys.shape[-2] == 5:
            self.keys, self.values = self.keys[..., 1:, :], self.values[..., 1:, :]
        return keys, values

    monkeypatch.setattr(DynamicLayer, "update", update)
    model, tokens = loaded("llama")
    found = {layer.kind: first for layer, _, _, first in held(model, tokens, "bf16")}
    assert found["attention"]
    assert not found["mlp"]
