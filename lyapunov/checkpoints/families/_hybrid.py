"""What hybrids of transformers share: settings of a mixer, and the order of a layer."""

from typing import Any

from ... import sublayers
from .._parts import (
    Described,
    Part,
    attention_parts,
    ending,
    mamba1_parts,
    mamba2_parts,
    mlp_parts,
    top_names,
)
from .._settings import expanded, integer
from .._sizes import NetworkSettings
from ..files._files import disagreeing, quote


_NAMES = {
    "d_state": ("mamba_d_state", 256),
    "groups": ("mamba_n_groups", 1),
    "d_conv": ("mamba_d_conv", 4),
    "chunk": ("mamba_chunk_size", 256),
    "conv_bias": ("mamba_conv_bias", True),
    "proj_bias": ("mamba_proj_bias", False),
}


def bamba_mixer(network: NetworkSettings, **others: Any) -> "sublayers.Mamba2Sizes":
    """The Mamba-2 mixer as Bamba, Granite and Falcon-H1 describe it."""
    settings = network.settings
    d_inner = expanded(settings, network.d_model, "mamba_expand")
    if settings.get("mamba_d_ssm") is not None:
        d_inner = integer(settings, "mamba_d_ssm", 1024)
    heads = integer(settings, "mamba_n_heads", 128)
    head_dim = settings.get("mamba_d_head", "auto")
    if (head_dim != "auto" and head_dim != d_inner / heads) or d_inner % heads:
        raise disagreeing(
            f"config.json: {heads} heads of {quote(head_dim, 20)} channels are not the"
            f" {d_inner} of a mixer"
        )
    return network.mamba2(d_inner, heads, _NAMES, **others)


def layers_in_turn(
    stored: dict[str, Any],
    config: "sublayers.NetworkConfig",
    per_layer: int,
    *,
    mixer_norms: bool = False,
    behind: str = "pre_ff_layernorm",
    last: str = "final_layernorm",
    others: Any = None,
) -> Described:
    """A layer is a mixer (or two), then an MLP or experts, each with a norm.

    **Arguments:**

    - `mixer_norms`: as for `mamba1_parts`.
    - `behind`, `last`: what the norms before MLPs and before the head are called.
    - `others`: for MLPs and experts that lie elsewhere, a function like `mlp_parts`
        that is given the whole layer's prefix.
    """
    parts: list[dict[str, Part]] = []
    for i, sizes in enumerate(config.sublayers):
        prefix = f"model.layers.{i // per_layer}."
        before, after = f"{prefix}input_layernorm", f"{prefix}{behind}"
        if sizes.kind == "mamba1":
            mixer = f"{prefix}mamba."
            parts.append(mamba1_parts(sizes, stored, mixer, before, mixer_norms))
        elif sizes.kind == "mamba2":
            parts.append(mamba2_parts(sizes, stored, f"{prefix}mamba.", before))
        elif sizes.kind == "attention":
            parts.append(attention_parts(sizes, stored, f"{prefix}self_attn.", before))
        elif others is not None:
            parts.append(others(sizes, stored, prefix, after))
        else:
            parts.append(mlp_parts(sizes, stored, f"{prefix}feed_forward.", after))
    names = top_names(config, "model", "embed_tokens", last)
    buffers = ending(stored, "rotary_emb.inv_freq", "mamba.mup_vector")
    layers = len(config.sublayers) // per_layer
    return Described(config, names, parts, buffers, layers)
