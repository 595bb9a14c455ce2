"""Transformers for contrast: GPT-NeoX (Pythia) and Llama (TinyLlama, OLMo) layouts."""

from typing import Any

import numpy as np

from .._errors import UnsupportedCheckpointError
from ..models.config import AttentionSizes, MlpSizes, NetworkConfig
from ._checkpoint import Checkpoint
from ._families import LIST_HINT
from ._files import quote
from ._mamba_config import integer, positive, switch
from ._network import NetworkLayout, Part, TopNames, recognise_network


ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu_squared",
}
"""transformers' names of activations, and ours."""


def activation(config: dict[str, Any], default: str) -> str:
    """The MLP's activation by our name."""
    given = config.get("hidden_act", default)
    if given not in ACTIVATIONS:
        raise UnsupportedCheckpointError(
            f"config.json says hidden_act = {quote(given)}; covered are"
            f" {', '.join(ACTIVATIONS)}",
            hint=LIST_HINT,
        )
    return ACTIVATIONS[given]


def gpt_neox_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "gpt_neox"."""
    d_model = integer(config, "hidden_size", 6144)
    heads = integer(config, "num_attention_heads", 64)
    head_dim = d_model // heads
    rope = config.get("rope_parameters") or {}
    share = rope.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    epsilon = positive(config, "layer_norm_eps", 1e-5)
    attention = AttentionSizes(
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        rotary=int(head_dim * share),
        theta=float(rope.get("rope_theta", config.get("rotary_emb_base", 10000))),
        scale=head_dim**-0.5,
        norm_epsilon=epsilon,
        norm_centred=True,
    )
    mlp = MlpSizes(
        d_model=d_model,
        d_hidden=integer(config, "intermediate_size", 24576),
        activation=activation(config, "gelu"),
        norm_epsilon=epsilon,
        norm_centred=True,
        beside=switch(config, "use_parallel_residual", True),
    )
    vocab_size = integer(config, "vocab_size", 50432)
    return NetworkConfig(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=d_model,
        sublayers=(attention, mlp) * integer(config, "num_hidden_layers", 44),
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
    return recognise_network(checkpoint, "gpt_neox", config, names, parts, buffers)


def _of_each_head(j: int, heads: int):
    def take(array: np.ndarray) -> np.ndarray:
        apart = array.reshape(heads, 3, -1, *array.shape[1:])
        return apart[:, j].reshape(-1, *array.shape[1:])

    return take


def llama_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "llama"."""
    d_model = integer(config, "hidden_size", 4096)
    heads = integer(config, "num_attention_heads", 32)
    head_dim = config.get("head_dim") or d_model // heads
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UnsupportedCheckpointError(
            f"positions of rope_type {quote(kind)} are not covered", hint=LIST_HINT
        )
    epsilon = positive(config, "rms_norm_eps", 1e-6)
    attention = AttentionSizes(
        d_model=d_model,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rotary=head_dim,
        theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        scale=head_dim**-0.5,
        norm_epsilon=epsilon,
    )
    mlp = MlpSizes(
        d_model=d_model,
        d_hidden=integer(config, "intermediate_size", 11008),
        activation=activation(config, "silu"),
        norm_epsilon=epsilon,
    )
    vocab_size = integer(config, "vocab_size", 32000)
    return NetworkConfig(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=d_model,
        sublayers=(attention, mlp) * integer(config, "num_hidden_layers", 32),
        norm_epsilon=epsilon,
        residual_in_fp32=False,
        tie_embeddings=switch(config, "tie_word_embeddings", False),
    )


def attention_parts(
    a: AttentionSizes, stored: dict, prefix: str, norm: str | None
) -> dict[str, Part]:
    """Parameters named q_proj, k_proj, v_proj, o_proj, with biases where stored."""
    rows = {"q": a.heads, "k": a.kv_heads, "v": a.kv_heads}
    parts = {} if norm is None else {"norm": Part(norm, (a.d_model,))}
    for name, heads in rows.items():
        size = heads * a.head_dim
        parts[f"{name}_proj"] = Part(f"{prefix}{name}_proj.weight", (size, a.d_model))
        if f"{prefix}{name}_proj.bias" in stored:
            parts[f"{name}_bias"] = Part(f"{prefix}{name}_proj.bias", (size,))
    inner = a.heads * a.head_dim
    parts["o_proj"] = Part(f"{prefix}o_proj.weight", (a.d_model, inner))
    if f"{prefix}o_proj.bias" in stored:
        parts["o_bias"] = Part(f"{prefix}o_proj.bias", (a.d_model,))
    return parts


def gated_mlp_parts(
    m: MlpSizes, stored: dict, prefix: str, norm: str | None
) -> dict[str, Part]:
    """Parameters named gate_proj, up_proj, down_proj, with biases where stored."""
    parts = {} if norm is None else {"norm": Part(norm, (m.d_model,))}
    shapes = {
        "gate": (m.d_hidden, m.d_model),
        "up": (m.d_hidden, m.d_model),
        "down": (m.d_model, m.d_hidden),
    }
    for name, shape in shapes.items():
        parts[name] = Part(f"{prefix}{name}_proj.weight", shape)
        if f"{prefix}{name}_proj.bias" in stored:
            parts[f"{name}_bias"] = Part(f"{prefix}{name}_proj.bias", shape[:1])
    return parts


def recognise_llama(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A Llama model."""
    stored = checkpoint.tensors
    parts: list[dict[str, Part]] = []
    for i in range(len(config.sublayers) // 2):
        attention, mlp = config.sublayers[2 * i : 2 * i + 2]
        prefix = f"model.layers.{i}."
        before, between = (
            f"{prefix}input_layernorm.weight",
            f"{prefix}post_attention_layernorm.weight",
        )
        parts.append(attention_parts(attention, stored, f"{prefix}self_attn.", before))
        parts.append(gated_mlp_parts(mlp, stored, f"{prefix}mlp.", between))
    embedding = "model.embed_tokens.weight"
    names = TopNames(
        embedding=embedding,
        final_norm="model.norm.weight",
        head=embedding if config.tie_embeddings else "lm_head.weight",
        inside=("model.",),
    )
    buffers = [n for n in stored if n.endswith("rotary_emb.inv_freq")]
    return recognise_network(checkpoint, "llama", config, names, parts, buffers)
