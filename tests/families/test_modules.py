"""Assert that each sublayer carries its module's name, in every family and layout."""

import re

import pytest

import lyapunov
from lyapunov.checkpoints.families._architectures import FAMILIES
from oracles.checkpoints import megatron
from oracles.checkpoints.configurations import CASES, CONFIGURATIONS
from oracles.checkpoints.mamba3 import CONFIGS as MAMBA3
from oracles.checkpoints.mamba_ssm import (
    CONFIGS,
    drawn,
    full_config,
    mamba_ssm_shapes,
    openelm,
    save,
)
from oracles.checkpoints.megatron import PATTERN, SIZES, tensors
from oracles.checkpoints.transformers import make
from oracles.networks import mamba3 as numpy_mamba3


CLASSES = {
    "mamba1": r"Mamba.*Mixer$",
    "mamba2": r"Mixer$|MambaLayer$",
    "attention": r"Attention$",
    "gated_delta": r"GatedDeltaNet$",
    "kimi_delta": r"DeltaAttention$",
    "short_conv": r"ShortConv$",
    "rg_lru": r"RecurrentBlock$",
    "rwkv4": r"RwkvSelfAttention$",
    "channel_mix": r"RwkvFeedForward$",
    "lightning": r"LightningAttention$",
    "norm": r"RMSNorm$",
    "mlstm": r"xLSTMLayer$",
    "mlp": r"M(LP|lp)$|FeedForward$",
    "experts": r"Mo[Ee]|SparseMoe",
    "shared": r"(Attention)?DecoderLayer|SharedTransformer|AttentionHybrid",
}
"""What transformers calls a module of each kind, by its class."""


@pytest.mark.parametrize(("family", "name"), [("mamba", "plain"), *CASES])
def test_modules_of_transformers_hold_what_the_sublayer_reads(family, name):
    """Assert that torch knows the module by that name and calls it what the sublayer
    is, and that each layer of config.json is counted once."""
    settings = CONFIGURATIONS.get(family, {}).get(name) or {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4,
    }  # fmt: skip
    network = make(family, **settings)
    model = lyapunov.from_torch(network)
    layout = model.layout
    assert layout.n_blocks == network.config.num_hidden_layers
    assert len(layout.modules) == len(model.sublayers)
    assert len(set(layout.modules)) == len(layout.modules)
    modules = dict(network.named_modules())
    for sublayer, module in zip(model.sublayers, layout.modules, strict=True):
        found = modules[spelled(module, modules)]
        assert re.search(CLASSES[sublayer.kind], type(found).__name__), module
        held = sum(p.numel() for p in found.parameters())
        read = sum(a.size for a in layout.layer(sublayer.layer).values())
        # the norms around it are the sublayer's alone, adapters of others the module's
        assert held <= 2 * read
        assert read <= held + 3 * model.config.d_model**2


def spelled(module, modules):
    """Its name in memory: some families are saved under the names of their makers."""
    renamed = module.replace("backbone.", "model.")
    for saved, ours in ((".attention", ".self_attn"), (".block_sparse_moe", ".mlp")):
        renamed = renamed.replace(saved, ours)
    return next(name for name in (module, renamed) if name in modules)


@pytest.mark.parametrize("name", CONFIGS)
def test_modules_of_mamba_ssm(rng, tmp_path, name):
    """Assert that a sublayer's module holds all its tensors but the norm's, and no
    tensor of another."""
    config = full_config(CONFIGS[name])
    weights = drawn(mamba_ssm_shapes(config), rng)
    save(tmp_path, weights, config)
    layout = lyapunov.load(tmp_path).layout
    assert layout.n_blocks == config["n_layer"]
    owners = {
        f"backbone.layers.{i}.{part}"
        for i in range(config["n_layer"])
        for part in ("mixer", "mlp")
        if any(n.startswith(f"backbone.layers.{i}.{part}.") for n in weights)
    }
    assert set(layout.modules) == owners
    assert list(layout.modules) == sorted(owners, key=in_order)


def in_order(module):
    return int(module.split(".")[2]), module.endswith("mlp")


@pytest.mark.parametrize("name", MAMBA3)
def test_modules_of_mamba3(rng, tmp_path, name):
    config = full_config({"ssm_cfg": MAMBA3[name]})
    save(tmp_path, drawn(numpy_mamba3.shapes(config), rng), config)
    layout = lyapunov.load(tmp_path).layout
    assert layout.modules == tuple(
        f"backbone.layers.{i}.mixer" for i in range(config["n_layer"])
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_modules_of_megatron(tmp_path, ranks):
    folder = megatron.save(tmp_path, tensors(), ranks, **SIZES)
    layout = lyapunov.load(folder).layout
    words = {"M": "mixer", "*": "self_attention", "-": "mlp"}
    assert layout.modules == tuple(
        f"decoder.layers.{i}.{words[letter]}" for i, letter in enumerate(PATTERN)
    )
    assert layout.n_blocks == len(PATTERN)


def test_modules_of_openelm(rng, tmp_path):
    config, shapes = openelm(True)[:2]
    save(tmp_path, drawn(shapes, rng), config)
    layout = lyapunov.load(tmp_path).layout
    assert layout.n_blocks == config["num_transformer_layers"]
    assert layout.modules[:3] == (
        "transformer.layers.0.attn",
        "transformer.layers.0.ffn",
        "transformer.layers.1.attn",
    )


def test_no_family_is_left_out():
    tested = {*CONFIGURATIONS, "mamba1", "mamba3", "megatron", "openelm"}
    assert set(FAMILIES) == tested
