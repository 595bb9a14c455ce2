"""The fp64 forward of every family against its own library's fp32 forward.

Tolerances: the logits' condition with respect to relative errors of what each module
puts out (found by perturbing the library's model), times counted roundings, times u.
"""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.implementations.transformers._source import refuse_other_functions
from oracles.checkpoints.configurations import CASES, CONFIGURATIONS
from oracles.checkpoints.transformers import logits, make, save, tolerance
from tests.families.quick import QUICK

from ..helpers import assert_within


TOKENS = np.random.default_rng(7).integers(0, 50, 19)


@functools.cache
def case(family, name):
    """The library's model, its logits, ours, and how far apart they may be."""
    network = make(family, **CONFIGURATIONS[family][name])
    folder = save(network, Path(tempfile.mkdtemp(prefix="lyapunov-test-")))
    model = lyapunov.load(folder)
    try:
        refuse_other_functions(family, model.config.sublayers)
    except UsageError as error:  # the installed version is no oracle of it
        pytest.skip(str(error))
    ours = np.asarray(model.logits(TOKENS))
    return network, logits(network, TOKENS), ours, tolerance(network, TOKENS)


@pytest.mark.parametrize(("family", "name"), QUICK)
def test_logits_agree_with_the_library(family, name):
    """Assert it within a tolerance that is not vacuous."""
    _, theirs, ours, allowed = case(family, name)
    assert allowed < 1e-2 * np.abs(theirs).max()
    assert_within(ours, theirs, allowed, f"{family}, {name}")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_tensor_counts(family, name):
    """Assert that the tolerance would notice any tensor of the model taken wrongly."""
    import torch

    network, theirs, ours, allowed = case(family, name)
    for key, parameter in network.named_parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            # neither a factor nor one number for all: norms behind take these away
            if before.dim() > 1:
                parameter.copy_(before.flip(-1 if before.shape[-1] > 1 else -2))
            else:
                parameter.add_(0.5 * (torch.arange(len(before)) % 3))
            moved = logits(network, TOKENS)
            parameter.copy_(before)
        if np.array_equal(moved, theirs):  # a copy of a block, for other layers
            assert "adapter_list" in key
            continue
        assert np.abs(moved - ours).max() > allowed, key


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_weights_stored_in_bf16_are_read_as_they_are(family, tmp_path):
    """Assert the logits of the rounded weights, not of what they were."""
    import torch
    from transformers import AutoModelForCausalLM

    network = make(family, **next(iter(CONFIGURATIONS[family].values())))
    before = logits(network, TOKENS)
    folder = save(network, tmp_path / "model", "bfloat16")
    rounded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs, allowed = logits(rounded, TOKENS), tolerance(rounded, TOKENS)
    ours = np.asarray(lyapunov.load(folder).logits(TOKENS))
    if family == "minimax":
        # its buffers of decays are rounded apart from its slopes: of such a file
        # transformers computes another function of whole texts than by steps
        assert np.abs(ours - theirs).max() > allowed
        theirs = by_steps(rounded)
    assert_within(ours, theirs, allowed, family)
    assert np.abs(before - theirs).max() > allowed


def by_steps(network):
    """Logits of a text, a token at a time."""
    import torch

    cache, found = None, []
    for token in TOKENS:
        with torch.no_grad():
            said = network(torch.tensor([[token]]), past_key_values=cache)
        cache = said.past_key_values
        found.append(said.logits[0, -1].double().numpy())
    return np.stack(found)


def test_parameters_are_counted_once(tmp_path):
    """Assert the number of parameters, of which tied and shared ones count once."""
    for family in ("zamba2", "zamba", "jamba", "llama", "nemotron_h"):
        network = make(family, **next(iter(CONFIGURATIONS[family].values())))
        folder = save(network, tmp_path / family)
        counted = sum(p.numel() for p in network.parameters())
        counted += sum(
            b.numel() for n, b in network.named_buffers() if n.endswith("_bias")
        )
        assert lyapunov.load(folder).layout.n_params == counted, family


def test_older_words_for_layers_are_understood(tmp_path):
    """Assert that layers named as older configurations name them give the same."""
    older = {"linear_attention": "mamba", "full_attention": "attention"}
    for family, key in (
        ("granitemoehybrid", "layer_types"),
        ("zamba2", "layers_block_type"),
    ):
        network = make(family, **next(iter(CONFIGURATIONS[family].values())))
        folder = save(network, tmp_path / family)
        expected = np.asarray(lyapunov.load(folder).logits(TOKENS))
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config[key] = [older.get(kind, kind) for kind in config[key]]
        path.write_text(json.dumps(config))
        np.testing.assert_array_equal(
            np.asarray(lyapunov.load(folder).logits(TOKENS)), expected
        )
