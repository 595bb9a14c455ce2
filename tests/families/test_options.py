"""Unchanged transformers is accused of nothing, whatever its configuration says."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov.checkpoints.families._architectures import FAMILIES
from lyapunov.implementations import Transformers, executions_for
from lyapunov.implementations.transformers._source import READ, installed
from lyapunov.implementations.transformers.mamba1 import (
    transformers_decode,
    transformers_prefill,
)
from oracles.checkpoints.transformers import TEXT, make, save

from .options import EXEMPT, EXEMPT_IN, FIRST, OPTIONS, altered
from .runs import divergences


SEQ = 12
MODES = ("prefill", "decode")
# all options at their first values, all at the other, and each half of them apart
CHANGES = {"none": (10**6, 1), "all": (0, 1), "even": (0, 2), "odd": (1, 2)}


@pytest.fixture(autouse=True)
def wide():
    """fp64, as in a check."""
    import jax

    with jax.enable_x64(True):
        yield


def accused(settings, family, mode, precision, seq=SEQ):
    """What a run of the library is accused of: layer, kind and first violation."""
    network = make(family, **settings)
    folder = save(network, Path(tempfile.mkdtemp(prefix="lyapunov-test-")))
    model = lyapunov.load(folder)
    tokens = np.random.default_rng(3).integers(0, model.config.vocab_size, (1, seq))
    (execution,) = executions_for(
        model.config,
        [precision],
        architecture=model.layout.architecture,
        measure="transformers",
        mode=mode,
    )
    trace = Transformers(execution).trace(model, tokens)
    found = list(divergences(model, execution, trace))
    assert len(found) == len(model.sublayers)
    return [(x.layer.layer, x.layer.kind, x.first) for x in found if x.first]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", FIRST)
def test_no_option_is_an_accusation(family, change, mode):
    """Assert no element above its bound; fp16 shows what rounds once or twice."""
    assert accused(altered(family, *CHANGES[change]), family, mode, "fp16") == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "jamba", "zamba"])
def test_a_single_token_with_biases_is_no_accusation(family, mode):
    """Assert it of one token, whose transposed view is contiguous."""
    assert accused(altered(family), family, mode, "bf16", seq=1) == []


def test_torch_adds_a_bias_where_it_is_declared():
    """Assert that a step's product is rounded once with its bias, a sequence's twice.

    The oracle is the product in fp64, which 16-bit numbers leave exact enough.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).bfloat16()
    weight, bias = draw(32, 64), draw(32)
    for mode, given in (
        ("decode", draw(1, 1, 64)),
        ("decode", draw(1, 64, 1).transpose(1, 2)),
        ("prefill", draw(1, 64, 40).transpose(1, 2)),
    ):
        product = given.double() @ weight.double().T
        once = (product + bias.double()).float().bfloat16()
        twice = product.float().bfloat16() + bias
        found = torch.nn.functional.linear(given, weight, bias)
        apart = (found != once).double().mean(), (found != twice).double().mean()
        make = transformers_decode if mode == "decode" else transformers_prefill
        declared = "out_product" in make("bf16").sites
        assert apart[0 if declared else 1] > 0.1
        assert apart[1 if declared else 0] == 0


@pytest.mark.parametrize(
    "family", ["bamba", "falcon_h1", "granitemoehybrid", "gpt_neox", "llama", "olmo2"]
)
def test_as_much_of_a_head_turns_as_in_the_library(family):
    """Assert it where the configuration has a share, which few families' code reads."""
    rope = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
    settings: Any = FIRST[family] | {"rope_parameters": rope}
    if family == "granitemoehybrid":
        settings |= {"position_embedding_type": "rope"}
    network = make(family, **settings)
    (rates,) = {
        module.inv_freq.shape[0]
        for module in network.modules()
        if hasattr(module, "inv_freq")
    }
    folder = save(network, Path(tempfile.mkdtemp(prefix="lyapunov-test-")))
    sizes = lyapunov.load(folder).config.sublayers
    assert {s.rotary for s in sizes if s.kind == "attention"} == {2 * rates}
    assert (4 * rates == sizes_of_head(network)) == (family in ("bamba", "gpt_neox"))


def sizes_of_head(network):
    config = network.config
    heads = config.num_attention_heads
    return getattr(config, "head_dim", None) or config.hidden_size // heads


def test_every_option_of_a_configuration_is_known():
    """Assert that each option of a class is varied, or exempt for a written reason."""
    from transformers import AutoConfig
    from transformers.configuration_utils import PreTrainedConfig

    common = set(PreTrainedConfig().to_dict())
    for family in FIRST:
        fields = AutoConfig.for_model(TEXT.get(family, family)).to_dict()
        own = set(fields) - common
        varied, exempt = set(OPTIONS[family]), set(EXEMPT)
        exempt |= {name for where, name in EXEMPT_IN if where == family}
        assert own <= varied | exempt, (family, sorted(own - varied - exempt))
        if (installed() or READ[1]) >= READ[1]:  # older ones have fewer options
            assert varied <= own | common, (family, sorted(varied - own - common))


def test_every_family_of_transformers_is_varied():
    """Assert it of all that are covered; others have layouts of their own."""
    own = {"mamba1": "mamba"}
    elsewhere = {"mamba3", "megatron", "openelm"}
    assert {own.get(name, name) for name in set(FAMILIES) - elsewhere} == set(FIRST)
