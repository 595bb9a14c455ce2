"""A format or a family that is not covered is called by its name."""

import json

import pytest

from lyapunov._errors import (
    CheckpointError,
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
        ("model.gguf", "GGUF"),
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


def test_megatron(refused, tmp_path):
    """Assert that a Megatron checkpoint is named, as a file and as a folder."""
    import argparse

    import torch

    path = tmp_path / "release" / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    state = {"model": {"w": torch.zeros(2)}, "args": argparse.Namespace(x=1)}
    torch.save(state, path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release")
    refused(path, UnsupportedCheckpointError, "Megatron")
    refused(tmp_path, UnsupportedCheckpointError, "Megatron")
    refused(tmp_path / "release", UnsupportedCheckpointError, "Megatron")


def test_adapter(refused, tmp_path):
    """Assert that a LoRA adapter is named."""
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes({}))
    refused(tmp_path, UnsupportedCheckpointError, "LoRA")


@pytest.mark.parametrize(
    "quantisation",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq"},
        {"quant_method": "compressed-tensors"},
        {"load_in_4bit": True},
    ],
)
def test_quantised_models(refused, saved, set_config, quantisation):
    """Assert that a quantised model is named with its method."""
    _, folder = saved()
    set_config(folder, quantization_config=quantisation)
    method = quantisation.get("quant_method", "bitsandbytes")
    refused(folder, UnsupportedCheckpointError, "quantised", method)


def test_quantised_tensors(refused, saved, rewrite):
    """Assert that integer weights are called quantised, whatever config.json says."""
    import torch

    _, folder = saved()
    name = "backbone.layers.1.mixer.in_proj.weight"
    rewrite(folder, lambda s: s.__setitem__(name, s[name].to(torch.int8)))
    refused(folder, UnsupportedCheckpointError, name, "int8", "quantised")


@pytest.mark.parametrize("model_type", ["mamba2", "jamba", "falcon_mamba", "zamba2"])
def test_planned_families(refused, saved, set_config, model_type):
    """Assert that a planned family is called planned, with its SSM tensors."""
    _, folder = saved()
    set_config(folder, model_type=model_type)
    e = refused(folder, UnsupportedCheckpointError, "planned", "A_log")
    assert "mamba1" in e.hint
    title = {a["name"]: a["title"] for a in list_architectures()}[model_type]
    assert title in e.message


def test_the_list_of_architectures():
    """Assert that the list is plain JSON and tells covered from planned."""
    listed = {a["name"]: a for a in json.loads(json.dumps(list_architectures()))}
    assert [name for name, a in listed.items() if a["layouts"]] == ["mamba1"]
    for a in listed.values():
        assert set(a) == {"name", "title", "layouts", "covered", "not_covered"}
        assert (
            bool(a["layouts"])
            == bool(a["covered"])
            == ("planned" not in a["not_covered"])
        )


def test_unknown_family_with_ssm_tensors(refused, saved, set_config):
    """Assert that an unknown model_type is named with the tensors that look it."""
    _, folder = saved()
    set_config(folder, model_type="whalemamba")
    refused(folder, UnsupportedCheckpointError, "whalemamba", "A_log")


def test_model_without_ssm_layer(refused, tmp_path):
    """Assert that a Llama has no SSM layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16,
            num_hidden_layers=1, num_attention_heads=2,
        )
    ).save_pretrained(tmp_path / "m")  # fmt: skip
    refused(tmp_path / "m", UnsupportedCheckpointError, "no SSM layer", "llama")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rms_norm": False}, "LayerNorm"),
        ({"d_intermediate": 64}, "MLP"),
        ({"attn_layer_idx": [1]}, "attention"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, "Mamba-2"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "Mamba-3"),
    ],
)
def test_mamba_ssm_variants_that_are_planned(refused, mamba_ssm_saved, changes, word):
    """Assert that variants of mamba_ssm are named and called planned."""
    _, folder = mamba_ssm_saved(**changes)
    refused(folder, UnsupportedCheckpointError, word, "planned")


def test_unknown_ssm_setting(refused, mamba_ssm_saved):
    """Assert that a setting that could change the recurrence is not passed over."""
    _, folder = mamba_ssm_saved(ssm_cfg={"d_state": 4, "complex": True})
    refused(folder, UnsupportedCheckpointError, "complex")


def test_other_activation(refused, saved):
    """Assert that an activation other than silu is refused by name."""
    _, folder = saved(hidden_act="gelu")
    refused(folder, UnsupportedCheckpointError, "gelu")
