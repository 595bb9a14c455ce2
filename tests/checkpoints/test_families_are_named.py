"""A format or a family that is not covered is called by its name."""

import json

import pytest

from lyapunov._errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
)
from lyapunov.checkpoints import list_architectures

from .crafted import safetensors_bytes


def test_suffix_that_lies(refused, saved, mamba_ssm_saved):
    """Assert that each format under the other's suffix is named for what it is."""
    _, folder = saved()
    _, other = mamba_ssm_saved()
    one = (folder / "model.safetensors").read_bytes()
    two = (other / "pytorch_model.bin").read_bytes()
    (folder / "model.safetensors").write_bytes(two)
    (other / "pytorch_model.bin").write_bytes(one)
    refused(folder, CorruptCheckpointError, "not what its suffix says", "torch")
    refused(other, CorruptCheckpointError, "not what its suffix says", "safetensors")


@pytest.mark.parametrize(
    ("start", "error", "word"),
    [
        (b"GGUF\3\0\0\0", UnsupportedCheckpointError, "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", CheckpointError, "LFS"),
        (b"<!DOCTYPE html><html>", CorruptCheckpointError, "web page"),
        (b"\x89HDF\r\n", UnsupportedCheckpointError, "HDF5"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_foreign_content(refused, saved, start, error, word, name):
    """Assert that content of another kind is named under either suffix."""
    _, folder = saved()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(start + b"\0" * 100)
    refused(folder, error, word)
    refused(folder / name, error, word)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("model.onnx", "ONNX"),
        ("model.h5", "HDF5"),
        ("flax_model.msgpack", "Flax"),
        ("last.ckpt", "training checkpoint"),
    ],
)
def test_formats_that_are_not_covered(refused, saved, name, word):
    """Assert that a foreign format is named, as a file and as all a folder holds."""
    _, folder = saved()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\0" * 100)
    refused(folder / name, UnsupportedCheckpointError, word)
    refused(folder, UnsupportedCheckpointError, word)


def test_megatron_of_another_kind(refused, tmp_path):
    """Assert that a file without a model, and distributed ones, are named."""
    import argparse

    import torch

    path = tmp_path / "release" / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    torch.save({"args": argparse.Namespace(x=1)}, path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release")
    for source in (path, tmp_path, tmp_path / "release"):
        refused(source, UnsupportedCheckpointError, "holds no model")
    path.rename(path.with_name("__0_0.distcp"))
    e = refused(tmp_path, CheckpointNotFoundError, "model_optim_rng.pt")
    assert "torch_dist" in e.hint


def test_training_checkpoint_elsewhere(refused, saved):
    """Assert that Megatron's file under another name is named."""
    import argparse

    import torch

    _, folder = saved()
    (folder / "model.safetensors").unlink()
    state = {"model": {"w": torch.zeros(2)}, "args": argparse.Namespace(x=1)}
    torch.save(state, folder / "pytorch_model.bin")
    refused(folder, UnsupportedCheckpointError, "Megatron")


def test_adapter(refused, tmp_path):
    """Assert that a LoRA adapter is named."""
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes({}))
    refused(tmp_path, UnsupportedCheckpointError, "LoRA")


@pytest.mark.parametrize(
    "quantisation",
    [
        {"quant_method": "quark"},
        {"quant_method": "hqq", "bits": 4},
        {"quant_method": "mxfp4"},
        {"bits": 4},
    ],
)
def test_quantised_models(refused, saved, set_config, quantisation):
    """Assert that a quantised model of another kind is named with its method, and that
    those which are covered are."""
    _, folder = saved()
    set_config(folder, quantization_config=quantisation)
    method = quantisation.get("quant_method", "None")
    words = ("quantised", method, "compressed-tensors, fp8, modelopt, gptq, awq")
    refused(folder, UnsupportedCheckpointError, *words)


def test_quantised_tensors(refused, saved, rewrite):
    """Assert that integer weights are called quantised, whatever config.json says."""
    import torch

    _, folder = saved()
    name = "backbone.layers.1.mixer.in_proj.weight"
    rewrite(folder, lambda s: s.__setitem__(name, s[name].to(torch.int8)))
    refused(folder, UnsupportedCheckpointError, name, "int8", "quantised")


def test_the_list_of_architectures():
    """Assert that the list is plain JSON and that each has a layout that is read."""
    listed = {a["name"]: a for a in json.loads(json.dumps(list_architectures()))}
    assert {
        "mamba1",
        "mamba2",
        "mamba3",
        "jamba",
        "zamba2",
        "megatron",
        "llama",
    } <= set(listed)
    for a in listed.values():
        assert set(a) == {"name", "title", "layouts", "covered", "not_covered"}
        assert a["layouts"]
        assert a["covered"]
        assert "planned" not in a["not_covered"]


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [
        ("whale_mamba", "falcon_mamba"),
        ("zamba3", "zamba2"),
        ("nemotron_h2", "nemotron_h"),
        ("granitemoehybrid_next", "granitemoehybrid"),
    ],
)
def test_unknown_family_with_ssm_tensors(
    refused, saved, set_config, model_type, nearest
):
    """Assert that an unknown or newer model_type is named with the tensors that look
    like an SSM, and that the nearest ones are."""
    _, folder = saved()
    set_config(folder, model_type=model_type)
    e = refused(folder, UnsupportedCheckpointError, model_type, "A_log")
    assert nearest in e.hint.partition(";")[0]


def test_unknown_family_like_no_other(refused, saved, set_config):
    """Assert that nothing is called near where nothing is."""
    _, folder = saved()
    set_config(folder, model_type="qqqqqq")
    e = refused(folder, UnsupportedCheckpointError, "qqqqqq", "A_log")
    assert "nearest" not in e.hint


def test_model_without_ssm_layer(refused, tmp_path):
    """Assert that a Transformer of another family has no SSM layer."""
    from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "m")
    refused(tmp_path / "m", UnsupportedCheckpointError, "no SSM layer", "gpt2")


def test_mamba_ssm_layer_that_is_unknown(refused, mamba_ssm_saved):
    """Assert that a mixer of mamba_ssm that is not known is named."""
    _, folder = mamba_ssm_saved(ssm_cfg={"layer": "Mamba9"})
    refused(folder, UnsupportedCheckpointError, "Mamba9")


@pytest.mark.parametrize(
    ("attention", "word"),
    [
        ({}, "causal"),
        ({"causal": True, "rotary_emb_interleaved": True}, "interleaved"),
        ({"causal": True, "mlp_dim": 64}, "mlp_dim"),
        ({"causal": True, "window": 64}, "window"),
    ],
)
def test_attention_that_is_not_covered(refused, mamba_ssm_saved, attention, word):
    """Assert that attention of mamba_ssm that would be another function is named."""
    _, folder = mamba_ssm_saved(
        attn_layer_idx=[1], attn_cfg={"num_heads": 4, **attention}
    )
    refused(folder, UnsupportedCheckpointError, word)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rms_norm": False}, "layers.0.norm.bias"),
        ({"d_intermediate": 64}, "norm2.weight"),
        (
            {"attn_layer_idx": [1], "attn_cfg": {"num_heads": 4, "causal": True}},
            "1.mixer",
        ),
        ({"attn_layer_idx": [1], "attn_cfg": {"causal": True}}, "num_heads"),
        ({"attn_layer_idx": [7]}, "attn_layer_idx"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, "mixer.dt_bias"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "mixer.dt_bias"),
    ],
)
def test_parts_that_are_not_there(refused, mamba_ssm_saved, changes, word):
    """Assert that what config.json asks for is looked for among the tensors."""
    _, folder = mamba_ssm_saved(**changes)
    refused(folder, CorruptCheckpointError, word)


def test_unknown_ssm_setting(refused, mamba_ssm_saved):
    """Assert that a setting that could change the recurrence is not passed over."""
    _, folder = mamba_ssm_saved(ssm_cfg={"d_state": 4, "complex": True})
    refused(folder, UnsupportedCheckpointError, "complex")


def test_other_activation(refused, saved):
    """Assert that an activation other than silu is refused by name."""
    _, folder = saved(hidden_act="gelu")
    refused(folder, UnsupportedCheckpointError, "gelu")
