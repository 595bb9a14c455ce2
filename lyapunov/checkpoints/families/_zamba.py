"""Zamba and Zamba2: Mamba mixers, and attention and MLP that layers share."""

import math
import re
from dataclasses import replace
from typing import Any

from ... import sublayers
from .._family import NO_EXPONENT, SILU, Family, of_transformers
from .._parts import (
    Described,
    Part,
    attention_parts,
    ending,
    fused_mlp_parts,
    gate_and_up,
    mamba1_parts,
    mamba2_parts,
    mlp_parts,
    rows,
    top_names,
)
from .._settings import (
    expanded,
    head_count,
    integer,
    layer_count,
    layer_kinds,
    natural,
    positive,
    refuse,
    rotary,
    silu_only,
    switch,
)
from .._sizes import NetworkSettings


_NAMES = {
    "d_state": ("mamba_d_state", 64),
    "groups": ("mamba_ngroups", 1),
    "d_conv": ("mamba_d_conv", 4),
    "chunk": ("chunk_size", 256),
    "proj_bias": ("add_bias_linear", False),
}
_KINDS = ("layers_block_type", "layer_types")


def _read_zamba(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    """All hybrid layers share one block, and none adds anything of its own."""
    silu_only(settings, "hidden_mamba_act")
    network = NetworkSettings.of(settings, 3712, "rms_norm_eps", 1e-5)
    mixer = network.mamba1(heads=integer(settings, "n_mamba_heads", 2))
    if mixer.d_inner % mixer.heads:
        raise refuse("n_mamba_heads", mixer.heads, f"a divisor of {mixer.d_inner}")
    layers = layer_count(settings, "num_hidden_layers", 76)
    period = integer(settings, "attn_layer_period", 6)
    offset = natural(settings, "attn_layer_offset", 4)
    default = ["mamba", "mamba", "hybrid"] + [
        "hybrid" if i % period == offset else "mamba" for i in range(layers - 3)
    ]
    kinds = layer_kinds(settings, _KINDS, default[:layers])
    shared = replace(_shared_sizes(network), blocks=1, adapter_rank=0, adapted=False)
    config = _config(network, kinds, mixer, shared)
    return _described(stored, config, "shared_transf", _shared_parts)


def _read_zamba2(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    """Hybrid layers take blocks in turn, with adapters of their own."""
    network = NetworkSettings.of(settings, 2560, "rms_norm_eps", 1e-5)
    d_inner = expanded(settings, network.d_model, "mamba_expand")
    heads = integer(settings, "n_mamba_heads", 8)
    if d_inner % heads:
        raise refuse("n_mamba_heads", heads, f"a divisor of {d_inner} channels")
    mixer = network.mamba2(
        d_inner,
        heads,
        _NAMES,
        gate_norm_epsilon=1e-5,  # transformers fixes it
        # dt_limit as the publisher's code takes it; this as transformers does (to 5.24)
        transformers_dt_limit=(positive(settings, "time_step_min", 0.001), math.inf),
    )
    kinds = layer_kinds(settings, _KINDS, None)
    turning = (0, 10000.0)
    if switch(settings, "use_mem_rope", False):
        turning = rotary(settings, 2 * network.d_model // head_count(settings, 32)[0])
    config = _config(network, kinds, mixer, _shared_sizes(network, turning))
    return _described(stored, config, "shared_transformer", _adapted_parts)


def _shared_sizes(
    network: NetworkSettings, turning: tuple[int, float] = (0, 10000.0)
) -> "sublayers.SharedSizes":
    settings, width = network.settings, 2 * network.d_model
    heads = head_count(settings, 16)
    if width % heads[0]:
        raise refuse("num_attention_heads", heads[0], f"a divisor of {width}")
    head_dim = width // heads[0]
    if not settings.get("intermediate_size"):
        settings = {**settings, "intermediate_size": 4 * network.d_model}
    return sublayers.SharedSizes(
        network.attention(
            heads,
            head_dim,
            turning,
            scale=(head_dim / 2) ** -0.5,  # half of a head comes from the embedding
            width=width,
        ),
        replace(network, settings=settings).mlp(1, act="gelu"),
        blocks=integer(settings, "num_mem_blocks", 1),
        adapter_rank=integer(settings, "adapter_rank", 128),
        adapted=switch(settings, "use_shared_attention_adapter", False),
    )


def _config(
    network: NetworkSettings,
    kinds: list[str],
    mixer: Any,
    shared: "sublayers.SharedSizes",
) -> "sublayers.NetworkConfig":
    if not set(kinds) <= {"mamba", "hybrid"}:
        raise refuse("layers_block_type", sorted(set(kinds)), "mamba and hybrid")
    blocks: list[Any] = []
    for kind in kinds:
        blocks += [shared, mixer] if kind == "hybrid" else [mixer]
    return network.config(blocks, tied=True)


def _described(
    stored: dict[str, Any],
    config: "sublayers.NetworkConfig",
    block: str,
    shared_parts: Any,
) -> Described:
    parts: list[dict[str, Part]] = []
    layer, homes, hybrid, adapted = 0, [], False, False
    for sizes in config.sublayers:
        prefix = f"model.layers.{layer}."
        if sizes.kind == "shared":
            hybrid, adapted, use = True, sizes.adapted, len(homes)
            # the first few hybrid layers hold the blocks that later ones use again,
            # unless these were saved with copies
            copied = f"{prefix}{block}.input_layernorm.weight" in stored
            own = copied or use < sizes.blocks
            homes.append(prefix if own else homes[use % sizes.blocks])
            linear = Part(f"{prefix}linear.weight", (config.d_model, config.d_model))
            held = shared_parts(sizes, stored, f"{homes[-1]}{block}.", use)
            parts.append(held | {"linear": linear})
            continue
        inside = f"{prefix}mamba_decoder." if hybrid else prefix
        mixer_parts = headed_parts if sizes.kind == "mamba1" else mamba2_parts
        norm = f"{inside}input_layernorm"
        parts.append(mixer_parts(sizes, stored, f"{inside}mamba.", norm))
        layer, hybrid = layer + 1, False
    # a copy of a block holds adapters of all the layers that take this block
    of_others = [
        n
        for n in stored
        if (found := re.search(r"\.(\w+)_adapter_list\.(\d+)\.", n))
        and (found[1] == "gate_up_proj" or adapted)
        and int(found[2]) < len(homes)
        and not n.startswith(homes[int(found[2])])
    ]
    ignored = [*of_others, *ending(stored, "rotary_emb.inv_freq")]
    names = top_names(config, "model", "embed_tokens", "final_layernorm")
    return Described(config, names, parts, ignored, layer)


def _shared_parts(
    sizes: "sublayers.SharedSizes", stored: dict[str, Any], prefix: str, use: int
) -> dict[str, Part]:
    """The parameters of Zamba's block."""
    del use
    norm = Part(f"{prefix}pre_ff_layernorm.weight", (sizes.mlp.d_model,))
    own, attn = f"{prefix}input_layernorm", f"{prefix}self_attn."
    parts = attention_parts(sizes.attention, stored, attn, own)
    mlp = mlp_parts(sizes.mlp, stored, f"{prefix}feed_forward.")
    return parts | mlp | {"mlp_norm": norm}


def _adapted_parts(
    sizes: "sublayers.SharedSizes", stored: dict[str, Any], prefix: str, use: int
) -> dict[str, Part]:
    """Those of Zamba2's; `use` counts the hybrid layers before this one."""
    attn, ff = f"{prefix}self_attn.", f"{prefix}feed_forward."
    parts = attention_parts(sizes.attention, stored, attn, f"{prefix}input_layernorm")
    d_model, hidden = sizes.mlp.d_model, sizes.mlp.d_hidden
    both, down = f"{ff}gate_up_proj", f"{ff}down_proj"
    parts |= fused_mlp_parts(sizes.mlp, both, down, stored=stored)
    parts["mlp_norm"] = Part(f"{prefix}pre_ff_layernorm.weight", (d_model,))
    adapter, low = f"{both}_adapter_list.{use}.", sizes.adapter_rank
    for key, place in gate_and_up(hidden).items():
        parts[f"{key}_adapter_down"] = Part(f"{adapter}0.weight", (low, d_model))
        up = Part(f"{adapter}1.weight", (2 * hidden, low), rows(*place))
        parts[f"{key}_adapter_up"] = up
    for key in "qkv" if sizes.adapted else "":
        adapter, width = f"{attn}linear_{key}_adapter_list.{use}.", 2 * d_model
        parts[f"{key}_adapter_down"] = Part(f"{adapter}0.weight", (low, width))
        parts[f"{key}_adapter_up"] = Part(f"{adapter}1.weight", (width, low))
    return parts


def headed_parts(
    c: "sublayers.Mamba1Sizes", stored: dict[str, Any], prefix: str, norm: str
) -> dict[str, Part]:
    """Rows of in_proj are x and z in turn; the rest lies head by head."""
    parts = mamba1_parts(c, stored, prefix, norm)
    width = c.d_inner // c.heads
    flat = lambda array: array.reshape(c.d_inner, *array.shape[2:])
    first = (lambda array: array[0]) if c.heads == 1 else None
    x_shape = (c.heads, c.dt_rank + 2 * c.d_state, width)
    parts |= {
        "in_proj": parts["in_proj"]._replace(take=_in_turn),
        "x_proj": Part(f"{prefix}x_proj_weight", x_shape, first),
        "dt_proj": Part(f"{prefix}dt_proj_weight", (c.heads, width, c.dt_rank), first),
        "dt_bias": Part(f"{prefix}dt_proj_bias", (c.heads, width), flat),
        "A_log": Part(f"{prefix}A_log", (c.heads, width, c.d_state), flat),
        "D": Part(f"{prefix}D", (c.heads, width), flat),
    }
    if c.proj_bias:
        parts["in_proj_bias"] = parts["in_proj_bias"]._replace(take=_in_turn)
    return parts


def _in_turn(array: Any) -> Any:
    import numpy as np

    return np.concatenate([array[0::2], array[1::2]])


ZAMBA = Family(
    "Zamba",
    (of_transformers("zamba"),),
    {"transformers": _read_zamba},
    ("mixers of several heads", "the shared block, which reads the embedding"),
    (NO_EXPONENT, SILU),
)
ZAMBA2 = Family(
    "Zamba2",
    (of_transformers("zamba2"),),
    {"transformers": _read_zamba2},
    (
        "shared blocks in turn, with the adapters of each layer",
        "positions",
        "limits of dt by time_step_limit, and not by time_step_min",
    ),
    (NO_EXPONENT,),
)
