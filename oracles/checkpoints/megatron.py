"""Checkpoints in Megatron's layout, cut for several GPUs, made from a known model.

As Megatron-LM's tools/checkpoint/hybrid_conversion.py describes it: which tensor is cut
along which axis, and in_proj and the convolution component by component.
"""

import argparse
import contextlib
import enum
import functools
import io
import sys
import types

from oracles.checkpoints.configurations import NEMOTRON, NO_LIMITS
from oracles.checkpoints.transformers import make


class Backend(enum.Enum):
    """Arguments hold enumerations, which no reader of weights may import."""

    AUTO = 1


Backend.__module__ = "megatron.core.enums"


@contextlib.contextmanager
def megatron_present():
    """Modules that make `Backend` one of Megatron's, as long as something is saved."""
    parts = Backend.__module__.split(".")
    paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
    modules = {path: types.ModuleType(path) for path in paths}
    for path in paths[1:]:
        parent, _, name = path.rpartition(".")
        setattr(modules[parent], name, modules[path])
    vars(modules[paths[-1]])["Backend"] = Backend
    sys.modules.update(modules)
    try:
        yield
    finally:
        for path in paths:
            del sys.modules[path]


def names(state, pattern):
    """A Nemotron-H model's tensors under Megatron's names; q, k, v put together."""
    renamed = {
        "embedding.word_embeddings.weight": state["model.embeddings.weight"],
        "decoder.final_norm.weight": state["model.norm_f.weight"],
        "output_layer.weight": state["lm_head.weight"],
    }
    for i, kind in enumerate(pattern):
        old, new = f"model.layers.{i}.", f"decoder.layers.{i}."
        own = {k.removeprefix(old): v for k, v in state.items() if k.startswith(old)}
        norm = own.pop("norm.weight")
        if kind == "M":
            renamed[f"{new}norm.weight"] = norm
            renamed |= {f"{new}{key}": value for key, value in own.items()}
        elif kind == "*":
            inside = f"{new}self_attention."
            renamed[f"{inside}linear_qkv.layer_norm_weight"] = norm
            renamed[f"{inside}linear_qkv.weight"] = by_group(own)
            renamed[f"{inside}linear_proj.weight"] = own["mixer.o_proj.weight"]
        else:
            renamed[f"{new}mlp.linear_fc1.layer_norm_weight"] = norm
            renamed[f"{new}mlp.linear_fc1.weight"] = own["mixer.up_proj.weight"]
            renamed[f"{new}mlp.linear_fc2.weight"] = own["mixer.down_proj.weight"]
    return renamed


def by_group(own, size=8):
    """Queries of a group of heads, then its key and its value."""
    import torch

    q, k, v = (own[f"mixer.{name}_proj.weight"].reshape(-1, size, 32) for name in "qkv")
    shared = len(q) // len(k)
    rows = []
    for g in range(len(k)):
        rows += [*q[g * shared : (g + 1) * shared], k[g], v[g]]
    return torch.cat(rows)


FIRST = (
    "word_embeddings.weight", "output_layer.weight", "A_log", ".D", "dt_bias",
    "mixer.norm.weight", "linear_qkv.weight", "linear_fc1.weight",
)  # fmt: skip
SECOND = ("out_proj.weight", "linear_proj.weight", "linear_fc2.weight")


def share(name, tensor, rank, ranks, inner, wide, heads):
    """What one of several ranks holds of a tensor."""
    import torch

    if name.endswith("in_proj.weight"):
        components = tensor.split([inner, inner, wide, wide, heads])
    elif "conv1d" in name:
        components = tensor.split([inner, wide, wide])
    elif name.endswith(FIRST):
        components = [tensor]
    elif name.endswith(SECOND):
        return tensor.chunk(ranks, dim=1)[rank].clone()
    else:
        return tensor.clone()
    return torch.cat([part.chunk(ranks)[rank] for part in components])


def save(folder, tensors, ranks, *, inner, wide, heads, **changes):
    """`release/mp_rank_0r/model_optim_rng.pt` for each rank, and the tracker."""
    import torch

    args = {
        "num_layers": 4, "hidden_size": 32, "num_attention_heads": 4,
        "group_query_attention": True, "num_query_groups": 2, "kv_channels": 8,
        "ffn_hidden_size": 40, "squared_relu": True, "normalization": "RMSNorm",
        "norm_epsilon": 1e-5, "add_bias_linear": False, "mamba_state_dim": 8,
        "mamba_num_groups": 2, "position_embedding_type": "none",
        "untie_embeddings_and_output_weights": True, "vocab_size": 50,
        "tensor_model_parallel_size": ranks, "params_dtype": torch.bfloat16,
        "attention_backend": Backend.AUTO, "spec": ["megatron.core", "mamba_spec"],
        **changes,
    }  # fmt: skip
    (folder / "release").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("release")
    for rank in range(ranks):
        model = {
            name: share(name, tensor, rank, ranks, inner, wide, heads)
            for name, tensor in tensors.items()
        }
        model["decoder.layers.0.mixer._extra_state"] = io.BytesIO(b"nothing")
        state = {
            "args": argparse.Namespace(**args),
            "checkpoint_version": 3.0,
            "iteration": 7,
            "model": model,
            "rng_state": [{"random_rng_state": (3, (1, 2), None)}],
        }
        place = folder / "release" / f"mp_rank_{rank:02d}"
        place.mkdir()
        with megatron_present():
            torch.save(state, place / "model_optim_rng.pt")
    return folder


PATTERN = "M*-M"
SIZES = {"inner": 32, "wide": 16, "heads": 4}


@functools.cache
def known():
    """A Nemotron-H model, which is what Megatron's hybrids became in transformers."""
    words = {"M": "linear_attention", "*": "full_attention", "-": "mlp"}
    kinds = [words[letter] for letter in PATTERN]
    # Megatron's mixers have no least dt
    settings = {**NEMOTRON, "layers_block_type": kinds, **NO_LIMITS["nemotron_h"]}
    return make("nemotron_h", **settings)


def tensors():
    """Its tensors under Megatron's names."""
    return names(known().state_dict(), PATTERN)
