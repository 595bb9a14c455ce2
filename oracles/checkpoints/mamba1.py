"""Checkpoints written from NumPy weights, in both layouts that people have."""

import json
from pathlib import Path

import numpy as np

from oracles.networks.mamba1 import Sizes


def save_transformers(folder: Path, weights, sizes: Sizes, dtype="float32", **config):
    """`config.json` and one safetensors file, as `save_pretrained` writes them."""
    import ml_dtypes
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    settings = {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.d_model,
        "intermediate_size": sizes.d_inner,
        "expand": sizes.expand,
        "state_size": sizes.d_state,
        "conv_kernel": sizes.d_conv,
        "time_step_rank": sizes.dt_rank,
        "num_hidden_layers": sizes.layers,
        "layer_norm_epsilon": sizes.epsilon,
        "use_bias": sizes.proj_bias,
        "use_conv_bias": sizes.conv_bias,
        "residual_in_fp32": True,
        "tie_word_embeddings": sizes.tied,
        "torch_dtype": dtype,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    arrays = {k: np.ascontiguousarray(v.astype(kind)) for k, v in weights.items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_mamba_ssm(folder: Path, weights, sizes: Sizes, multiple: int = 8, **config):
    """`config.json` and `pytorch_model.bin` of MambaLMHeadModel, vocabulary padded."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    padded = -(-sizes.vocab // multiple) * multiple
    state = {}
    for key, value in weights.items():
        key = key.replace("backbone.embeddings.", "backbone.embedding.")
        if value.shape[0] == sizes.vocab and ("embedding" in key or "lm_head" in key):
            # padding that would win every argmax if anything read it
            rows = np.full((padded - sizes.vocab, sizes.d_model), 1e3, np.float32)
            value = np.concatenate([value, rows])
        state[key] = torch.tensor(value)
    if sizes.tied:
        state["lm_head.weight"] = state["backbone.embedding.weight"]
    settings = {
        "d_model": sizes.d_model,
        "d_intermediate": 0,
        "n_layer": sizes.layers,
        "vocab_size": sizes.vocab,
        "ssm_cfg": {
            "d_state": sizes.d_state,
            "d_conv": sizes.d_conv,
            "expand": sizes.expand,
            "dt_rank": sizes.dt_rank,
            "conv_bias": sizes.conv_bias,
            "bias": sizes.proj_bias,
        },
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": multiple,
        "tie_embeddings": sizes.tied,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    torch.save(state, folder / "pytorch_model.bin")
    return folder
