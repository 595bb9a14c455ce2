"""Jamba: Mamba-1 and attention, MLPs and experts."""

from typing import Any

from .._family import NO_EXPONENT, SILU, Family, of_llama_cpp, of_transformers
from .._parts import Described, Part, expert_parts, mlp_parts, norm_parts
from .._settings import integer, layer_count, natural, silu_only
from .._sizes import NetworkSettings
from ._hybrid import layers_in_turn


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    silu_only(settings)
    network = NetworkSettings.of(settings, 4096, "rms_norm_eps", 1e-6)
    mixer = network.mamba1(mixer_norm_epsilon=network.epsilon)
    attention = network.llama_attention(turns=False)
    mlp = network.mlp(14336)
    count = integer(settings, "num_experts", 16)
    behind: Any = mlp
    if count > 1:
        behind = network.experts(
            mlp, count, mlp.d_hidden, scoring="softmax", shares=False
        )
    period = integer(settings, "attn_layer_period", 8)
    offset = natural(settings, "attn_layer_offset", 4)
    expert_period = integer(settings, "expert_layer_period", 2)
    expert_offset = natural(settings, "expert_layer_offset", 1)
    blocks: list[Any] = []
    for i in range(layer_count(settings, "num_hidden_layers", 32)):
        blocks.append(attention if i % period == offset else mixer)
        blocks.append(behind if i % expert_period == expert_offset else mlp)
    config = network.config(blocks)
    return layers_in_turn(stored, config, 2, mixer_norms=True, others=_behind)


def _behind(
    sizes: Any, stored: dict[str, Any], prefix: str, norm: str
) -> dict[str, Part]:
    """An MLP, or experts behind a router."""
    inside = f"{prefix}feed_forward."
    if sizes.kind == "mlp":
        return mlp_parts(sizes, stored, inside, norm)
    router = Part(f"{inside}router.weight", (sizes.experts, sizes.d_model))
    own = expert_parts(sizes, stored, f"{inside}experts.")
    return norm_parts(norm, sizes.d_model) | {"router": router} | own


JAMBA = Family(
    "Jamba",
    (
        of_transformers("jamba"),
        of_llama_cpp("jamba"),
    ),
    {"transformers": _read},
    ("norms over dt, B and C", "attention without positions", "experts"),
    (NO_EXPONENT, SILU),
)
