"""Nemotron-H: one norm and one mixer a layer, Mamba-2, attention, MLP or experts."""

import math
from dataclasses import replace
from typing import Any

from ... import sublayers
from .._family import NO_EXPONENT, SILU, Family, of_llama_cpp, of_transformers
from .._parts import (
    Described,
    Part,
    attention_parts,
    expert_parts,
    linear_parts,
    mamba2_parts,
    mlp_parts,
    norm_parts,
    top_names,
)
from .._settings import (
    integer,
    layer_kinds,
    number,
    only_covered,
    positive,
    silu_only,
    switch,
)
from .._sizes import NetworkSettings


# Beside the sum of the chosen experts' sigmoids, in the router: it matters where a bias
# chooses experts that the token itself does not ask for.
SHARE_FLOOR = 1e-20

_PATTERN = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_NAMES = {
    "d_state": ("ssm_state_size", 128),
    "groups": ("n_groups", 8),
    "d_conv": ("conv_kernel", 4),
    "chunk": ("chunk_size", 128),
    "conv_bias": ("use_conv_bias", True),
    "proj_bias": ("use_bias", False),
}


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    silu_only(settings, "mamba_hidden_act")
    pattern = settings.get("hybrid_override_pattern")
    default = None
    if isinstance(pattern, str) and set(pattern) <= set(_PATTERN):
        default = [_PATTERN[letter] for letter in pattern]
    kinds = layer_kinds(settings, ("layers_block_type", "layer_types"), default)
    settings = {"head_dim": 128, **settings}
    network = NetworkSettings.of(settings, 4096, "layer_norm_epsilon", 1e-5)
    heads = integer(settings, "mamba_num_heads", 128)
    d_inner = heads * integer(settings, "mamba_head_dim", 64)
    # dt_limit as the publisher's code takes it; this as transformers does (to 5.24)
    limit = positive(settings, "time_step_min", 0.001), math.inf
    mixer = network.mamba2(d_inner, heads, _NAMES, transformers_dt_limit=limit)
    attention = network.llama_attention(turns=False)
    mlp = network.mlp(21504, act="relu2", act_key="mlp_hidden_act", gated=False)
    built: dict[str, Any] = {"mamba": mixer, "attention": attention, "mlp": mlp}
    if "moe" in kinds:
        built["moe"] = _experts(network, mlp)
    only_covered(kinds, built)
    config = network.config(
        [built[kind] for kind in kinds],
        residual_in_fp32=switch(settings, "residual_in_fp32", False),
    )
    root = "backbone" if "backbone.norm_f.weight" in stored else "model"
    layers = [(f"{root}.layers.{i}.", s) for i, s in enumerate(config.sublayers)]
    parts = [
        _PARTS[sizes.kind](sizes, stored, f"{prefix}mixer.", f"{prefix}norm")
        for prefix, sizes in layers
    ]
    names = top_names(config, root, "embeddings", "norm_f")
    return Described(config, names, parts)


def _experts(
    network: NetworkSettings, mlp: "sublayers.MlpSizes"
) -> "sublayers.ExpertsSizes":
    settings = network.settings
    shared = integer(settings, "moe_shared_expert_intermediate_size", 7688)
    latent = settings.get("moe_latent_size")
    return network.experts(
        mlp,
        integer(settings, "n_routed_experts", 8),
        integer(settings, "moe_intermediate_size", 7688),
        scoring="sigmoid",
        shares=switch(settings, "norm_topk_prob", True),
        share_floor=SHARE_FLOOR,
        width=None if latent is None else integer(settings, "moe_latent_size", 1),
        shared=replace(mlp, d_hidden=shared, norm_front=False),
        routed_multiplier=number(settings, "routed_scaling_factor"),
    )


def _expert_parts(
    sizes: "sublayers.ExpertsSizes", stored: dict[str, Any], prefix: str, norm: str
) -> dict[str, Part]:
    assert sizes.shared is not None
    d_model = sizes.d_model
    common = mlp_parts(sizes.shared, stored, f"{prefix}shared_experts.")
    own = {
        **norm_parts(norm, d_model),
        "router": Part(f"{prefix}gate.weight", (sizes.experts, d_model)),
        "router_bias": Part(f"{prefix}gate.e_score_correction_bias", (sizes.experts,)),
        **{f"shared_{key}": part for key, part in common.items()},
        **expert_parts(sizes, stored, f"{prefix}experts."),
    }
    if sizes.width is not None:
        for key, name, shape in (
            ("to_latent", "fc1_latent_proj", (sizes.width, d_model)),
            ("from_latent", "fc2_latent_proj", (d_model, sizes.width)),
        ):
            own |= linear_parts(key, f"{prefix}{name}", shape, stored)
    return own


_PARTS: dict[str, Any] = {
    "mamba2": mamba2_parts,
    "attention": attention_parts,
    "mlp": mlp_parts,
    "experts": _expert_parts,
}

NEMOTRON_H = Family(
    "Nemotron-H",
    (
        of_transformers("nemotron_h"),
        of_llama_cpp("nemotron_h or nemotron_h_moe"),
    ),
    {"transformers": _read},
    (
        "mixers, attention, MLPs and experts in any order, latent experts",
        "experts chosen among the best groups",
        "limits of dt by time_step_limit, as the publisher's code has them",
    ),
    (NO_EXPONENT, SILU, "heads for more tokens"),
)
