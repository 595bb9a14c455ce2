"""Zamba and Zamba2: Mamba mixers, and attention and MLP that layers share."""

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np

from ...sublayers import (
    AttentionSizes,
    Mamba1Sizes,
    Mamba2Sizes,
    MlpSizes,
    NetworkConfig,
    SharedSizes,
)
from .._blocks import attention_parts, fused_mlp_parts, mlp_parts, rows
from .._checkpoint import Checkpoint
from .._network import NetworkLayout, Part, TopNames, recognise_network
from .._settings import (
    activation,
    expanded,
    head_count,
    integer,
    layer_count,
    layer_kinds,
    limits,
    natural,
    positive,
    rank,
    refuse,
    rotary,
    silu_only,
    switch,
)
from ._mamba import mamba1_parts, mamba2_parts
from ._mamba_config import divided


def zamba_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "zamba"."""
    silu_only(config, "hidden_mamba_act")
    d_model = integer(config, "hidden_size", 3712)
    epsilon = positive(config, "rms_norm_eps", 1e-5)
    mixer = Mamba1Sizes(
        d_model=d_model,
        d_inner=expanded(config, d_model, "mamba_expand"),
        d_state=integer(config, "mamba_d_state", 16),
        d_conv=integer(config, "mamba_d_conv", 4),
        dt_rank=rank(config, "mamba_dt_rank", d_model),
        norm_epsilon=epsilon,
        conv_bias=switch(config, "mamba_conv_bias", True),
        proj_bias=switch(config, "mamba_proj_bias", False),
        heads=integer(config, "n_mamba_heads", 2),
    )
    if mixer.d_inner % mixer.heads:
        raise refuse("n_mamba_heads", mixer.heads, f"a divisor of {mixer.d_inner}")
    layers = layer_count(config, "num_hidden_layers", 76)
    period, offset = (
        integer(config, "attn_layer_period", 6),
        natural(config, "attn_layer_offset", 4),
    )
    default = ["mamba", "mamba", "hybrid"] + [
        "hybrid" if i % period == offset else "mamba" for i in range(layers - 3)
    ]
    kinds = layer_kinds(config, ("layers_block_type", "layer_types"), default[:layers])
    # one block for all, and nothing that a layer adds of its own
    shared = replace(
        _shared_sizes(config, epsilon, None), blocks=1, adapter_rank=0, adapted=False
    )
    return _network(config, epsilon, kinds, mixer, shared)


def zamba2_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "zamba2"."""
    d_model = integer(config, "hidden_size", 2560)
    epsilon = positive(config, "rms_norm_eps", 1e-5)
    d_inner = expanded(config, d_model, "mamba_expand")
    groups = integer(config, "mamba_ngroups", 1)
    heads = integer(config, "n_mamba_heads", 8)
    if d_inner % heads:
        raise refuse("n_mamba_heads", heads, f"a divisor of {d_inner} channels")
    mixer = divided(
        Mamba2Sizes(
            d_model=d_model,
            d_inner=d_inner,
            d_state=integer(config, "mamba_d_state", 64),
            heads=heads,
            groups=groups,
            d_conv=integer(config, "mamba_d_conv", 4),
            chunk=integer(config, "chunk_size", 256),
            norm_epsilon=epsilon,
            gate_norm_epsilon=1e-5,  # transformers fixes it
            # as the publisher's code takes it, and not transformers' (to 5.24)
            dt_limit=limits(config, "time_step_limit"),
            transformers_dt_limit=(positive(config, "time_step_min", 0.001), math.inf),
            norm_groups=groups,
            proj_bias=switch(config, "add_bias_linear", False),
        )
    )
    kinds = layer_kinds(config, ("layers_block_type", "layer_types"), None)
    turning = None
    if switch(config, "use_mem_rope", False):
        attended = 2 * d_model // head_count(config, 32)[0]
        turning = rotary(config, attended)
    shared = _shared_sizes(config, epsilon, turning)
    return _network(config, epsilon, kinds, mixer, shared)


def _shared_sizes(
    config: dict[str, Any], epsilon: float, turning: tuple[int, float] | None
) -> SharedSizes:
    d_model = integer(config, "hidden_size", 1)
    heads, kv_heads = head_count(config, 16)
    if 2 * d_model % heads:
        raise refuse("num_attention_heads", heads, f"a divisor of {2 * d_model}")
    head_dim = 2 * d_model // heads
    hidden = config.get("intermediate_size") or 4 * d_model
    return SharedSizes(
        AttentionSizes(
            d_model=d_model,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rotary=turning[0] if turning else 0,
            theta=turning[1] if turning else 10000.0,
            # half of a head comes from the embedding
            scale=(head_dim / 2) ** -0.5,
            norm_epsilon=epsilon,
            width=2 * d_model,
        ),
        MlpSizes(
            d_model=d_model,
            d_hidden=integer({"intermediate_size": hidden}, "intermediate_size", 1),
            activation=activation(config, "gelu"),
            gated=True,
            norm_epsilon=epsilon,
        ),
        blocks=integer(config, "num_mem_blocks", 1),
        adapter_rank=integer(config, "adapter_rank", 128),
        adapted=switch(config, "use_shared_attention_adapter", False),
    )


def _network(
    config: dict[str, Any],
    epsilon: float,
    kinds: list[str],
    mixer: Any,
    shared: SharedSizes,
) -> NetworkConfig:
    if not set(kinds) <= {"mamba", "hybrid"}:
        raise refuse("layers_block_type", sorted(set(kinds)), "mamba and hybrid")
    sublayers: list[Any] = []
    for kind in kinds:
        sublayers += [shared, mixer] if kind == "hybrid" else [mixer]
    vocab_size = integer(config, "vocab_size", 32000)
    return NetworkConfig(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=mixer.d_model,
        sublayers=tuple(sublayers),
        norm_epsilon=epsilon,
        residual_in_fp32=False,
        tie_embeddings=switch(config, "tie_word_embeddings", True),
    )


def recognise_zamba(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A Zamba model; all hybrid layers share one block."""
    return _recognise(checkpoint, config, "zamba", "shared_transf")


def recognise_zamba2(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A Zamba2 model; its layers take blocks in turn, with their own adapters."""
    return _recognise(checkpoint, config, "zamba2", "shared_transformer")


def _recognise(
    checkpoint: Checkpoint, config: NetworkConfig, name: str, block: str
) -> NetworkLayout:
    stored = checkpoint.tensors
    parts: list[dict[str, Part]] = []
    layer, homes, hybrid, adapted = 0, [], False, False
    for sizes in config.sublayers:
        prefix = f"model.layers.{layer}."
        if isinstance(sizes, SharedSizes):
            hybrid, adapted = True, sizes.adapted
            blocks = sizes.blocks if name == "zamba2" else 1
            # the first few hybrid layers hold the blocks that later ones use again,
            # unless these were saved with copies
            place = len(homes) % blocks
            copied = f"{prefix}{block}.input_layernorm.weight" in stored
            homes.append(prefix if copied or len(homes) < blocks else homes[place])
            own = _shared_parts(
                sizes, f"{homes[-1]}{block}.", len(homes) - 1, name, stored
            )
            width = (config.d_model, config.d_model)
            parts.append(own | {"linear": Part(f"{prefix}linear.weight", width)})
            continue
        inside = f"{prefix}mamba_decoder." if hybrid else prefix
        norm, mixer = f"{inside}input_layernorm", f"{inside}mamba."
        if isinstance(sizes, Mamba1Sizes):
            parts.append(_headed(sizes, mamba1_parts(sizes, mixer, norm), mixer))
        else:
            parts.append(mamba2_parts(sizes, mixer, norm, stored))
        layer, hybrid = layer + 1, False
    embedding = "model.embed_tokens.weight"
    names = TopNames(
        embedding=embedding,
        final_norm="model.final_layernorm.weight",
        head=embedding if config.tie_embeddings else "lm_head.weight",
        inside=("model.",),
    )
    # a copy of a block holds adapters of all the layers that take this block
    of_others = [
        n
        for n in stored
        if (found := re.search(r"\.(\w+)_adapter_list\.(\d+)\.", n))
        and (found[1] == "gate_up_proj" or adapted)
        and int(found[2]) < len(homes)
        and not n.startswith(homes[int(found[2])])
    ]
    ignored = [*of_others, *(n for n in stored if n.endswith("rotary_emb.inv_freq"))]
    return recognise_network(checkpoint, name, config, names, parts, ignored, layer)


def _shared_parts(
    sizes: SharedSizes, prefix: str, use: int, name: str, stored: dict[str, Any]
) -> dict[str, Part]:
    """The block's parameters; `use` counts the hybrid layers before this one."""
    attn, ff = f"{prefix}self_attn.", f"{prefix}feed_forward."
    parts = attention_parts(
        sizes.attention, stored, attn, f"{prefix}input_layernorm.weight"
    )
    d_model, hidden = sizes.mlp.d_model, sizes.mlp.d_hidden
    norm = Part(f"{prefix}pre_ff_layernorm.weight", (d_model,))
    if name == "zamba":
        return parts | mlp_parts(sizes.mlp, stored, ff, None) | {"mlp_norm": norm}
    both, down = f"{ff}gate_up_proj.weight", f"{ff}down_proj.weight"
    parts |= fused_mlp_parts(sizes.mlp, both, down) | {"mlp_norm": norm}
    if f"{ff}gate_up_proj.bias" in stored:
        for key, place in (("gate", (0, hidden)), ("up", (hidden, 2 * hidden))):
            bias = f"{ff}gate_up_proj.bias"
            parts[f"{key}_bias"] = Part(bias, (2 * hidden,), rows(*place))
        parts["down_bias"] = Part(f"{ff}down_proj.bias", (d_model,))
    adapter, low = f"{ff}gate_up_proj_adapter_list.{use}.", sizes.adapter_rank
    for key, place in (("gate", (0, hidden)), ("up", (hidden, 2 * hidden))):
        parts[f"{key}_adapter_down"] = Part(f"{adapter}0.weight", (low, d_model))
        parts[f"{key}_adapter_up"] = Part(
            f"{adapter}1.weight", (2 * hidden, low), rows(*place)
        )
    if sizes.adapted:
        width = 2 * d_model
        for key in "qkv":
            adapter = f"{attn}linear_{key}_adapter_list.{use}."
            parts[f"{key}_adapter_down"] = Part(f"{adapter}0.weight", (low, width))
            parts[f"{key}_adapter_up"] = Part(f"{adapter}1.weight", (width, low))
    return parts


def _headed(c: Mamba1Sizes, parts: dict[str, Part], prefix: str) -> dict[str, Part]:
    """Rows of in_proj are x and z in turn; the rest lies head by head."""
    width = c.d_inner // c.heads
    flat = lambda array: array.reshape(c.d_inner, *array.shape[2:])
    in_turn = lambda array: np.concatenate([array[0::2], array[1::2]])
    alone = c.heads == 1
    first = (lambda array: array[0]) if alone else None
    x_shape = (c.heads, c.dt_rank + 2 * c.d_state, width)
    parts = parts | {
        "in_proj": parts["in_proj"]._replace(take=in_turn),
        "x_proj": Part(f"{prefix}x_proj_weight", x_shape, first),
        "dt_proj": Part(f"{prefix}dt_proj_weight", (c.heads, width, c.dt_rank), first),
        "dt_bias": Part(f"{prefix}dt_proj_bias", (c.heads, width), flat),
        "A_log": Part(f"{prefix}A_log", (c.heads, width, c.d_state), flat),
        "D": Part(f"{prefix}D", (c.heads, width), flat),
    }
    if c.proj_bias:
        parts["in_proj_bias"] = parts["in_proj_bias"]._replace(take=in_turn)
    return parts
