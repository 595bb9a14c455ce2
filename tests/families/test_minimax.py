"""MiniMax: its exponents, its buffers, and the stream that its norms stand in."""

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import lyapunov
from lyapunov._errors import CorruptCheckpointError
from lyapunov.checkpoints.families._minimax import slopes_of
from lyapunov.implementations import executions_for, implementation_named
from lyapunov.implementations._implementation import RefusedError
from lyapunov.questions._layer_facts import layer_facts
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save
from oracles.networks import minimax

from ..exponents.tolerance import tolerance
from .test_delta_families import TOKENS, loaded, saved


SLOPES = "model.layers.1.self_attn.slope_rate"
SETTINGS = CONFIGURATIONS["minimax"]["factors"]


def facts(model):
    """The rows of its recurrences."""
    rows = [
        layer_facts(model, sublayer, record)
        for sublayer, record in zip(
            model.sublayers, lyapunov.trace(model, TOKENS), strict=False
        )
    ]
    return [row for row in rows if row.max is not None]


@pytest.mark.slow
def test_exponents_are_the_slopes(tmp_path):
    """Assert one a head, whatever the text: minus what is stored, which NumPy decays
    by, and what a product of its dense steps is."""
    config, tensors = saved("minimax")
    decays = []
    minimax.logits(tensors, config, TOKENS, None, decays)
    (row,) = facts(loaded(tmp_path, config, tensors))
    near = tolerance(100, 10)
    assert row.max == pytest.approx(max(decays), abs=near)
    assert row.min == pytest.approx(min(decays), abs=near)
    assert row.multiplicity == 8**2
    step = np.diag(np.repeat(np.exp(decays), 8))
    product = np.linalg.matrix_power(step, len(TOKENS))
    exponents = np.log(np.diag(product)) / len(TOKENS)
    np.testing.assert_allclose(
        np.quantile(exponents, [0, 1]), np.asarray(row.quantiles)[[0, -1]], atol=near
    )


@pytest.mark.parametrize("heads", [4, 6, 64])
@pytest.mark.parametrize("layer", [0, 1, 4])
def test_slopes_are_what_the_code_makes(heads, layer):
    """Assert them by the module's own function, within fp32's roundings."""
    from types import SimpleNamespace

    from transformers.models.minimax import modeling_minimax

    module: Any = SimpleNamespace(
        num_attention_heads=heads, num_hidden_layers=5, layer_idx=layer
    )
    made = modeling_minimax.MiniMaxLightningAttention.get_slope_rate(module)
    ours = slopes_of(heads, layer, 5)
    # a power of so many factors, and the last layer's factor cancels
    allowed = (heads + 8) * 2.0**-24 * ours + 2.0**-23 * 2.0 ** (-8 / heads)
    assert (np.abs(made.double().numpy().ravel() - ours) <= allowed).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_buffers_in_16_bits_are_what_is_meant(tmp_path, dtype):
    """Assert that slopes are read as they are stored, and counted as parameters."""
    network = make("minimax", **SETTINGS)
    model = lyapunov.load(save(network, tmp_path / "m", dtype))
    (row,) = facts(model)
    stored = network.state_dict()[SLOPES].double().numpy()
    assert row.max == pytest.approx(-stored.min(), abs=tolerance(100, 10))
    counted = sum(x.numel() for x in network.state_dict().values())
    assert model.layout.n_params == counted


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("slope_rate", lambda a: 1.02 * a),
        ("query_decay", lambda a: a[:, ::-1]),
        ("key_decay", lambda a: a + 0.01),
        ("diagonal_decay", lambda a: np.swapaxes(a, 2, 3)),
        ("diagonal_decay", lambda a: np.where(a == 0, np.nan, a)),
    ],
)
def test_buffers_that_are_not_what_is_meant_are_refused(tmp_path, name, change):
    config, tensors = saved("minimax")
    key = SLOPES.replace("slope_rate", name)
    tensors = tensors | {key: np.ascontiguousarray(change(tensors[key]))}
    model = loaded(tmp_path, config, tensors)
    with pytest.raises(
        CorruptCheckpointError, match=rf"{name}.* (is off|holds 24 NaN)"
    ) as caught:
        model.raw_parameters(5)
    assert caught.value.hint


def test_a_file_without_its_buffers_is_refused(tmp_path):
    config, tensors = saved("minimax")
    tensors = {k: v for k, v in tensors.items() if not k.endswith("key_decay")}
    with pytest.raises(CorruptCheckpointError, match=r"no tensor.*key_decay"):
        loaded(tmp_path, config, tensors)


def test_the_older_list_of_layers(tmp_path):
    """Assert 0 for linear attention, as its publisher has it."""
    config, tensors = saved("minimax")
    older = {k: v for k, v in config.items() if k != "layer_types"}
    older |= {"attn_type_list": [1, 0, 1]}
    found = loaded(tmp_path, older, tensors)
    kinds = [one.kind for one in found.sublayers]
    assert kinds[1::4] == ["attention", "lightning", "attention"]


def test_ways_that_cut_blocks_otherwise_are_refused(tmp_path):
    """Assert a reason, and never an accusation."""
    folder = save(make("minimax", **SETTINGS), tmp_path / "m")
    model = lyapunov.load(folder)
    assert json.loads((folder / "config.json").read_text())["block_size"] == 4
    assert len(load_file(folder / "model.safetensors")) == len(saved("minimax")[1])
    from lyapunov.implementations._ways import parse_variant

    (execution,) = executions_for(
        model.config, ["bf16"], architecture="minimax", measure="transformers"
    )
    runner = implementation_named("transformers").runner(execution)
    for way in ("chunks:4", "padded_left:3"):
        with pytest.raises(RefusedError, match="cuts its blocks"):
            next(iter(runner.trace(model, TOKENS[None], parse_variant(way))))
