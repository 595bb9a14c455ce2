"""The networks: equal in size, and the same network once written to a folder."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lyapunov
from experiments.finetuning.networks import shape as shape_of
from experiments.trained import networks, shapes
from experiments.trained.export import write_checkpoint
from experiments.trained.loop import optimizer
from oracles.checkpoints import transformers as library
from oracles.checkpoints.mamba_ssm import drawn
from oracles.networks import mamba3 as numpy_mamba3
from oracles.tolerances import exact_logits
from studies.problems import Problem

from ..helpers import assert_within
from .small import LAYERS, SHAPES, WIDTH


CPU = torch.device("cpu")
DELTA = ("gated_delta", "kimi_delta")
ON_CPU = ("mamba1", "mamba2", "gpt_neox", *DELTA, "hybrid")
TOKENS = np.random.default_rng(7).integers(0, 256, 19)


def fresh(kind, dropout=0.0):
    """A network with no parameter at its trivial first value."""
    torch.manual_seed(0)
    network = networks.fresh(SHAPES[kind], dropout, CPU).eval()
    library.redraw(network)
    return network


def counted(network):
    """Parameters without the embedding, which is the head, too."""
    return sum(p.numel() for p in network.parameters()) - 256 * network.shape.width


def mamba3_shapes(shape):
    return numpy_mamba3.shapes(networks.mamba_ssm_config(shape))


def test_all_are_equal_in_parameters():
    """Assert the default's spread and size, and files under 16 MiB."""
    equal = shapes.equal_shapes()
    assert set(equal) == set(shapes.KINDS)
    assert shapes.spread(equal) <= shapes.EQUAL == 0.02
    for shape in equal.values():
        assert 2e6 < shape.parameters() < 3e6
        assert 4 * (shape.parameters() + 2 * 256 * shape.width) < 16 * 2**20
    assert shapes.spread(shapes.equal_shapes(256, 6)) <= shapes.EQUAL
    assert shapes.spread(equal | {"hybrid": shapes.hybrid_shape()}) <= shapes.EQUAL


def test_the_hybrid_is_mixed_as_the_papers():
    """Assert 43 % Mamba-2, 7 % attention and 50 % MLPs, to the percent."""
    network: Any = fresh("hybrid").inner
    layers = network.backbone.layers
    mixers = [type(layer.mixer).__name__ for layer in layers]
    parts = len(mixers) + sum(hasattr(layer, "mlp") for layer in layers)
    counts = [mixers.count(name) for name in ("Mamba2Mixer", "Attention")]
    shares = [round(100 * n / parts) for n in (*counts, parts - len(mixers))]
    assert shares == [43, 7, 50]


@pytest.mark.parametrize("kind", ON_CPU)
@pytest.mark.parametrize("size", [(WIDTH, LAYERS), (64, 3)])
def test_parameters_are_counted_as_torch_counts(kind, size):
    """Assert that the formula gives the number of the network's own."""
    hybrid = {"hybrid": shapes.hybrid_shape(size[0])}
    shape = (shapes.equal_shapes(*size) | hybrid)[kind]
    assert counted(networks.fresh(shape, 0.0, CPU)) == shape.parameters()


def test_parameters_of_the_default_are_counted_as_torch_counts():
    """Assert it at full size for the quickest to make."""
    shape = shapes.equal_shapes()["gpt_neox"]
    assert counted(networks.fresh(shape, 0.0, CPU)) == shape.parameters()


@pytest.mark.parametrize("size", [(WIDTH, LAYERS), (256, 5)])
def test_mamba3s_parameters_are_counted_as_mamba_ssm_makes_them(size):
    """Assert the formula against names and shapes written down apart."""
    shape = shapes.equal_shapes(*size)["mamba3"]
    found = sum(int(np.prod(s)) for s in mamba3_shapes(shape).values())
    assert found - 256 * shape.width == shape.parameters()


def test_mamba2s_rows_come_in_eights():
    """Assert what causal_conv1d asks of a slice of in_proj's output."""
    for width in (64, 128, 256, 512):
        shape = shapes.equal_shapes(width, 5)["mamba2"]
        assert (2 * shape.inner + 2 * shape.state + shapes.HEADS) % 8 == 0


def test_mamba3_on_a_cpu_is_refused():
    """Assert an error for people."""
    with pytest.raises(Problem, match=r"GPU only\nhint: use --device cuda"):
        networks.fresh(SHAPES["mamba3"], 0.0, CPU)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow if k == "hybrid" else ()) for k in ON_CPU],
)
def test_a_written_folder_is_the_network(tmp_path, kind):
    """Assert lyapunov's logits of the folder within a tolerance that notices."""
    network = fresh(kind)
    write_checkpoint(tmp_path, network.shape, network.stored())
    model = lyapunov.load(tmp_path)
    theirs = library.logits(network.inner, TOKENS)
    allowed = library.tolerance(network.inner, TOKENS)
    assert allowed < 1e-2 * np.abs(theirs).max()
    assert_within(np.asarray(model.logits(TOKENS)), theirs, allowed, kind)
    for parameter in network.parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            if before.dim() > 1:
                parameter.copy_(before.flip(*range(before.dim())))
            else:
                parameter.add_(0.5 * (torch.arange(len(before)) % 3))
            moved = library.logits(network.inner, TOKENS)
            parameter.copy_(before)
        assert np.abs(moved - theirs).max() > allowed


@pytest.mark.parametrize("kind", DELTA)
def test_a_written_delta_rule_is_read_by_transformers(tmp_path, kind):
    """Assert its logits, every tensor's name, and the sizes told from config.json."""
    network = fresh(kind)
    write_checkpoint(tmp_path, network.shape, network.stored())
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    read, told = loaded
    assert not any(told.values())
    np.testing.assert_array_equal(
        library.logits(read.eval(), TOKENS), library.logits(network.inner, TOKENS)
    )
    settings = json.loads((tmp_path / "config.json").read_text())
    assert shape_of(settings) == network.shape
    read.save_pretrained(tmp_path / "again")
    again = set(load_file(tmp_path / "again" / "model.safetensors"))
    tied = {"lm_head.weight"} if settings["tie_word_embeddings"] else set()
    assert again | tied == set(load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("kind", DELTA)
def test_delta_rules_begin_with_memory(kind):
    """Assert that a state keeps e^-1 for bytes, in a tenth of the channels for many."""
    torch.manual_seed(0)
    network: Any = networks.fresh(shapes.equal_shapes()[kind], 0.0, CPU).inner
    decays = []
    for layer in network.model.layers:
        gate = getattr(layer, "linear_attn", None) or layer.self_attn.forget_gate
        steps = torch.nn.functional.softplus(gate.dt_bias)
        assert 1e-3 * (1 - 1e-5) <= steps.min() <= steps.max() <= 1e-1 * (1 + 1e-5)
        rates = gate.A_log.exp().reshape(-1, 1)
        decays += [rates * steps.reshape(len(rates), -1)]
    kept = 1 / torch.cat([decay.flatten() for decay in decays])
    assert 1 / 1.6 <= kept.min() <= kept.max() <= 1000
    assert kept.median() > 4
    assert kept.quantile(0.9) > 30


def test_a_written_mamba3_is_the_network(tmp_path, rng):
    """Assert lyapunov's logits of the folder against NumPy's."""
    shape = SHAPES["mamba3"]
    config = networks.mamba_ssm_config(shape)
    weights = drawn(mamba3_shapes(shape), rng)
    write_checkpoint(
        tmp_path, shape, {name: torch.tensor(value) for name, value in weights.items()}
    )
    theirs, allowed = exact_logits(weights, config, numpy_mamba3.logits, TOKENS)
    assert allowed < 1e-9 * np.abs(theirs).max()
    assert_within(np.asarray(lyapunov.load(tmp_path).logits(TOKENS)), theirs, allowed)


@pytest.mark.parametrize("kind", ON_CPU)
def test_stored_and_restored_is_the_same(kind):
    """Assert equal logits, and that the weights stored are copies."""
    network = fresh(kind)
    stored, before = network.stored(), library.logits(network.inner, TOKENS)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    assert not np.array_equal(library.logits(network.inner, TOKENS), before)
    network.restore(stored)
    np.testing.assert_array_equal(library.logits(network.inner, TOKENS), before)


@pytest.mark.parametrize("kind", ["mamba1", "mamba2", "hybrid"])
def test_the_mambas_are_stored_as_mamba_ssm_names_them(kind):
    """Assert names that mamba_ssm's class would load, the tied head among them."""
    names = set(fresh(kind).stored())
    assert {"backbone.embedding.weight", "lm_head.weight"} <= names
    assert "backbone.layers.1.mixer.in_proj.weight" in names
    assert not any("embeddings" in name for name in names)


@pytest.mark.parametrize("kind", ON_CPU)
def test_weights_decay_in_projections_alone(kind):
    """Assert which do: matrices, never A_log, D, dt, biases, norms, embedding."""
    network = fresh(kind)
    decayed = {id(p) for p in optimizer(network, 0.1).param_groups[0]["params"]}
    rest = {id(p) for p in optimizer(network, 0.1).param_groups[1]["params"]}
    assert not decayed & rest
    assert decayed | rest == {id(p) for p in network.parameters()}
    free = ("A_log", ".D", "bias", "norm", "embed", "lm_head", "conv1d", "dt_proj")
    for name, parameter in network.named_parameters():
        assert (id(parameter) in decayed) != any(part in name for part in free), name


@pytest.mark.parametrize("kind", ON_CPU)
def test_dropout_is_for_training_alone(kind):
    """Assert that it moves the output in training, and not otherwise."""
    network = fresh(kind, dropout=0.5)
    ids = torch.tensor(TOKENS)[None]
    with torch.no_grad():
        calm = [network(ids).logits for _ in range(2)]
        network.train()
        torn = [network(ids).logits for _ in range(2)]
    assert torch.equal(*calm)
    assert not torch.equal(*torn)
