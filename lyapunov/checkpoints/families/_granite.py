"""Granite 4 hybrids: Mamba-2 and attention, experts beside an MLP that all share."""

from dataclasses import replace
from typing import Any

from .._family import NO_EXPONENT, SILU, Family, of_llama_cpp, of_transformers
from .._parts import (
    Described,
    Part,
    expert_parts,
    fused_mlp_parts,
    joined_experts,
    norm_parts,
)
from .._settings import (
    integer,
    layer_count,
    layer_kinds,
    natural,
    number,
    only_covered,
    silu_only,
)
from .._sizes import NetworkSettings
from ._hybrid import bamba_mixer, layers_in_turn


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    silu_only(settings)
    network = NetworkSettings.of(settings, 4096, "rms_norm_eps", 1e-6)
    out = number(settings, "residual_multiplier")
    layers = layer_count(settings, "num_hidden_layers", 32)
    default = ["mamba"] * layers
    kinds = layer_kinds(settings, ("layer_types", "layers_block_type"), default)
    only_covered(kinds, ("attention", "mamba"))
    mixer = bamba_mixer(network, out_multiplier=out)
    attention = network.llama_attention(
        turns=settings.get("position_embedding_type") == "rope",
        scale=number(settings, "attention_multiplier"),
        out_multiplier=out,
    )
    size = "shared_intermediate_size"
    behind: Any = network.mlp(1024, size=size, out_multiplier=out)
    if count := natural(settings, "num_local_experts", 8):
        behind = network.experts(
            behind,
            count,
            integer(settings, "intermediate_size", 11008),
            scoring="softmax",
            shares=True,
            shared=replace(behind, norm_front=False, out_multiplier=1.0),
            out_multiplier=out,
        )
    blocks: list[Any] = []
    for kind in kinds:
        blocks += [attention if kind == "attention" else mixer, behind]
    config = network.config(
        blocks,
        embedding_multiplier=number(settings, "embedding_multiplier"),
        logits_multiplier=1.0 / number(settings, "logits_scaling"),
    )
    after = "post_attention_layernorm"
    return layers_in_turn(stored, config, 2, behind=after, last="norm", others=_behind)


def _behind(
    sizes: Any, stored: dict[str, Any], prefix: str, norm: str
) -> dict[str, Part]:
    """The shared MLP, and experts stored under the older names or the newer ones."""
    own = norm_parts(norm, sizes.d_model)
    both, down = (f"{prefix}shared_mlp.{name}_linear" for name in ("input", "output"))
    shared = sizes if sizes.kind == "mlp" else sizes.shared
    common = fused_mlp_parts(shared, both, down)
    if sizes.kind == "mlp":
        return own | common
    own |= {f"shared_{key}": part for key, part in common.items()}
    inside, shape = f"{prefix}block_sparse_moe.", (sizes.experts, sizes.d_model)
    both, down = (f"{inside}{name}_linear.weight" for name in ("input", "output"))
    if both in stored:
        router = Part(f"{inside}router.layer.weight", shape)
        return own | joined_experts(sizes, both, down) | {"router": router}
    own |= expert_parts(sizes, stored, f"{inside}experts.")
    return own | {"router": Part(f"{inside}router.weight", shape)}


GRANITE = Family(
    "Granite 4 hybrid",
    (
        of_transformers("granitemoehybrid"),
        of_llama_cpp("granitehybrid"),
    ),
    {"transformers": _read},
    ("experts and the shared MLP", "all multipliers", "positions or none"),
    (NO_EXPONENT, SILU),
)
