"""Transformers for contrast: GPT-NeoX (Pythia), Llama (TinyLlama), OLMo and OLMo 2."""

from typing import Any

import numpy as np

from ...sublayers import AttentionSizes, MlpSizes, NetworkConfig
from .._blocks import attention_parts, mlp_parts
from .._checkpoint import Checkpoint
from .._network import NetworkLayout, Part, TopNames, recognise_network
from .._settings import (
    activation,
    head_count,
    head_size,
    integer,
    layer_count,
    positive,
    rotary,
    switch,
)


def gpt_neox_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "gpt_neox"."""
    d_model = integer(config, "hidden_size", 6144)
    heads = integer(config, "num_attention_heads", 64)
    head_dim = head_size(config, d_model, heads)
    turning, theta = rotary(
        config,
        head_dim,
        share=positive(config, "rotary_pct", 0.25),
        theta=positive(config, "rotary_emb_base", 10000.0),
    )
    epsilon = positive(config, "layer_norm_eps", 1e-5)
    attention = AttentionSizes(
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        rotary=turning,
        theta=theta,
        scale=head_dim**-0.5,
        norm_epsilon=epsilon,
        norm_centred=True,
    )
    mlp = MlpSizes(
        d_model=d_model,
        d_hidden=integer(config, "intermediate_size", 24576),
        activation=activation(config, "gelu"),
        gated=False,
        norm_epsilon=epsilon,
        norm_centred=True,
        beside=switch(config, "use_parallel_residual", True),
    )
    vocab_size = integer(config, "vocab_size", 50432)
    return NetworkConfig(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=d_model,
        sublayers=(attention, mlp) * layer_count(config, "num_hidden_layers", 44),
        norm_epsilon=epsilon,
        residual_in_fp32=False,
        tie_embeddings=switch(config, "tie_word_embeddings", False),
        norm_centred=True,
    )


def recognise_gpt_neox(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A GPT-NeoX model; query, key and value lie in one tensor, head by head."""
    parts: list[dict[str, Part]] = []
    for i in range(len(config.sublayers) // 2):
        attention, mlp = config.sublayers[2 * i : 2 * i + 2]
        prefix = f"gpt_neox.layers.{i}."
        width, hidden = config.d_model, mlp.d_hidden
        fused = f"{prefix}attention.query_key_value"
        own: dict[str, Part] = {
            "norm": Part(f"{prefix}input_layernorm.weight", (width,)),
            "norm_bias": Part(f"{prefix}input_layernorm.bias", (width,)),
            "o_proj": Part(f"{prefix}attention.dense.weight", (width, width)),
        }
        for j, name in enumerate("qkv"):
            take = _of_each_head(j, attention.heads)
            own[f"{name}_proj"] = Part(f"{fused}.weight", (3 * width, width), take)
            if f"{fused}.bias" in checkpoint.tensors:
                own[f"{name}_bias"] = Part(f"{fused}.bias", (3 * width,), take)
        if f"{prefix}attention.dense.bias" in checkpoint.tensors:
            own["o_bias"] = Part(f"{prefix}attention.dense.bias", (width,))
        parts.append(own)
        parts.append(
            {
                "norm": Part(f"{prefix}post_attention_layernorm.weight", (width,)),
                "norm_bias": Part(f"{prefix}post_attention_layernorm.bias", (width,)),
                "up": Part(f"{prefix}mlp.dense_h_to_4h.weight", (hidden, width)),
                "up_bias": Part(f"{prefix}mlp.dense_h_to_4h.bias", (hidden,)),
                "down": Part(f"{prefix}mlp.dense_4h_to_h.weight", (width, hidden)),
                "down_bias": Part(f"{prefix}mlp.dense_4h_to_h.bias", (width,)),
            }
        )
    embedding = "gpt_neox.embed_in.weight"
    names = TopNames(
        embedding=embedding,
        final_norm="gpt_neox.final_layer_norm.weight",
        head=embedding if config.tie_embeddings else "embed_out.weight",
        inside=("gpt_neox.", "embed_out."),
        final_norm_bias="gpt_neox.final_layer_norm.bias",
    )
    buffers = [
        name
        for name in checkpoint.tensors
        if name.endswith(
            ("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq")
        )
    ]
    layers = len(config.sublayers) // 2
    return recognise_network(
        checkpoint, "gpt_neox", config, names, parts, buffers, layers
    )


def _of_each_head(j: int, heads: int):
    def take(array: np.ndarray) -> np.ndarray:
        apart = array.reshape(heads, 3, -1, *array.shape[1:])
        return apart[:, j].reshape(-1, *array.shape[1:])

    return take


def llama_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "llama"."""
    return _llama_like(config, positive(config, "rms_norm_eps", 1e-6))


def olmo_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "olmo"; norms have no weights."""
    return _llama_like(config, 1e-5, norm_centred=True)


def olmo2_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "olmo2"; norms stand behind."""
    epsilon = positive(config, "rms_norm_eps", 1e-5)
    return _llama_like(config, epsilon, norm_front=False, norm_behind=True)


def _llama_like(config: dict[str, Any], epsilon: float, **norms: bool) -> NetworkConfig:
    d_model = integer(config, "hidden_size", 4096)
    heads, kv_heads = head_count(config, 32)
    head_dim = head_size(config, d_model, heads)
    turning, theta = rotary(config, head_dim)
    clip = config.get("clip_qkv")
    attention = AttentionSizes(
        d_model=d_model,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rotary=turning,
        theta=theta,
        scale=head_dim**-0.5,
        norm_epsilon=epsilon,
        clip=None if clip is None else positive(config, "clip_qkv", 1.0),
        **norms,
    )
    mlp = MlpSizes(
        d_model=d_model,
        d_hidden=integer(config, "intermediate_size", 11008),
        activation=activation(config, "silu"),
        gated=True,
        norm_epsilon=epsilon,
        **norms,
    )
    vocab_size = integer(config, "vocab_size", 32000)
    return NetworkConfig(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=d_model,
        sublayers=(attention, mlp) * layer_count(config, "num_hidden_layers", 32),
        norm_epsilon=epsilon,
        residual_in_fp32=False,
        tie_embeddings=switch(config, "tie_word_embeddings", False),
        norm_centred=norms.get("norm_centred", False),
    )


def recognise_llama(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A Llama model."""
    return _recognise_llama_like(checkpoint, config, "llama")


def recognise_olmo(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """An OLMo model of the first kind."""
    return _recognise_llama_like(checkpoint, config, "olmo")


def recognise_olmo2(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """An OLMo 2 model."""
    return _recognise_llama_like(checkpoint, config, "olmo2")


def _recognise_llama_like(
    checkpoint: Checkpoint, config: NetworkConfig, name: str
) -> NetworkLayout:
    stored, width = checkpoint.tensors, config.d_model
    parts: list[dict[str, Part]] = []
    for i in range(len(config.sublayers) // 2):
        attention, mlp = config.sublayers[2 * i : 2 * i + 2]
        prefix = f"model.layers.{i}."
        one = attention_parts(attention, stored, f"{prefix}self_attn.", None)
        two = mlp_parts(mlp, stored, f"{prefix}mlp.", None)
        if name == "llama":
            one["norm"] = Part(f"{prefix}input_layernorm.weight", (width,))
            two["norm"] = Part(f"{prefix}post_attention_layernorm.weight", (width,))
        if name == "olmo2":
            q, kv = (
                n * attention.head_dim for n in (attention.heads, attention.kv_heads)
            )
            one["q_norm"] = Part(f"{prefix}self_attn.q_norm.weight", (q,))
            one["k_norm"] = Part(f"{prefix}self_attn.k_norm.weight", (kv,))
            behind = (
                f"{prefix}post_attention_layernorm.weight",
                f"{prefix}post_feedforward_layernorm.weight",
            )
            one["norm_behind"], two["norm_behind"] = (
                Part(norm, (width,)) for norm in behind
            )
        parts += [one, two]
    embedding = "model.embed_tokens.weight"
    names = TopNames(
        embedding=embedding,
        final_norm=None if name == "olmo" else "model.norm.weight",
        head=embedding if config.tie_embeddings else "lm_head.weight",
        inside=("model.",),
    )
    buffers = [n for n in stored if n.endswith("rotary_emb.inv_freq")]
    layers = len(config.sublayers) // 2
    return recognise_network(checkpoint, name, config, names, parts, buffers, layers)
