"""Kimi Linear and Ling 3: delta rules with a decay a channel, and latent attention."""

from dataclasses import replace
from typing import Any

from ... import sublayers
from .._family import NO_EXPONENT, POSITIONS, SILU, Family, of_transformers
from .._parts import (
    Described,
    Part,
    conv_parts,
    expert_parts,
    inside_of,
    linear_parts,
    mlp_parts,
    named,
    norm_parts,
    rows_of_each,
    shape_of,
    top_names,
)
from .._settings import (
    integer,
    layer_count,
    layer_kinds,
    natural,
    number,
    only_covered,
    positive,
    refuse,
    rotary,
    silu_only,
    switch,
    unsupported,
)
from .._sizes import NetworkSettings
from ..files._files import disagreeing
from ._nemotron_h import SHARE_FLOOR


# As released and saved, and as transformers' code calls them.
_OTHER_NAMES = {
    "num_experts_per_token": "num_experts_per_tok",
    "num_experts": "num_local_experts",
    "moe_renormalize": "norm_topk_prob",
    "num_expert_group": "n_group",
    "num_shared_experts": "n_shared_experts",
    "num_nextn_predict_layers": "num_mtp_layers",
}
_KIMI = {
    "num_experts_per_tok": 8, "routed_scaling_factor": 2.446, "rms_norm_eps": 1e-5,
    "num_local_experts": 256, "first_k_dense_replace": 1, "num_mtp_layers": 0,
}  # fmt: skip
_LING = {
    "num_experts_per_tok": 8, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6,
    "num_local_experts": 512, "first_k_dense_replace": 2, "num_mtp_layers": 1,
    "n_group": 8, "topk_group": 4, "rope_theta": 6e6,
}  # fmt: skip


def _named(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings under the names of transformers' code."""
    given = {_OTHER_NAMES.get(key, key): value for key, value in settings.items()}
    return defaults | given


def _read_kimi(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    settings = _named(settings, _KIMI)
    own = settings.get("linear_attn_config") or {}
    if not isinstance(own, dict):
        raise refuse("linear_attn_config", own, "an object")
    for theirs, ours in (
        ("head_dim", "linear_head_dim"),
        ("num_heads", "linear_num_heads"),
        ("short_conv_kernel_size", "linear_conv_kernel_dim"),
    ):
        if theirs in own:
            settings[ours] = own[theirs]
    if settings.get("mla_use_nope", True) is not True:
        raise unsupported("latent attention of Kimi Linear that turns with position")
    if settings.get("moe_router_activation_func", "sigmoid") != "sigmoid":
        raise unsupported("routers of Kimi Linear other than by sigmoids")
    layers = layer_count(settings, "num_hidden_layers", 27)
    kinds = ["attention" if i and i % 4 == 0 else "mamba" for i in range(layers)]
    if settings.get("layer_types") is None and own:
        kinds = _listed(own, layers)
    network = NetworkSettings.of(settings, 2304, "rms_norm_eps", 1e-5)
    attention = _attention(network)
    return _described(network, stored, kinds, attention, _mixer(network, low=True))


def _listed(own: dict[str, Any], layers: int) -> list[str]:
    """What each layer is, by lists that count from 1."""
    found: dict[int, str] = {}
    for key, kind in (("full_attn_layers", "attention"), ("kda_layers", "mamba")):
        places = own.get(key)
        if not isinstance(places, list) or not all(type(i) is int for i in places):
            raise refuse(key, places, "a list of layers, the first of which is 1")
        found |= dict.fromkeys(places, kind)
    if sorted(found) != list(range(1, layers + 1)):
        raise disagreeing(
            "config.json: full_attn_layers and kda_layers, which count from 1, are not"
            f" the {layers} layers of num_hidden_layers"
        )
    return [found[i] for i in range(1, layers + 1)]


def _read_ling(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    settings = _named(settings, _LING)
    # what transformers saves as head_dim is that of the part that turns
    for ours, theirs, default in (
        ("linear_head_dim", "head_dim", 128),
        ("linear_num_heads", "num_attention_heads", 32),
        ("linear_conv_kernel_dim", "short_conv_kernel_size", 4),
    ):
        settings.setdefault(ours, settings.get(theirs, default))
    layers = layer_count(settings, "num_hidden_layers", 42)
    period = integer(settings, "layer_group_size", 6)
    kinds = ["attention" if (i + 1) % period == 0 else "mamba" for i in range(layers)]
    network = NetworkSettings.of(settings, 2560, "rms_norm_eps", 1e-6)
    shared = integer(settings, "qk_rope_head_dim", 64)
    turning = rotary(settings, shared, theta=6e6)
    attention = _attention(network, turning=turning, gates=1)
    bound = None
    if switch(settings, "kda_safe_gate", True):
        lowest = settings.get("kda_lower_bound", -5.0)
        negated = -lowest if isinstance(lowest, int | float) else lowest
        bound = -positive({"kda_lower_bound": negated}, "kda_lower_bound", 5.0)
    mixer = _mixer(network, bound=bound)
    return _described(network, stored, kinds, attention, mixer)


def _attention(network: NetworkSettings, **others: Any) -> "sublayers.AttentionSizes":
    settings = network.settings
    heads = integer(settings, "num_attention_heads", 32)
    shared = integer(settings, "qk_rope_head_dim", 64)
    head_dim = integer(settings, "qk_nope_head_dim", 128) + shared
    low = settings.get("q_lora_rank")
    return network.attention(
        (heads, heads),
        head_dim,
        kv_rank=integer(settings, "kv_lora_rank", 512),
        q_rank=0 if low is None else integer(settings, "q_lora_rank", 1),
        shared_key=shared,
        value_dim=integer(settings, "v_head_dim", 128),
        **others,
    )


def _mixer(
    network: NetworkSettings, *, low: bool = False, bound: float | None = None
) -> "sublayers.KimiDeltaSizes":
    """`low`: whether gates go by way of as many channels as a head has."""
    head_dim = integer(network.settings, "linear_head_dim", 128)
    return sublayers.KimiDeltaSizes(
        d_model=network.d_model,
        heads=integer(network.settings, "linear_num_heads", 32),
        key_dim=head_dim,
        value_dim=head_dim,
        d_conv=integer(network.settings, "linear_conv_kernel_dim", 4),
        norm_epsilon=network.epsilon,
        gate_norm_epsilon=network.epsilon,
        gate_rank=head_dim if low else None,
        gate_lower_bound=bound,
    )


def _experts(
    network: NetworkSettings, mlp: "sublayers.MlpSizes"
) -> "sublayers.ExpertsSizes":
    settings = network.settings
    hidden = integer(settings, "moe_intermediate_size", 1024)
    common = hidden * integer(settings, "n_shared_experts", 1)
    return network.experts(
        mlp,
        integer(settings, "num_local_experts", 256),
        hidden,
        scoring="sigmoid",
        shares=switch(settings, "norm_topk_prob", True),
        share_floor=SHARE_FLOOR,
        shared=replace(mlp, d_hidden=common, norm_front=False),
        routed_multiplier=number(settings, "routed_scaling_factor"),
    )


def _described(
    network: NetworkSettings,
    stored: dict[str, Any],
    default: list[str],
    attention: "sublayers.AttentionSizes",
    mixer: "sublayers.KimiDeltaSizes",
) -> Described:
    """Mixer and MLP (or experts) in turn.

    **Arguments:**

    - `default`: kinds of the layers, where config.json does not say.
    """
    settings = network.settings
    silu_only(settings)
    layers = len(default)
    kinds = layer_kinds(settings, ("layer_types",), default)
    first = natural(settings, "first_k_dense_replace", 1)
    dense = ["dense" if i < first else "sparse" for i in range(layers)]
    behinds = layer_kinds(settings, ("mlp_layer_types",), dense)
    if not len(kinds) == len(behinds) == layers:
        raise disagreeing(
            f"config.json names {len(kinds)} mixers and {len(behinds)} MLPs of"
            f" {layers} layers"
        )
    mlp = network.mlp(9216)
    made: dict[str, Any] = {
        "attention": (attention, _attention_parts, "kv_b_proj.weight"),
        "mamba": (mixer, mixer_parts, "b_proj.weight"),
        "dense": (mlp, mlp_parts, "gate_proj.weight"),
    }
    if "sparse" in behinds:
        made["sparse"] = (_experts(network, mlp), _expert_parts, "gate.weight")
    only_covered([*kinds, *behinds], made)
    blocks: list[Any] = []
    parts: list[dict[str, Part]] = []
    for i, pair in enumerate(zip(kinds, behinds, strict=True)):
        prefix = f"model.layers.{i}."
        for kind, norm, names in zip(
            pair,
            ("input_layernorm", "post_attention_layernorm"),
            (("self_attn", "attention"), ("block_sparse_moe", "mlp")),
            strict=True,
        ):
            sizes, make, leaf = made[kind]
            inside = inside_of(stored, leaf, *(f"{prefix}{name}." for name in names))
            blocks.append(sizes)
            own = norm_parts(f"{prefix}{norm}", network.d_model)
            parts.append(own | make(sizes, stored, inside))
    config = network.config(blocks, vocab_size=163840)
    embeddings = ("embed_tokens", "word_embeddings")
    inside = inside_of(stored, ".weight", *(f"model.{name}" for name in embeddings))
    names = top_names(config, "model", inside.removeprefix("model."), "norm")
    more = natural(settings, "num_mtp_layers", 0)
    later = tuple(f"model.layers.{layers + i}." for i in range(more))
    ignored = [name for name in stored if name.startswith(later)] if later else []
    return Described(config, names, parts, ignored, layers)


def _attention_parts(
    a: "sublayers.AttentionSizes", stored: dict[str, Any], prefix: str
) -> dict[str, Part]:
    """Keys and values of a latent; ours have the channels that heads share in front."""
    value, nope = a.value_dim or a.head_dim, a.head_dim - a.shared_key
    shared = list(range(nope, a.head_dim))
    if a.rotary:
        # theirs turn in pairs, ours in halves
        shared = [*shared[0::2], *shared[1::2]]
    one = [*shared, *range(nope)]
    leading = [head * a.head_dim + row for head in range(a.heads) for row in one]
    beside = [*range(a.kv_rank), *(a.kv_rank + row - nope for row in shared)]
    both = (a.heads * (nope + value), a.kv_rank)
    down = (a.kv_rank + a.shared_key, a.d_model)
    out = inside_of(stored, ".weight", f"{prefix}o_proj", f"{prefix}dense")
    parts = {
        "kv_down_norm": Part(f"{prefix}kv_a_layernorm.weight", (a.kv_rank,)),
        **linear_parts(
            *("kv_down", f"{prefix}kv_a_proj_with_mqa", down, stored),
            lambda array: array[beside],
        ),
        **linear_parts("o_proj", out, (a.d_model, a.heads * value), stored),
    }
    for key, place in {"k_proj": (0, nope), "v_proj": (nope, None)}.items():
        take = rows_of_each(a.heads, *place)
        parts[key] = Part(f"{prefix}kv_b_proj.weight", both, take)
    of_q, wide = "q_proj", a.d_model
    if a.q_rank:
        shape = (a.q_rank, a.d_model)
        parts |= linear_parts("q_down", f"{prefix}q_a_proj", shape, stored)
        parts["q_down_norm"] = Part(f"{prefix}q_a_layernorm.weight", (a.q_rank,))
        of_q, wide = "q_b_proj", a.q_rank
    shape = (a.heads * a.head_dim, wide)
    parts["q_proj"] = Part(
        f"{prefix}{of_q}.weight", shape, lambda array: array[leading]
    )
    if a.gates:
        parts["g_proj"] = Part(f"{prefix}g_proj.weight", (a.heads, a.d_model))
    return parts


def mixer_parts(
    m: "sublayers.KimiDeltaSizes", stored: dict[str, Any], prefix: str
) -> dict[str, Part]:
    """Gates by way of fewer channels (Kimi), or straight from the input (Ling)."""
    keys, values = m.heads * m.key_dim, m.heads * m.value_dim
    gate = inside_of(stored, "dt_bias", prefix, f"{prefix}forget_gate.")
    rate = f"{gate}A_log"
    flat = shape_of(rate, stored) == (m.heads,)
    out = inside_of(stored, ".weight", f"{prefix}o_proj", f"{prefix}dense")
    parts = conv_parts(stored, prefix, 2 * keys + values, m.d_conv) | {
        "q_proj": Part(f"{prefix}q_proj.weight", (keys, m.d_model)),
        "k_proj": Part(f"{prefix}k_proj.weight", (keys, m.d_model)),
        "v_proj": Part(f"{prefix}v_proj.weight", (values, m.d_model)),
        "b_proj": Part(f"{prefix}b_proj.weight", (m.heads, m.d_model)),
        "dt_bias": Part(f"{gate}dt_bias", (keys,)),
        "A_log": Part(rate, (m.heads,))
        if flat
        else Part(rate, (1, 1, m.heads, 1), lambda array: array.reshape(-1)),
        "gate_norm": Part(f"{prefix}o_norm.weight", (m.value_dim,)),
        "out_proj": Part(f"{out}.weight", (m.d_model, values)),
    }
    for key, where, width in (("f", gate, keys), ("g", prefix, values)):
        if (rank := m.gate_rank) is None:
            name = f"{where}{key}_proj.weight"
            parts[f"{key}_proj"] = Part(name, (width, m.d_model))
            continue
        down, up = f"{where}{key}_a_proj.weight", f"{where}{key}_b_proj.weight"
        parts[f"{key}_down"] = Part(down, (rank, m.d_model))
        parts[f"{key}_up"] = Part(up, (width, rank))
    return parts


def _expert_parts(
    e: "sublayers.ExpertsSizes", stored: dict[str, Any], prefix: str
) -> dict[str, Part]:
    assert e.shared is not None
    bias = named(
        stored, f"{prefix}gate.e_score_correction_bias", f"{prefix}gate.expert_bias"
    )
    names = {"gate": "w1", "up": "w3", "down": "w2"}
    plain = f"{prefix}experts.0.down_proj.weight" in stored
    common = mlp_parts(e.shared, stored, f"{prefix}shared_experts.")
    return {
        "router": Part(f"{prefix}gate.weight", (e.experts, e.d_model)),
        "router_bias": Part(bias, (e.experts,)),
        **{f"shared_{key}": part for key, part in common.items()},
        **expert_parts(
            e, stored, f"{prefix}experts.", **({} if plain else {"names": names})
        ),
    }


_COVERED = (
    "latent attention, queries too, behind norms of its own",
    "experts by sigmoids, one by one or fused, and those that all tokens go through",
    "lists of layers that count from 1",
)
_REFUSED = (NO_EXPONENT, SILU, "heads for more tokens (layers behind, skipped)")

KIMI_LINEAR = Family(
    "Kimi Linear",
    (of_transformers("kimi_linear") + ", as released or as saved",),
    {"transformers": _read_kimi},
    _COVERED,
    (*_REFUSED, "latent attention with positions"),
)
LING = Family(
    "Ling 3 (Bailing hybrid)",
    (of_transformers("bailing_hybrid") + ", as released or as saved",),
    {"transformers": _read_ling},
    (*_COVERED, "experts chosen among the best groups", "gates with a lower bound"),
    (*_REFUSED, POSITIONS),
)
