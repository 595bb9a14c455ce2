"""OLMo hybrid: the gated delta rule behind norms, attention in front of them."""

from dataclasses import replace
from typing import Any

from .._family import NO_EXPONENT, POSITIONS, SILU, Family, of_transformers
from .._parts import (
    Described,
    Part,
    attention_parts,
    conv_parts,
    ending,
    inside_of,
    mlp_parts,
    norm_parts,
    top_names,
)
from .._settings import (
    covered_layers,
    head_count,
    integer,
    layer_count,
    silu_only,
    switch,
)
from .._sizes import NetworkSettings
from ._qwen3_next import delta_sizes, head_norms


# OlmoHybridGatedDeltaNet's own, whatever config.json says of norms.
_GATE_NORM_EPSILON = 1e-5
_BEHIND = {"norm_front": False, "norm_behind": True}


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    silu_only(settings)
    d_model = integer(settings, "hidden_size", 3840)
    heads = head_count(settings, 30)
    key_heads = settings.get("linear_num_key_heads") or heads[0]
    key_dim = settings.get("linear_key_head_dim")
    if key_dim is None and type(key_heads) is int:
        key_dim = int(0.75 * d_model / key_heads)
    settings = {"num_attention_heads": heads[0], **settings}
    settings |= {
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": settings.get("linear_num_value_heads") or heads[0],
        "linear_key_head_dim": key_dim,
    }
    if settings.get("linear_value_head_dim") is None:
        settings["linear_value_head_dim"] = 2 * integer(
            settings, "linear_key_head_dim", 1
        )
    network = NetworkSettings.of(settings, 3840, "rms_norm_eps", 1e-6)
    doubled = switch(settings, "linear_allow_neg_eigval", True)
    mixer = delta_sizes(
        network,
        gate_norm_epsilon=_GATE_NORM_EPSILON,
        rate_scale=2.0 if doubled else 1.0,
    )
    attention = network.llama_attention(turns=_turns(settings), **_BEHIND)
    mlp = network.mlp(11008)
    layers = layer_count(settings, "num_hidden_layers", 32)
    default = ["attention" if i % 4 == 3 else "mamba" for i in range(layers)]
    if "attention" not in default:
        default[-1] = "attention"
    kinds = covered_layers(settings, ("attention", "mamba"), default)
    blocks: list[Any] = []
    parts: list[dict[str, Part]] = []
    for i, kind in enumerate(kinds):
        prefix = f"model.layers.{i}."
        # as saved, and as transformers' modules are called
        second = _norm(
            stored, prefix, "feedforward_layer_norm", "post_attention_layernorm"
        )
        if kind == "attention":
            blocks += [attention, replace(mlp, **_BEHIND)]
            inside = f"{prefix}self_attn."
            parts += [
                attention_parts(attention, stored, inside)
                | head_norms(attention, inside, heads=heads)
                | {"norm_behind": norm_parts(second, d_model)["norm"]},
                mlp_parts(mlp, stored, f"{prefix}mlp.")
                | {
                    "norm_behind": Part(
                        f"{prefix}post_feedforward_layernorm.weight", (d_model,)
                    )
                },
            ]
            continue
        first = _norm(stored, prefix, "attention_layer_norm", "input_layernorm")
        blocks += [mixer, mlp]
        parts += [
            norm_parts(first, d_model)
            | mixer_parts(mixer, stored, f"{prefix}linear_attn."),
            mlp_parts(mlp, stored, f"{prefix}mlp.", second),
        ]
    config = network.config(blocks, vocab_size=100352)
    names = top_names(config, "model", "embed_tokens", "norm")
    buffers = ending(stored, "rotary_emb.inv_freq")
    return Described(config, names, parts, buffers, layers)


def _turns(settings: dict[str, Any]) -> bool:
    """Whether heads turn with position: not where it says that theta is null."""
    rope = settings.get("rope_parameters")
    return not (isinstance(rope, dict) and rope.get("rope_theta", 1.0) is None)


def _norm(stored: dict[str, Any], prefix: str, *names: str) -> str:
    return inside_of(stored, ".weight", *(f"{prefix}{name}" for name in names))


def mixer_parts(m: Any, stored: dict[str, Any], prefix: str) -> dict[str, Part]:
    keys, values = m.key_heads * m.key_dim, m.value_heads * m.value_dim
    rows = {
        "q": ("q_proj", keys), "k": ("k_proj", keys), "v": ("v_proj", values),
        "z": ("g_proj", values), "a": ("a_proj", m.value_heads),
        "b": ("b_proj", m.value_heads),
    }  # fmt: skip
    return conv_parts(stored, prefix, 2 * keys + values, m.d_conv) | {
        **{
            f"{key}_proj": Part(f"{prefix}{name}.weight", (size, m.d_model))
            for key, (name, size) in rows.items()
        },
        "A_log": Part(f"{prefix}A_log", (m.value_heads,)),
        "dt_bias": Part(f"{prefix}dt_bias", (m.value_heads,)),
        "gate_norm": Part(f"{prefix}o_norm.weight", (m.value_dim,)),
        "out_proj": Part(f"{prefix}o_proj.weight", (m.d_model, values)),
    }


OLMO_HYBRID = Family(
    "OLMo hybrid",
    (of_transformers("olmo_hybrid") + ", as released or as saved",),
    {"transformers": _read},
    (
        "rates up to 1 or up to 2",
        "positions or none",
        "norms in front of mixers and behind attention",
        "one convolution in three tensors, however its rows are cut",
    ),
    (NO_EXPONENT, SILU, POSITIONS),
)
