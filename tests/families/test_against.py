"""`--against` for every family: itself, a changed copy, and another network."""

import json
import shutil
from dataclasses import fields, is_dataclass, replace
from typing import cast

import numpy as np
import pytest
from scipy.special import log_softmax

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.checkpoints._network import NetworkLayout
from lyapunov.checkpoints.families._architectures import FAMILIES
from lyapunov.models import Model
from lyapunov.questions._changes import parameter_changes
from lyapunov.questions._same_network import _NO_PART_OF_THE_FUNCTION, differences
from lyapunov.questions._weight_sets import ParameterChange, other_weights
from lyapunov.report._headline import headline
from lyapunov.sublayers import KINDS
from lyapunov.sublayers.config import NetworkConfig
from oracles.checkpoints import megatron
from oracles.checkpoints.configurations import CASES, CONFIGURATIONS, NEMOTRON, SMALL
from oracles.checkpoints.mamba3 import MIMO
from oracles.checkpoints.mamba_ssm import (
    drawn,
    full_config,
    openelm,
    save as save_numpy,
)
from oracles.checkpoints.transformers import (
    logits,
    make,
    save as save_transformers,
    tolerance,
)
from oracles.networks import mamba3 as numpy_mamba3
from oracles.networks.openelm import openelm_logits
from oracles.tolerances import exact_logits

from ..helpers import not_none


TOKENS = np.random.default_rng(7).integers(0, 37, 12)
STEP = 0.05

FAST = ("mamba2",)
DERIVED = {"slope_rate", "query_decay", "key_decay", "diagonal_decay"}
"""Buffers of MiniMax, which are functions of its settings."""


def moved(weights, rng):
    """Every entry by about a twentieth of itself."""
    return {
        name: (array * (1 + STEP * rng.normal(size=array.shape))).astype(np.float32)
        for name, array in weights.items()
    }


def move(network):
    """Move what a checkpoint stores and settings do not make: before transformers 5.23
    the bias of Nemotron-H's router is no parameter."""
    import torch

    stored = {
        x.data_ptr(): x
        for name, x in network.state_dict().items()
        if name.rpartition(".")[2] not in DERIVED
    }
    with torch.no_grad():
        for tensor in stored.values():
            if tensor.is_floating_point():
                tensor.mul_(1 + STEP * torch.randn_like(tensor))


def of_transformers(folder, model_type, settings):
    """Folders of a model and of a changed copy; what transformers says of each."""
    import torch

    network = make(model_type, **settings)
    found = [(save_transformers(network, folder / "base"), *told(network))]
    torch.manual_seed(11)
    move(network)
    return [*found, (save_transformers(network, folder / "changed"), *told(network))]


def told(network):
    return logits(network, TOKENS), tolerance(network, TOKENS)


def of_numpy(folder, shapes, config, forward):
    rng = np.random.default_rng(5)
    base = drawn(shapes, rng)
    return [
        (
            save_numpy(folder / name, weights, config),
            *exact_logits(weights, config, forward, TOKENS),
        )
        for name, weights in (("base", base), ("changed", moved(base, rng)))
    ]


def of_megatron(folder):
    """The network of transformers' Nemotron-H, in Megatron's layout."""
    words = {"M": "linear_attention", "*": "full_attention", "-": "mlp"}
    settings = {**NEMOTRON, "layers_block_type": [words[k] for k in "M*-M"]}
    settings["time_step_min"] = 1e-30  # Megatron's mixers have no least dt
    import torch

    found = []
    network = make("nemotron_h", **settings)
    torch.manual_seed(11)
    for name in ("base", "changed"):
        tensors = megatron.names(network.state_dict(), "M*-M")
        where = megatron.save(folder / name, tensors, 1, inner=32, wide=16, heads=4)
        found.append((where, *told(network)))
        move(network)
    return found


def made(folder, family):
    """(folder, logits, what rounding may put between them) of base and changed."""
    if family == "mamba1":
        sizes = {"num_hidden_layers": 2, "state_size": 4}
        return of_transformers(folder, "mamba", {**SMALL, **sizes})
    if family == "mamba3":
        config = full_config({"ssm_cfg": MIMO})
        return of_numpy(
            folder, numpy_mamba3.shapes(config), config, numpy_mamba3.logits
        )
    if family == "openelm":
        config, shapes = openelm(tied=True)
        return of_numpy(folder, shapes, config, openelm_logits)
    if family == "megatron":
        return of_megatron(folder)
    settings = next(iter(CONFIGURATIONS[family].values()))
    return of_transformers(folder, family, settings)


def centred(x):
    return x - x.mean(axis=-1, keepdims=True)


def effect(before, after):
    """Relative L2 without means, and mean KL."""
    size = np.linalg.norm(centred(before))
    p, q = log_softmax(before, axis=-1), log_softmax(after, axis=-1)
    kl = np.sum(np.exp(p) * (p - q), axis=-1).mean()
    return np.linalg.norm(centred(after - before)) / size, kl


EVERY = [
    pytest.param(family, marks=[] if family in FAST else [pytest.mark.slow])
    for family in FAMILIES
]


@pytest.fixture(scope="module", params=EVERY)
def pair(request, tmp_path_factory):
    """A family's base and changed copy: folders, oracles' logits and tolerances."""
    pytest.importorskip("transformers")
    return made(tmp_path_factory.mktemp(request.param), request.param)


def test_a_changed_copy_has_the_effect_that_others_see(pair):
    """Assert the effect on the logits, the bounds, and what first order predicts."""
    (base, before, off), (changed, after, off_after) = pair
    model = lyapunov.load(base)
    change = other_weights(model, changed)
    (report,) = parameter_changes(model, TOKENS, [change], floor=False)
    expected, kl = effect(before, after)
    # each logit of either is within its tolerance; a mean taken off shrinks that
    root, size = np.sqrt(before.size), np.linalg.norm(centred(before))
    allowed = root * (off + off_after + expected * off) / (size - root * off)
    assert allowed < 0.1 * expected
    assert report.output.measured_rel_l2 == pytest.approx(expected, abs=allowed)
    # KL moves by at most the largest move of a log probability, twice a logit's, times
    # the total variation (at most 2), plus what the reference's own shares move
    spread = np.abs(log_softmax(before, -1) - log_softmax(after, -1)).max()
    assert report.output.kl_mean == pytest.approx(
        kl, abs=2 * (off + off_after) + spread * (np.exp(2 * off) - 1)
    )
    for row in report.layers:
        assert row.violations == 0
        assert 0 < row.local_l2 <= not_none(row.bound_l2)
        stored = set(model.raw_parameters(row.layer)) - (DERIVED | {"slope"})
        assert set(row.weights) == stored
    measured = report.output.measured_rel_l2
    assert report.nonlinearity is not None
    assert measured is not None
    assert abs(report.predicted_rel_l2 - measured) <= report.nonlinearity * measured


class Between:
    """A layout some of the way from a base to a changed copy, in fp64."""

    def __init__(self, base, changed, share):
        self._ends, self._share = (base, changed), share

    def __getattr__(self, name):
        found = getattr(self._ends[0], name)
        read = ("layer", "embedding", "head", "final_norm", "embedding_norm")
        if name.removesuffix("_bias") not in read:
            return found
        return lambda *a: self._mixed(*(getattr(end, name)(*a) for end in self._ends))

    def _mixed(self, base, changed):
        if isinstance(base, dict):
            return {key: self._mixed(base[key], changed[key]) for key in base}
        if base is None:
            return None
        base = base.astype(np.float64)
        return base + self._share * (changed - base)


def test_a_small_change_is_its_first_order(pair):
    """Assert that a ten-thousandth of the change leaves next to nothing beyond it."""
    (base, *_), (changed, *_) = pair
    model, other = lyapunov.load(base), lyapunov.load(changed)
    nearby = Model(
        cast(NetworkLayout, Between(model.layout, other.layout, 1e-4)), "nearby"
    )
    change = ParameterChange("nearby", "checkpoint", nearby)
    (report,) = parameter_changes(model, TOKENS, [change], layers=[0], floor=False)
    # the second order of the whole change is at most some hundred times its first
    assert report.nonlinearity is not None
    assert report.nonlinearity < 0.02


def test_a_multiplier_of_the_logits_is_in_their_first_order_too(pair):
    """Assert that shares of the logits' size do not see it (Granite, Falcon-H1)."""
    (base, *_), (changed, *_) = pair
    if lyapunov.load(base).config.logits_soft_cap is not None:
        pytest.skip("a soft cap behind it sees their size")
    found = []
    for multiplier in (1.0, 0.25):
        models = lyapunov.load(base), lyapunov.load(changed)
        for model in models:
            model.config = replace(model.config, logits_multiplier=multiplier)
        change = ParameterChange("changed", "checkpoint", models[1])
        (report,) = parameter_changes(models[0], TOKENS, [change], floor=False)
        found.append((report.predicted_rel_l2, report.nonlinearity))
    # powers of 2 round nothing
    assert found[0] == found[1]


def test_itself_is_no_change_and_holds(pair):
    """Assert 0 everywhere and exit code 0, and that the report says so."""
    base = pair[0][0]
    report = lyapunov.check(
        str(base), TOKENS, measure="none", against=str(base), floor=False, growth=False
    )
    assert report.summary.exit_code == 0
    (change,) = report.parameter_changes
    assert change.output.measured_rel_l2 == change.output.kl_mean == 0.0
    assert change.output.argmax_flips == 0
    assert all(row.weights == {} and row.violations == 0 for row in change.layers)
    told = f"checkpoint {base} changes nothing"
    assert told in report.summary.recommendation
    assert told in str(headline(report))


# What may differ: how it is run, and padding.
RUN = [
    ("mamba2", {"chunk_size": 4}),
    ("mamba2", {"residual_in_fp32": False}),
    ("falcon_mamba", {"residual_in_fp32": False}),
]
# What makes it another function, and how that is named.
OTHER = [
    ("mamba2", {"time_step_limit": [0.1, 0.5]}, "dt_limit"),
    ("mamba2", {"n_groups": 2, "state_size": 4}, "d_state 4 and 8, groups 2 and 1"),
    ("mamba2", {"layer_norm_epsilon": 0.01}, "norm_epsilon 0.01"),
    ("llama", {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4},
     "heads 8 and 4, kv_heads 4 and 2, head_dim 4 and 8"),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
     "theta 100 and 10000"),
    ("granitemoehybrid", {"embedding_multiplier": 2.0}, "embedding_multiplier 2 and 3"),
    ("granitemoehybrid", {"num_experts_per_tok": 1}, "chosen 1 and 2"),
    ("granitemoehybrid", {"logits_scaling": 2.0}, "logits_multiplier 0.5 and 0.25"),
]  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A folder of a family's first configuration, made once."""
    found = {}

    def give(family, name=None, **changes):
        key = family, name, json.dumps(changes)
        if key not in found:
            named = CONFIGURATIONS[family]
            settings = {**named[name or next(iter(named))], **changes}
            folder = tmp_path_factory.mktemp(family) / "model"
            found[key] = save_transformers(make(family, **settings), folder)
        return found[key]

    return give


def edited(folder, target, changes):
    shutil.copytree(folder, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


@pytest.mark.parametrize(("family", "changes"), RUN)
def test_how_it_is_run_does_not_matter(known, tmp_path, family, changes):
    base = lyapunov.load(known(family))
    other = edited(known(family), tmp_path / "other", changes)
    change = other_weights(base, other)
    assert change.model.config == base.config


def refusal(base, other):
    with pytest.raises(UsageError) as caught:
        other_weights(lyapunov.load(base), other)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(("family", "changes", "says"), OTHER)
def test_another_function_is_named(known, tmp_path, family, changes, says):
    other = edited(known(family), tmp_path / "other", changes)
    assert says in refusal(known(family), other)


def test_biases_and_blocks_that_one_lacks_are_named(known):
    """Assert what no size says: biases, and the kind of a sublayer."""
    plain = known("llama")
    biased = known("llama", attention_bias=True)
    assert "k_bias, o_bias, q_bias, v_bias that the base lacks" in refusal(
        plain, biased
    )
    assert "no k_bias, o_bias, q_bias, v_bias" in refusal(biased, plain)
    swapped = known("bamba", attn_layer_indices=[0])
    message = refusal(known("bamba"), swapped)
    assert "sublayer 0 kind attention and mamba2" in message
    assert "(llama and bamba)" in refusal(known("bamba"), plain)
    assert "(olmo2 and llama): " in refusal(plain, known("olmo2"))


@pytest.mark.parametrize(("family", "name"), CASES)
@pytest.mark.slow
def test_no_configuration_differs_from_itself(known, family, name):
    layout = cast(NetworkLayout, lyapunov.load(known(family, name)).layout)
    assert differences(layout, layout) == []


def test_a_tie_may_be_untied(known, tmp_path):
    """Assert that a head of its own, equal to the embedding, is no change."""
    from safetensors.numpy import load_file, save_file

    base = known("llama", tie_word_embeddings=True)
    other = edited(base, tmp_path / "other", {"tie_word_embeddings": False})
    tensors = load_file(other / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert other_weights(lyapunov.load(base), other).kind == "checkpoint"


def test_layouts_of_one_network_are_held_against_each_other(tmp_path):
    """Megatron's checkpoint and the one converted from it: other names, one network."""
    words = {"M": "linear_attention", "*": "full_attention", "-": "mlp"}
    kinds = [words[letter] for letter in "M*-M"]
    # neither limits dt: Megatron has no key for it
    settings = {**NEMOTRON, "time_step_limit": (0.0, float("inf"))}
    network = make("nemotron_h", **settings, layers_block_type=kinds)
    converted = save_transformers(network, tmp_path / "converted")
    tensors = megatron.names(network.state_dict(), "M*-M")
    shape = {"inner": 32, "wide": 16, "heads": 4}
    base = lyapunov.load(megatron.save(tmp_path / "megatron", tensors, 1, **shape))
    change = other_weights(base, converted)
    for layer in range(4):
        ours, theirs = (m.raw_parameters(layer) for m in (base, change.model))
        assert set(ours) == set(theirs)
        for name, array in ours.items():
            np.testing.assert_array_equal(theirs[name], array, name)


def test_what_is_left_out_of_the_comparison_is_there():
    """Assert that each name is still a field of some configuration."""
    kinds = [*KINDS.values(), NetworkConfig]
    assert all(is_dataclass(kind) for kind in kinds)
    names = {field.name for kind in kinds for field in fields(kind)}
    assert names >= _NO_PART_OF_THE_FUNCTION
