"""Megatron's checkpoints and Mistral's hold the same network as transformers' do."""

import copy
import json
import shutil
import sys

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from oracles.checkpoints import megatron
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.megatron import SIZES, known, tensors
from oracles.checkpoints.transformers import (
    logits,
    make,
    save as save_transformers,
    tolerance,
)

from ..helpers import assert_within


TOKENS = np.random.default_rng(7).integers(0, 50, 12)


def test_shards_are_put_together(tmp_path):
    """Assert one rank and two against transformers, and bit for bit to each other."""
    theirs, allowed = logits(known(), TOKENS), tolerance(known(), TOKENS)
    ours = []
    for ranks in (1, 2):
        folder = megatron.save(tmp_path / str(ranks), tensors(), ranks, **SIZES)
        model = lyapunov.load(folder)
        assert model.layout.architecture == "megatron"
        ours.append(np.asarray(model.logits(TOKENS)))
        counted = sum(p.numel() for p in known().parameters())
        assert model.layout.n_params == counted
    assert allowed < 1e-2 * np.abs(theirs).max()
    assert_within(ours[0], theirs, allowed)
    np.testing.assert_array_equal(*ours)


def test_any_way_of_naming_it(tmp_path):
    """Assert the folder, an iteration's, a rank's and the file itself."""
    folder = megatron.save(tmp_path / "model", tensors(), 2, **SIZES)
    expected = np.asarray(lyapunov.load(folder).logits(TOKENS))
    rank = folder / "release" / "mp_rank_00"
    for source in (folder / "release", rank, rank / "model_optim_rng.pt"):
        found = np.asarray(lyapunov.load(source).logits(TOKENS))
        np.testing.assert_array_equal(found, expected)
    (folder / "release").rename(folder / "iter_0000050")
    (folder / "latest_checkpointed_iteration.txt").write_text("50")
    found = np.asarray(lyapunov.load(folder).logits(TOKENS))
    np.testing.assert_array_equal(found, expected)


def test_a_wrong_way_to_put_shards_together_is_noticed(tmp_path, monkeypatch):
    """Assert that joining ranks without their components gives another network."""
    from lyapunov.checkpoints.files import _megatron_shards

    folder = megatron.save(tmp_path / "model", tensors(), 2, **SIZES)
    monkeypatch.setattr(_megatron_shards, "_components", lambda *_: ())
    allowed = tolerance(known(), TOKENS)
    wrong = np.asarray(lyapunov.load(folder).logits(TOKENS))
    assert np.abs(wrong - logits(known(), TOKENS)).max() > allowed


def test_tied_head_and_norms_alone(tmp_path):
    """Assert the embedding as the head, and norms that are not fused with what reads
    them."""
    renamed = {
        name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.")
        .replace("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm.")
        .replace("mixer.conv1d.", "mixer.conv1d_"): tensor
        for name, tensor in tensors().items()
        if name != "output_layer.weight"
    }
    folder = megatron.save(
        tmp_path / "model", renamed, 2, **SIZES,
        untie_embeddings_and_output_weights=False,
    )  # fmt: skip
    ours = np.asarray(lyapunov.load(folder).logits(TOKENS))
    network = copy.deepcopy(known())
    network.lm_head.weight.data = network.model.embeddings.weight.data
    assert_within(ours, logits(network, TOKENS), tolerance(network, TOKENS))


def refused(source, error, *words):
    with pytest.raises(error) as caught:
        lyapunov.load(source)
    for word in words:
        assert word in caught.value.message, caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"normalization": "LayerNorm"}, UnsupportedCheckpointError, "LayerNorm"),
        ({"add_bias_linear": True}, UnsupportedCheckpointError, "add_bias_linear"),
        ({"mamba_state_dim": 16}, CorruptCheckpointError, "mixer."),
        ({"num_layers": 5}, CorruptCheckpointError, "layers.4"),
        ({"hidden_size": "wide"}, CorruptCheckpointError, "hidden_size"),
        ({"tensor_model_parallel_size": 4}, CheckpointNotFoundError, "4 ranks"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, changes, error, word):
    """Assert that each is named."""
    folder = megatron.save(tmp_path / "model", tensors(), 2, **SIZES, **changes)
    refused(folder, error, word)


def test_ranks_that_are_missing(tmp_path):
    """Assert a rank's folder, its file and a tensor of it."""
    import torch

    folder = megatron.save(tmp_path / "model", tensors(), 3 - 1, **SIZES)
    release = folder / "release"
    file = release / "mp_rank_01" / "model_optim_rng.pt"
    with megatron.megatron_present():
        state = torch.load(file, weights_only=False)
    del state["args"].attention_backend
    del state["model"]["decoder.layers.0.mixer.D"]
    torch.save(state, file)
    refused(folder, CorruptCheckpointError, "mixer.D")
    file.unlink()
    refused(folder, CheckpointNotFoundError, "model_optim_rng.pt")
    shutil.rmtree(release / "mp_rank_00")
    refused(folder, CheckpointNotFoundError, "lacks ranks")
    (release / "mp_rank_01").rename(release / "mp_rank_00_000")
    refused(folder, UnsupportedCheckpointError, "pipeline")
    shutil.rmtree(release)
    refused(folder, CheckpointNotFoundError, "release")


def test_arguments_are_never_imported(tmp_path):
    """Assert that what the file names is neither imported nor run."""
    import torch

    folder = megatron.save(tmp_path / "model", tensors(), 1, **SIZES)
    file = folder / "release" / "mp_rank_00" / "model_optim_rng.pt"
    before = set(sys.modules)
    lyapunov.load(folder)
    assert not any(one.startswith("megatron") for one in set(sys.modules) - before)
    with megatron.megatron_present():
        state = torch.load(file, weights_only=False)
    del state["args"].attention_backend

    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'it-ran'}",)

    state["args"].setting = Evil()
    torch.save(state, file)
    refused(folder, UnsafeCheckpointError, "posix.system")
    assert not (tmp_path / "it-ran").exists()


def test_mistrals_own_layout(tmp_path):
    """Assert that params.json and consolidated.safetensors give the same network."""
    from safetensors.torch import load_file, save_file

    settings = {
        **CONFIGURATIONS["mamba2"]["Codestral's groups"], "state_size": 128,
        "head_dim": 64, "num_heads": 2, "hidden_size": 64, "n_groups": 2,
        "num_hidden_layers": 1, "tie_word_embeddings": False,
    }  # fmt: skip
    network = make("mamba2", **settings)
    folder = save_transformers(network, tmp_path / "model")
    ours = np.asarray(lyapunov.load(folder).logits(TOKENS))
    state = {
        "model." + name.replace("embeddings", "embedding"): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    other = tmp_path / "mistral"
    other.mkdir()
    save_file(state, other / "consolidated.safetensors")
    params = {
        "dim": 64, "n_layers": 1, "vocab_size": 50, "n_groups": 2, "rms_norm": True,
        "residual_in_fp32": True, "fused_add_norm": True, "model_type": "mamba",
        "pad_vocab_size_multiple": 1, "tie_embeddings": False,
    }  # fmt: skip
    (other / "params.json").write_text(json.dumps(params))
    for source in (other, other / "consolidated.safetensors"):
        model = lyapunov.load(source)
        np.testing.assert_array_equal(np.asarray(model.logits(TOKENS)), ours)
        assert model.layout.modules == ("model.backbone.layers.0.mixer",)
    (other / "params.json").write_text(json.dumps({"dim": 64, "n_heads": 4}))
    refused(other, UnsupportedCheckpointError, "Transformer")
