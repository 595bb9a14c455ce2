"""Hybrids of Mamba and attention: Jamba, Bamba, Granite 4, Falcon-H1, Nemotron-H."""

import math
from dataclasses import replace
from typing import Any

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ...sublayers import (
    AttentionSizes,
    ExpertsSizes,
    Mamba1Sizes,
    Mamba2Sizes,
    MlpSizes,
    NetworkConfig,
)
from .._settings import (
    activation,
    expanded,
    head_count,
    head_size,
    integer,
    layer_count,
    layer_kinds,
    limits,
    natural,
    number,
    numbers,
    positive,
    rank,
    refuse,
    rotary,
    silu_only,
    switch,
)
from ..files._files import quote
from ._families import LIST_HINT
from ._mamba_config import divided


# Beside the sum of the chosen experts' sigmoids, in Nemotron-H's router: it matters
# where a bias chooses experts that the token itself does not ask for.
SHARE_FLOOR = 1e-20


def _network(
    config: dict[str, Any], sublayers: list[Any], epsilon: float, **others: Any
) -> NetworkConfig:
    vocab_size = integer(config, "vocab_size", 32000)
    settings: dict[str, Any] = {
        "residual_in_fp32": False,
        "tie_embeddings": switch(config, "tie_word_embeddings", False),
    }
    return NetworkConfig(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=integer(config, "hidden_size", 4096),
        sublayers=tuple(sublayers),
        norm_epsilon=epsilon,
        **(settings | others),
    )


def attention_sizes(
    config: dict[str, Any], epsilon: float, turning: tuple[int, float] | None = None
) -> AttentionSizes:
    """Attention as Llama has it; without positions unless told how they turn."""
    d_model = integer(config, "hidden_size", 4096)
    heads, kv_heads = head_count(config, 32)
    head_dim = head_size(config, d_model, heads)
    turning = turning or (0, 10000.0)
    return AttentionSizes(
        d_model=d_model,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rotary=turning[0],
        theta=turning[1],
        scale=head_dim**-0.5,
        norm_epsilon=epsilon,
    )


def jamba_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "jamba"."""
    silu_only(config)
    d_model = integer(config, "hidden_size", 4096)
    epsilon = positive(config, "rms_norm_eps", 1e-6)
    mixer = Mamba1Sizes(
        d_model=d_model,
        d_inner=expanded(config, d_model, "mamba_expand"),
        d_state=integer(config, "mamba_d_state", 16),
        d_conv=integer(config, "mamba_d_conv", 4),
        dt_rank=rank(config, "mamba_dt_rank", d_model),
        norm_epsilon=epsilon,
        conv_bias=switch(config, "mamba_conv_bias", True),
        proj_bias=switch(config, "mamba_proj_bias", False),
        mixer_norm_epsilon=epsilon,
    )
    attention = attention_sizes(config, epsilon)
    mlp = MlpSizes(
        d_model=d_model,
        d_hidden=integer(config, "intermediate_size", 14336),
        activation=activation(config, "silu"),
        gated=True,
        norm_epsilon=epsilon,
    )
    experts = ExpertsSizes(
        d_model=d_model,
        d_hidden=mlp.d_hidden,
        experts=integer(config, "num_experts", 16),
        chosen=integer(config, "num_experts_per_tok", 2),
        scoring="softmax",
        shares=False,
        activation=mlp.activation,
        gated=True,
        norm_epsilon=epsilon,
    )
    turn = (
        integer(config, "attn_layer_period", 8),
        natural(config, "attn_layer_offset", 4),
    )
    expert = integer(config, "expert_layer_period", 2)
    offset = natural(config, "expert_layer_offset", 1)
    sublayers: list[Any] = []
    for i in range(layer_count(config, "num_hidden_layers", 32)):
        sublayers.append(attention if i % turn[0] == turn[1] else mixer)
        several = i % expert == offset and experts.experts > 1
        sublayers.append(_chosen(experts) if several else mlp)
    return _network(config, sublayers, epsilon)


def _chosen(experts: ExpertsSizes) -> ExpertsSizes:
    if experts.chosen > experts.experts:
        raise CorruptCheckpointError(
            f"config.json: {experts.chosen} of {experts.experts} experts are chosen",
            hint="take config.json and weights from the same place",
        )
    return experts


def bamba_mixer(config: dict[str, Any], epsilon: float) -> Mamba2Sizes:
    """The Mamba-2 mixer as Bamba, Granite and Falcon-H1 describe it."""
    d_model = integer(config, "hidden_size", 4096)
    d_inner = expanded(config, d_model, "mamba_expand")
    if config.get("mamba_d_ssm") is not None:
        d_inner = integer(config, "mamba_d_ssm", 1024)
    heads = integer(config, "mamba_n_heads", 128)
    head_dim = config.get("mamba_d_head", "auto")
    if (head_dim != "auto" and head_dim != d_inner / heads) or d_inner % heads:
        raise CorruptCheckpointError(
            f"config.json: {heads} heads of {quote(head_dim, 20)} channels are not the"
            f" {d_inner} of a mixer",
            hint="take config.json and weights from the same place",
        )
    groups = integer(config, "mamba_n_groups", 1)
    return divided(
        Mamba2Sizes(
            d_model=d_model,
            d_inner=d_inner,
            d_state=integer(config, "mamba_d_state", 256),
            heads=heads,
            groups=groups,
            d_conv=integer(config, "mamba_d_conv", 4),
            chunk=integer(config, "mamba_chunk_size", 256),
            norm_epsilon=epsilon,
            gate_norm_epsilon=epsilon,
            dt_limit=limits(config, "time_step_limit"),
            norm_groups=groups,
            conv_bias=switch(config, "mamba_conv_bias", True),
            proj_bias=switch(config, "mamba_proj_bias", False),
        )
    )


def bamba_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "bamba"."""
    silu_only(config)
    d_model = integer(config, "hidden_size", 4096)
    epsilon = positive(config, "rms_norm_eps", 1e-5)
    mixer = bamba_mixer(config, epsilon)
    head_dim = head_size(config, d_model, head_count(config, 32)[0])
    # half of each head turns, whatever config.json says of it
    attention = attention_sizes(config, epsilon, rotary(config, head_dim, share=0.5))
    mlp = MlpSizes(
        d_model=d_model,
        d_hidden=integer(config, "intermediate_size", 14336),
        activation=activation(config, "silu"),
        gated=True,
        norm_epsilon=epsilon,
    )
    attended = config.get("attn_layer_indices") or []
    if not isinstance(attended, list):
        raise refuse("attn_layer_indices", attended, "a list of layers")
    layers = layer_count(config, "num_hidden_layers", 32)
    sublayers: list[Any] = []
    for i in range(layers):
        sublayers += [attention if i in attended else mixer, mlp]
    return _network(config, sublayers, epsilon)


def granite_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "granitemoehybrid"."""
    silu_only(config)
    d_model = integer(config, "hidden_size", 4096)
    epsilon = positive(config, "rms_norm_eps", 1e-6)
    out = number(config, "residual_multiplier")
    layers = layer_count(config, "num_hidden_layers", 32)
    kinds = layer_kinds(
        config, ("layer_types", "layers_block_type"), ["mamba"] * layers
    )
    mixer = replace(bamba_mixer(config, epsilon), out_multiplier=out)
    head_dim = head_size(config, d_model, head_count(config, 32)[0])
    turns = config.get("position_embedding_type") == "rope"
    attention = replace(
        attention_sizes(config, epsilon, rotary(config, head_dim) if turns else None),
        scale=number(config, "attention_multiplier"),
        out_multiplier=out,
    )
    mlp = MlpSizes(
        d_model=d_model,
        d_hidden=integer(config, "shared_intermediate_size", 1024),
        activation=activation(config, "silu"),
        gated=True,
        norm_epsilon=epsilon,
        out_multiplier=out,
    )
    behind: Any = mlp
    if natural(config, "num_local_experts", 8):
        behind = _chosen(
            ExpertsSizes(
                d_model=d_model,
                d_hidden=integer(config, "intermediate_size", 11008),
                experts=integer(config, "num_local_experts", 8),
                chosen=integer(config, "num_experts_per_tok", 2),
                scoring="softmax",
                shares=True,
                activation=mlp.activation,
                gated=True,
                norm_epsilon=epsilon,
                shared=replace(mlp, norm_front=False, out_multiplier=1.0),
                out_multiplier=out,
            )
        )
    sublayers: list[Any] = []
    for kind in kinds:
        sublayers += [attention if kind == "attention" else mixer, behind]
    return _network(
        config,
        sublayers,
        epsilon,
        embedding_multiplier=number(config, "embedding_multiplier"),
        logits_multiplier=1.0 / number(config, "logits_scaling"),
    )


def falcon_h1_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "falcon_h1"."""
    silu_only(config)
    d_model = integer(config, "hidden_size", 4096)
    epsilon = positive(config, "rms_norm_eps", 1e-5)
    rows = numbers(config, "ssm_multipliers", 5)
    mixer = replace(
        bamba_mixer({"mamba_d_ssm": 1024, **config}, epsilon),
        gate_norm=switch(config, "mamba_rms_norm", False),
        norm_before_gate=switch(config, "mamba_norm_before_gate", True),
        out_bias=switch(config, "projectors_bias", False),
        in_multiplier=number(config, "ssm_in_multiplier"),
        row_multipliers=None if set(rows) == {1.0} else rows,
        out_multiplier=number(config, "ssm_out_multiplier"),
    )
    head_dim = head_size(config, d_model, head_count(config, 32)[0])
    attention = replace(
        attention_sizes(config, epsilon, rotary(config, head_dim)),
        key_multiplier=number(config, "key_multiplier"),
        in_multiplier=number(config, "attention_in_multiplier"),
        out_multiplier=number(config, "attention_out_multiplier"),
        beside=True,
    )
    gate, down = numbers(config, "mlp_multipliers", 2)
    mlp = MlpSizes(
        d_model=d_model,
        d_hidden=integer(config, "intermediate_size", 14336),
        activation=activation(config, "silu"),
        gated=True,
        norm_epsilon=epsilon,
        gate_multiplier=gate,
        down_multiplier=down,
    )
    return _network(
        config,
        [mixer, attention, mlp] * layer_count(config, "num_hidden_layers", 32),
        epsilon,
        embedding_multiplier=number(config, "embedding_multiplier"),
        logits_multiplier=number(config, "lm_head_multiplier"),
    )


_PATTERN = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}


def nemotron_h_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "nemotron_h": one mixer a layer."""
    silu_only(config, "mamba_hidden_act")
    pattern = config.get("hybrid_override_pattern")
    default = None
    if isinstance(pattern, str) and set(pattern) <= set(_PATTERN):
        default = [_PATTERN[letter] for letter in pattern]
    kinds = layer_kinds(config, ("layers_block_type", "layer_types"), default)
    d_model = integer(config, "hidden_size", 4096)
    epsilon = positive(config, "layer_norm_epsilon", 1e-5)
    heads, groups = (
        integer(config, "mamba_num_heads", 128),
        integer(config, "n_groups", 8),
    )
    mixer = divided(
        Mamba2Sizes(
            d_model=d_model,
            d_inner=heads * integer(config, "mamba_head_dim", 64),
            d_state=integer(config, "ssm_state_size", 128),
            heads=heads,
            groups=groups,
            d_conv=integer(config, "conv_kernel", 4),
            chunk=integer(config, "chunk_size", 128),
            norm_epsilon=epsilon,
            gate_norm_epsilon=epsilon,
            # as the publisher's code takes it, and not transformers' (to 5.24)
            dt_limit=limits(config, "time_step_limit"),
            transformers_dt_limit=(positive(config, "time_step_min", 0.001), math.inf),
            norm_groups=groups,
            conv_bias=switch(config, "use_conv_bias", True),
            proj_bias=switch(config, "use_bias", False),
        )
    )
    attention = attention_sizes({"head_dim": 128, **config}, epsilon)
    mlp = MlpSizes(
        d_model=d_model,
        d_hidden=integer(config, "intermediate_size", 21504),
        activation=activation(config, "relu2", "mlp_hidden_act"),
        gated=False,
        norm_epsilon=epsilon,
    )
    built: dict[str, Any] = {"mamba": mixer, "attention": attention, "mlp": mlp}
    if "moe" in kinds:
        built["moe"] = _nemotron_experts(config, mlp)
    unknown = sorted(set(kinds) - set(built))
    if unknown:
        raise UnsupportedCheckpointError(
            f"config.json names layers that are not covered: {quote(unknown)}",
            hint=LIST_HINT,
        )
    return _network(
        config,
        [built[kind] for kind in kinds],
        epsilon,
        residual_in_fp32=switch(config, "residual_in_fp32", False),
    )


def _nemotron_experts(config: dict[str, Any], mlp: MlpSizes) -> ExpertsSizes:
    if config.get("n_group", 1) != 1:
        raise UnsupportedCheckpointError(
            "experts chosen group by group (n_group > 1) are not covered",
            hint=LIST_HINT,
        )
    latent = config.get("moe_latent_size")
    return _chosen(
        ExpertsSizes(
            d_model=mlp.d_model,
            d_hidden=integer(config, "moe_intermediate_size", 7688),
            experts=integer(config, "n_routed_experts", 8),
            chosen=integer(config, "num_experts_per_tok", 2),
            scoring="sigmoid",
            shares=switch(config, "norm_topk_prob", True),
            share_floor=SHARE_FLOOR,
            activation=mlp.activation,
            gated=False,
            norm_epsilon=mlp.norm_epsilon,
            width=None if latent is None else integer(config, "moe_latent_size", 1),
            shared=replace(
                mlp,
                d_hidden=integer(config, "moe_shared_expert_intermediate_size", 7688),
                norm_front=False,
            ),
            routed_multiplier=number(config, "routed_scaling_factor"),
        )
    )
