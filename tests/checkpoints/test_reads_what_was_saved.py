"""Every tensor comes back bit for bit, whichever library wrote it."""

import json

import ml_dtypes
import numpy as np
import pytest

from lyapunov.checkpoints import open_checkpoint, recognise
from lyapunov.checkpoints._network import each_once
from lyapunov.checkpoints._parts import Part, rows as rows_of


DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}


def bits(tensor) -> bytes:
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(array, tensor):
    import torch

    assert array.shape == tuple(tensor.shape)
    if tensor.dtype is torch.bfloat16:
        assert array.dtype == ml_dtypes.bfloat16
    else:
        assert array.dtype == tensor.detach().numpy().dtype
    assert array.tobytes() == bits(tensor)


def assert_layout_matches(layout, state, root="backbone."):
    """Compare every canonical array with the state dict that was saved."""
    c = layout.config
    names = {
        "norm": "norm.weight",
        "in_proj": "mixer.in_proj.weight",
        "conv_bias": "mixer.conv1d.bias",
        "x_proj": "mixer.x_proj.weight",
        "dt_proj": "mixer.dt_proj.weight",
        "dt_bias": "mixer.dt_proj.bias",
        "A_log": "mixer.A_log",
        "D": "mixer.D",
        "out_proj": "mixer.out_proj.weight",
        "in_proj_bias": "mixer.in_proj.bias",
        "out_proj_bias": "mixer.out_proj.bias",
    }
    prefix = f"{root}layers."
    for i in range(c.n_layers):
        arrays = layout.layer(i)
        stored = {k: v for k, v in state.items() if k.startswith(f"{prefix}{i}.")}
        assert len(arrays) == len(stored)
        for key, array in arrays.items():
            if key == "conv_weight":
                conv = state[f"{prefix}{i}.mixer.conv1d.weight"]
                assert_same(array, conv[:, 0, :])
            else:
                assert_same(array, state[f"{prefix}{i}.{names[key]}"])
    assert_same(layout.final_norm(), state[f"{root}norm_f.weight"])
    embedding = state.get(f"{root}embeddings.weight")
    if embedding is None:
        embedding = state[f"{root}embedding.weight"]
    rows = np.array([5, 0, 5, c.padded_vocab_size - 1, 6, 7])
    assert_same(layout.embedding(rows), embedding[rows])
    head = embedding if c.tie_embeddings else state["lm_head.weight"]
    assert_same(layout.head(0, c.padded_vocab_size), head)
    assert_same(layout.head(7, 20), head[7:20])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_safetensors(saved, dtype, tied):
    """Assert that one safetensors file gives the state dict, head tied or not."""
    model, folder = saved(dtype=dtype, tie_word_embeddings=tied)
    layout = recognise(open_checkpoint(folder))
    assert layout.dtype == DTYPES[dtype]
    assert layout.config.tie_embeddings is tied
    assert layout.architecture == "mamba1"
    assert layout.n_params == sum(p.numel() for p in model.parameters())
    assert_layout_matches(layout, model.state_dict())


def test_transformers_sharded(saved):
    """Assert that shards with an index give what one file gives."""
    model, folder = saved(max_shard_size="20KB", tie_word_embeddings=False)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    checkpoint = open_checkpoint(folder)
    assert_layout_matches(recognise(checkpoint), model.state_dict())
    names = [path.name for path in checkpoint.files]
    assert names[:2] == ["config.json", "model.safetensors.index.json"]
    assert set(checkpoint.names()) == set(model.state_dict())


@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_bin(saved, dtype):
    """Assert that pytorch_model.bin gives the state dict, without unpickling it."""
    import torch

    model, folder = saved(dtype=dtype, tie_word_embeddings=False)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert_layout_matches(recognise(open_checkpoint(folder)), model.state_dict())


def test_transformers_sharded_bin(saved):
    """Assert that sharded .bin files with an index are joined."""
    import torch

    model, folder = saved(tie_word_embeddings=False)
    (folder / "model.safetensors").unlink()
    state, index = model.state_dict(), {}
    for k, part in enumerate((list(state)[::2], list(state)[1::2])):
        shard = f"pytorch_model-{k + 1:05}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    assert_layout_matches(recognise(open_checkpoint(folder)), state)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_mamba_ssm(mamba_ssm_saved, dtype, tied):
    """Assert that mamba_ssm's layout is read: padded, A_log and D in fp32."""
    state, folder = mamba_ssm_saved(dtype=dtype, tie=tied)
    layout = recognise(open_checkpoint(folder))
    assert (layout.config.vocab_size, layout.config.padded_vocab_size) == (53, 56)
    assert layout.config.fused_add_norm
    assert layout.dtype == DTYPES[dtype]
    assert layout.layer(0)["A_log"].dtype == np.float32
    assert_layout_matches(layout, state)


def test_mamba_ssm_safetensors(mamba_ssm_saved):
    """Assert that mamba_ssm's names in a safetensors file are read too."""
    from safetensors.torch import save_file

    state, folder = mamba_ssm_saved(tie=False)
    (folder / "pytorch_model.bin").unlink()
    save_file(state, folder / "model.safetensors")
    assert_layout_matches(recognise(open_checkpoint(folder)), state)


def test_tied_head_stored_twice(mamba_ssm_saved):
    """Assert that a tied head stored as a copy of the embedding counts once."""
    import torch

    state, folder = mamba_ssm_saved()
    once = recognise(open_checkpoint(folder)).n_params
    state["lm_head.weight"] = state["backbone.embedding.weight"].clone()
    torch.save(state, folder / "pytorch_model.bin")
    assert recognise(open_checkpoint(folder)).n_params == once


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("conv_bias", [True, False])
def test_optional_biases(saved, bias, conv_bias):
    """Assert that biases are there exactly when the model has them."""
    model, folder = saved(use_bias=bias, use_conv_bias=conv_bias)
    layout = recognise(open_checkpoint(folder))
    assert ("in_proj_bias" in layout.layer(0)) is bias
    assert ("out_proj_bias" in layout.layer(0)) is bias
    assert ("conv_bias" in layout.layer(0)) is conv_bias
    assert_layout_matches(layout, model.state_dict())


def test_sizes_follow_the_configuration(saved):
    """Assert that unusual sizes and switches reach the configuration."""
    model, folder = saved(
        expand=3, conv_kernel=3, time_step_rank=5, layer_norm_epsilon=1e-3,
        residual_in_fp32=False,
    )  # fmt: skip
    c = recognise(open_checkpoint(folder)).config
    (sizes,) = set(c.sublayers)
    assert (sizes.d_inner, sizes.d_conv) == (96, 3)
    assert (sizes.dt_rank, sizes.d_state) == (5, 4)
    assert (sizes.norm_epsilon, c.norm_epsilon) == (1e-3, 1e-3)
    assert c.residual_in_fp32 is False
    assert_layout_matches(recognise(open_checkpoint(folder)), model.state_dict())


def test_rank_auto_is_a_sixteenth_rounded_up(saved, set_config):
    """Assert that time_step_rank "auto" means ceil(hidden_size / 16)."""
    _, folder = saved(hidden_size=40)
    set_config(folder, time_step_rank="auto")
    sizes = recognise(open_checkpoint(folder)).config.sublayers[0]
    assert sizes.dt_rank == 3


def test_bare_backbone(tmp_path, transformers_model):
    """Assert that a `MambaModel` saved without its head is read as tied."""
    backbone = transformers_model().backbone
    backbone.save_pretrained(tmp_path / "m")
    layout = recognise(open_checkpoint(tmp_path / "m"))
    assert_layout_matches(layout, backbone.state_dict(), root="")


def test_a_file_beside_its_configuration(saved, mamba_ssm_saved):
    """Assert that a file stands for its folder, and text for a path."""
    _, folder = saved()
    _, other = mamba_ssm_saved()
    other.joinpath("weights.pt").hardlink_to(other / "pytorch_model.bin")
    assert recognise(open_checkpoint(other / "weights.pt")).config.vocab_size == 53
    one = recognise(open_checkpoint(str(folder / "model.safetensors")))
    two = recognise(open_checkpoint(other / "pytorch_model.bin"))
    assert one.checkpoint.folder == folder
    assert two.checkpoint.source == str(other / "pytorch_model.bin")


def test_views_of_shared_memory(tmp_path):
    """Assert that transposed, sliced, scalar and empty tensors in a .bin are read."""
    import torch

    from lyapunov.checkpoints.files._file_formats import read_tensors

    base = torch.arange(60.0).reshape(5, 12)
    state = {
        "transposed": base.t(),
        "columns": base[:, 3:9:2],
        "rows": base[1:4],
        "expanded": torch.zeros(1, 3).expand(1, 3),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "decorated": torch.nn.Parameter(torch.ones(2)),
        "parameter": torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)),
    }
    state["decorated"]._no_weight_decay = True  # mamba_ssm marks A_log and D so
    torch.save(state, tmp_path / "x.bin")
    tensors = read_tensors(tmp_path / "x.bin")
    assert set(tensors) == set(state)
    for name, tensor in state.items():
        assert_same(tensors[name].read(), tensor)
    rows = np.array([[4, 0], [0, 2]])
    assert_same(tensors["transposed"].read_rows(rows), base.t()[rows])
    assert_same(tensors["transposed"].read_rows(2, 5), base.t()[2:5])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, protocol):
    """Assert that `torch.save` with any protocol is understood."""
    import torch

    from lyapunov.checkpoints.files._file_formats import read_tensors

    state = torch.nn.Linear(3, 2).state_dict()
    torch.save(state, tmp_path / "x.bin", pickle_protocol=protocol)
    tensors = read_tensors(tmp_path / "x.bin")
    for name, tensor in state.items():
        assert_same(tensors[name].read(), tensor)


def test_rows_are_read_alone(saved, monkeypatch):
    """Assert that gathering rows reads their bytes once each and no others."""
    from lyapunov.checkpoints.files import _tensors

    _, folder = saved()
    layout = recognise(open_checkpoint(folder))
    taken = []
    fill = _tensors._fill

    def counting(file, offset, out, path):
        taken.append(out.nbytes)
        fill(file, offset, out, path)

    monkeypatch.setattr(_tensors, "_fill", counting)
    layout.embedding(np.array([9, 3, 4, 3, 9, 9]))
    assert sum(taken) == 3 * 32 * 4  # rows 3, 4 and 9, once each, in fp32
    taken.clear()
    layout.head(10, 12)
    assert sum(taken) == 2 * 32 * 4


def test_rows_outside_are_refused(saved):
    """Assert that rows that do not exist are an IndexError, never other bytes."""
    _, folder = saved()
    checkpoint = open_checkpoint(folder)
    name = "backbone.embeddings.weight"
    for rows in (np.array([53]), np.array([-1]), np.array([0.5])):
        with pytest.raises(IndexError):
            checkpoint.read_rows(name, rows)
    for start, stop in ((0, 54), (-1, 3), (4, 3)):
        with pytest.raises(IndexError):
            checkpoint.read_rows(name, start, stop)
    assert checkpoint.read_rows(name, np.array([], int)).shape == (0, 32)


def test_hashes(saved):
    """Assert that the hashes are SHA-256 of the files that were read."""
    import hashlib

    _, folder = saved()
    for entry in open_checkpoint(folder).hashes():
        content = (folder / entry["name"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def test_importing_brings_neither_jax_nor_torch():
    """Assert that importing the reader, and opening a file, loads no framework."""
    import subprocess
    import sys

    program = (
        "import sys, lyapunov.checkpoints as c; c.open_checkpoint; "
        "c.list_architectures();"
        "print({'jax', 'torch', 'huggingface_hub', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_tensor_of_several_parameters_is_read_once_and_no_other_is_kept():
    """Assert it of gate and up, and that experts stored apart are read one by one."""
    read = []

    def stored(name):
        read.append(name)
        return np.arange(4.0) if name == "both" else np.ones(2)

    halves = {
        "up": Part("both", (4,), rows_of(0, 2)),
        "gate": Part("both", (4,), rows_of(2, 4)),
    }
    parts = halves | {"down": Part(("e0", "e1"), (2,))}
    once = each_once(parts, stored)
    found = {name: part.read(once) for name, part in parts.items()}
    assert read == ["both", "e0", "e1"]
    assert found["gate"].tolist() == [2.0, 3.0]
    assert found["down"].shape == (2, 2)
