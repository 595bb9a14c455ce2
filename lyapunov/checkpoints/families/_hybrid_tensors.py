"""Where the tensors of hybrids lie, as transformers stores them."""

from typing import Any

from ...sublayers import (
    AttentionSizes,
    ExpertsSizes,
    Mamba1Sizes,
    Mamba2Sizes,
    MlpSizes,
    NetworkConfig,
)
from .._blocks import attention_parts, expert_parts, fused_mlp_parts, middle, mlp_parts
from .._checkpoint import Checkpoint
from .._network import NetworkLayout, Part, TopNames, recognise_network
from ._mamba import mamba1_parts, mamba2_parts


def recognise_jamba(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A Jamba model."""
    return _two_a_layer(checkpoint, "jamba", config, 2, "pre_ff_layernorm")


def recognise_bamba(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A Bamba model."""
    return _two_a_layer(checkpoint, "bamba", config, 2, "pre_ff_layernorm")


def recognise_falcon_h1(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A Falcon-H1 model: mixer and attention side by side, then an MLP."""
    return _two_a_layer(checkpoint, "falcon_h1", config, 3, "pre_ff_layernorm")


def recognise_granite(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A Granite 4 hybrid."""
    name = "granitemoehybrid"
    return _two_a_layer(checkpoint, name, config, 2, "post_attention_layernorm")


def _two_a_layer(
    checkpoint: Checkpoint,
    name: str,
    config: NetworkConfig,
    sublayers: int,
    second_norm: str,
) -> NetworkLayout:
    """A layer is a mixer (or two), then an MLP or experts, each with a norm."""
    stored = checkpoint.tensors
    parts: list[dict[str, Part]] = []
    for i, sizes in enumerate(config.sublayers):
        prefix = f"model.layers.{i // sublayers}."
        before, behind = f"{prefix}input_layernorm", f"{prefix}{second_norm}"
        if isinstance(sizes, Mamba1Sizes):
            parts.append(mamba1_parts(sizes, f"{prefix}mamba.", before, True))
        elif isinstance(sizes, Mamba2Sizes):
            parts.append(mamba2_parts(sizes, f"{prefix}mamba.", before, stored))
        elif isinstance(sizes, AttentionSizes):
            norm = f"{before}.weight"
            parts.append(attention_parts(sizes, stored, f"{prefix}self_attn.", norm))
        elif name == "granitemoehybrid":
            parts.append(_granite_parts(sizes, prefix, f"{behind}.weight", stored))
        elif isinstance(sizes, MlpSizes):
            norm = f"{behind}.weight"
            parts.append(mlp_parts(sizes, stored, f"{prefix}feed_forward.", norm))
        else:
            norm = Part(f"{behind}.weight", (sizes.d_model,))
            inside = f"{prefix}feed_forward."
            router = Part(f"{inside}router.weight", (sizes.experts, sizes.d_model))
            own = expert_parts(sizes, f"{inside}experts.", stored)
            parts.append({"norm": norm, "router": router, **own})
    embedding = "model.embed_tokens.weight"
    last = "model.norm" if name == "granitemoehybrid" else "model.final_layernorm"
    names = TopNames(
        embedding=embedding,
        final_norm=f"{last}.weight",
        head=embedding if config.tie_embeddings else "lm_head.weight",
        inside=("model.",),
    )
    buffers = [
        n for n in stored if n.endswith(("rotary_emb.inv_freq", "mamba.mup_vector"))
    ]
    layers = len(config.sublayers) // sublayers
    return recognise_network(checkpoint, name, config, names, parts, buffers, layers)


def _granite_parts(
    sizes: MlpSizes | ExpertsSizes, prefix: str, norm: str, stored: dict[str, Any]
) -> dict[str, Part]:
    """The shared MLP, and experts stored under the older names or the newer ones."""
    own = {"norm": Part(norm, (sizes.d_model,))}
    shared = sizes if isinstance(sizes, MlpSizes) else sizes.shared
    assert shared is not None
    common = fused_mlp_parts(
        shared,
        f"{prefix}shared_mlp.input_linear.weight",
        f"{prefix}shared_mlp.output_linear.weight",
    )
    if isinstance(sizes, MlpSizes):
        return own | common
    own |= {f"shared_{key}": part for key, part in common.items()}
    inside = f"{prefix}block_sparse_moe."
    count, width, hidden = sizes.experts, sizes.d_model, sizes.d_hidden
    if f"{inside}input_linear.weight" not in stored:
        own |= expert_parts(sizes, f"{inside}experts.", stored)
        return own | {"router": Part(f"{inside}router.weight", (count, width))}
    both = (count, 2 * hidden, width)
    for key, place in (("gate", (0, hidden)), ("up", (hidden, 2 * hidden))):
        own[key] = Part(f"{inside}input_linear.weight", both, middle(*place))
    down = f"{inside}output_linear.weight"
    own["down"] = Part(down, (count, width, hidden))
    return own | {"router": Part(f"{inside}router.layer.weight", (count, width))}


def recognise_nemotron_h(
    checkpoint: Checkpoint, config: NetworkConfig
) -> NetworkLayout:
    """A Nemotron-H model: one norm and one mixer a layer."""
    stored = checkpoint.tensors
    root = "backbone" if "backbone.norm_f.weight" in stored else "model"
    parts: list[dict[str, Part]] = []
    for i, sizes in enumerate(config.sublayers):
        norm, prefix = f"{root}.layers.{i}.norm", f"{root}.layers.{i}.mixer."
        weight = f"{norm}.weight"
        if isinstance(sizes, Mamba2Sizes):
            parts.append(mamba2_parts(sizes, prefix, norm, stored))
        elif isinstance(sizes, AttentionSizes):
            parts.append(attention_parts(sizes, stored, prefix, weight))
        elif isinstance(sizes, MlpSizes):
            parts.append(mlp_parts(sizes, stored, prefix, weight))
        else:
            parts.append(_nemotron_expert_parts(sizes, prefix, weight, stored))
    embedding = f"{root}.embeddings.weight"
    names = TopNames(
        embedding=embedding,
        final_norm=f"{root}.norm_f.weight",
        head=embedding if config.tie_embeddings else "lm_head.weight",
        inside=(f"{root}.",),
    )
    return recognise_network(checkpoint, "nemotron_h", config, names, parts)


def _nemotron_expert_parts(
    sizes: ExpertsSizes, prefix: str, norm: str, stored: dict[str, Any]
) -> dict[str, Part]:
    assert sizes.shared is not None
    d_model, shared = sizes.d_model, f"{prefix}shared_experts."
    common = mlp_parts(sizes.shared, stored, shared, None)
    own = {
        "norm": Part(norm, (d_model,)),
        "router": Part(f"{prefix}gate.weight", (sizes.experts, d_model)),
        "router_bias": Part(f"{prefix}gate.e_score_correction_bias", (sizes.experts,)),
        **{f"shared_{key}": part for key, part in common.items()},
        **expert_parts(sizes, f"{prefix}experts.", stored),
    }
    if sizes.width is not None:
        for key, name, shape in (
            ("to_latent", "fc1_latent_proj", (sizes.width, d_model)),
            ("from_latent", "fc2_latent_proj", (d_model, sizes.width)),
        ):
            own[key] = Part(f"{prefix}{name}.weight", shape)
            if f"{prefix}{name}.bias" in stored:
                own[f"{key}_bias"] = Part(f"{prefix}{name}.bias", shape[:1])
    return own
