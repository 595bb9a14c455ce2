"""RWKV-4: exponents, rescaled weights, and what of them cannot be followed.

Logits and bounds as of any family are in `test_delta_families`, `test_forward`,
`test_executions` and `test_transformers_decode`.
"""

from types import SimpleNamespace

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import CorruptCheckpointError, UsageError
from lyapunov.implementations import Transformers, executions_for
from lyapunov.questions._layer_facts import layer_facts
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save

from ..helpers import not_none
from .runs import divergences
from .test_delta_families import loaded, refused, saved
from .test_executions import LOOSEST, SLACK, ratio


TOKENS = np.random.default_rng(3).integers(0, 50, (1, 12))
HALVED = CONFIGURATIONS["rwkv"]["halved, more channels"]
# transformers' own cache has as many channels as the stream
STEPPED = {**HALVED, "rescale_every": 1, "attention_hidden_size": 32}


def facts(model, sublayer):
    """What a report says of it, of a reference's record that is made up."""
    observed = {"state": np.ones((1, 40))}
    record = SimpleNamespace(output=np.ones((1, 40, 4)), observed=observed)
    return layer_facts(model, sublayer, record)


def test_exponents_are_the_rates_of_the_channels(tmp_path):
    """Assert them against the file, and against a product of the steps' Jacobians,
    found of differences of a step written in NumPy."""
    config, tensors = saved("rwkv")
    model = loaded(tmp_path, config, tensors)
    rows = [facts(model, sublayer) for sublayer in model.sublayers]
    assert {row.reason for row in rows[1::2]} == {
        "no exponent: a window of a few tokens, whose exponents are all -inf"
    }
    rows = rows[::2]
    assert len(rows) == config["num_hidden_layers"]
    rng = np.random.default_rng(0)
    for i, row in enumerate(rows):
        rate = np.exp(tensors[f"rwkv.blocks.{i}.attention.time_decay"].astype(float))
        assert row.multiplicity == 2
        assert np.isclose(not_none(row.max), -rate.min(), 1e-12, 0)
        assert np.isclose(not_none(row.min), -rate.max(), 1e-12, 0)

        def step(state, key, value, rate=rate):
            weights = np.stack([np.exp(key) * value, np.exp(key)])
            return np.exp(-rate) * state.reshape(2, -1) + weights

        product, width = np.eye(2 * len(rate)), len(rate)
        for _ in range(3):
            key, value = rng.normal(size=(2, width))
            columns = [
                (step(column, key, value) - step(0 * column, key, value)).ravel()
                for column in np.eye(2 * width)
            ]
            product = np.stack(columns, axis=1) @ product
        found = np.log(np.linalg.svd(product, compute_uv=False)) / 3
        # 3 subtractions of numbers up to e^3 in fp64
        assert np.allclose(np.sort(found), np.sort(np.tile(-rate, 2)), 0, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_halved_streams_and_divided_weights_are_followed(precision, mode, tmp_path):
    """Assert no violation and tight bounds where transformers divides by 2 and by 4."""
    model = lyapunov.load(save(make("rwkv", **STEPPED), tmp_path))
    assert [one.halvings for one in model.config.sublayers] == [0, 0, 1, 1, 2, 2]
    named = {"architecture": "rwkv", "measure": "transformers"}
    (execution,) = executions_for(model.config, [precision], mode=mode, **named)
    trace = Transformers(execution).trace(model, TOKENS)
    for layer, operations, whole, first in divergences(model, execution, trace):
        assert first is None, (layer, first)
        assert operations
        if precision == "bf16":
            assert SLACK <= ratio(whole) <= LOOSEST


def test_fp16_rounds_what_is_divided(tmp_path):
    """Assert a refusal of transformers' fp16, and none of what divides nothing."""
    model = lyapunov.load(save(make("rwkv", **HALVED), tmp_path / "a"))
    named = {"architecture": "rwkv", "measure": "transformers"}
    with pytest.raises(UsageError, match="powers of two") as caught:
        executions_for(model.config, ["fp16"], **named)
    assert "bf16" in not_none(caught.value.hint)
    for settings in ({"rescale_every": 0}, {"rescale_every": -1}, {"rescale_every": 4}):
        network = make("rwkv", **{**HALVED, **settings})
        model = lyapunov.load(save(network, tmp_path / str(settings["rescale_every"])))
        assert executions_for(model.config, ["fp16"], **named)


def test_a_live_network_that_was_rescaled_is_refused():
    """Assert it after a forward pass, which divides the weights, and not before."""
    import torch

    network = make("rwkv", **HALVED)
    before = np.asarray(lyapunov.from_torch(network).logits(TOKENS[0]))
    network(torch.tensor(TOKENS), use_cache=False)
    with pytest.raises(UsageError, match="rescale_every"):
        lyapunov.from_torch(network)
    network.train()(torch.tensor(TOKENS), use_cache=False)
    again = np.asarray(lyapunov.from_torch(network).logits(TOKENS[0]))
    np.testing.assert_array_equal(again, before)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention_hidden_size": 16}, "config.json asks for (16, 32)"),
        ({"intermediate_size": 64}, "config.json asks for (64, 32)"),
        ({"num_hidden_layers": 3}, "no tensor"),
        ({"num_hidden_layers": 1}, "leaves no place for"),
        ({"rescale_every": "6"}, "rescale_every"),
        ({"rescale_every": 2.0}, "rescale_every"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, changes, says):
    message = refused(tmp_path, "rwkv", lambda c, t: (c | changes, t))
    assert says in message, message


@pytest.mark.parametrize(
    ("value", "largest"),
    [(200.0, -np.exp(200.0)), pytest.param(800.0, -np.inf, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("bounded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rates_beyond_all_numbers_forget_at_once(tmp_path, value, largest, bounded):
    """Assert their exponents, no NaN, and no accusation; inf itself is refused."""
    name = "rwkv.blocks.0.attention.time_decay"

    def change(config, tensors, value=value):
        rates = np.full_like(tensors[name], value)
        return config, tensors | {name: rates}

    config, tensors = saved("rwkv")
    model = loaded(tmp_path / "m", *change(config, tensors))
    assert np.isfinite(np.asarray(model.logits(TOKENS[0]))).all()
    assert facts(model, model.sublayers[0]).max == pytest.approx(largest)
    if bounded:
        report = lyapunov.check(tmp_path / "m", tokens=TOKENS, precisions=["bf16"])
        rows = report.precisions[0].layers
        assert [row.violations for row in rows] == [0] * len(rows)
    model = loaded(tmp_path / "inf", *change(config, tensors, np.inf))
    with pytest.raises(CorruptCheckpointError, match=name):
        model.logits(TOKENS[0])
