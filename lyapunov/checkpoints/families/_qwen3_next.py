"""Qwen3-Next and Qwen3.5: the gated delta rule and gated attention, MLPs or experts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ... import sublayers
from .._family import NO_EXPONENT, POSITIONS, SILU, Family, of_llama_cpp
from .._parts import (
    Described,
    Part,
    attention_parts,
    expert_parts,
    mlp_parts,
    norm_parts,
    rows,
    rows_of_each,
    top_names,
    under,
    without_middle_axis,
)
from .._settings import (
    covered_layers,
    integer,
    layer_count,
    natural,
    refuse,
    silu_only,
    switch,
)
from .._sizes import NetworkSettings
from ..files._files import disagreeing, quote


_VISION = "model.visual."
# Of all their norms but the gated one.
_OFFSET: dict[str, Any] = {"norm_offset": 1.0}
_SHARE = 0.25
_DEFAULTS = {
    "head_dim": 256, "num_attention_heads": 16, "num_experts_per_tok": 10,
}  # fmt: skip


def delta_sizes(network: NetworkSettings, **others: Any) -> "sublayers.GatedDeltaSizes":
    """A gated delta rule with the settings that Qwen3-Next has.

    **Raises:** `CorruptCheckpointError` where value heads share key heads unevenly.
    """
    settings = network.settings
    others.setdefault("gate_norm_epsilon", network.epsilon)
    key_heads = integer(settings, "linear_num_key_heads", 16)
    value_heads = integer(settings, "linear_num_value_heads", 32)
    if value_heads % key_heads:
        raise refuse(
            "linear_num_value_heads",
            value_heads,
            f"a multiple of {key_heads} key heads",
        )
    return sublayers.GatedDeltaSizes(
        d_model=network.d_model,
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=integer(settings, "linear_key_head_dim", 128),
        value_dim=integer(settings, "linear_value_head_dim", 128),
        d_conv=integer(settings, "linear_conv_kernel_dim", 4),
        norm_epsilon=network.epsilon,
        **others,
    )


def _text(settings: dict[str, Any], model_type: str) -> dict[str, Any]:
    """The settings of the text part of a model that may read pictures too."""
    if settings.get("model_type") != model_type and "text_config" not in settings:
        return settings
    text = settings.get("text_config")
    if not isinstance(text, dict):
        raise refuse("text_config", text, "the settings of the text part")
    tie = "tie_word_embeddings"
    return text | ({tie: settings[tie]} if tie in settings else {})


def _root(stored: dict[str, Any]) -> str:
    """What the names of the text part begin with."""
    inside = "model.language_model"
    if f"{inside}.embed_tokens.weight" in stored:
        return inside
    if "model.embed_tokens.weight" not in stored and any(
        name.startswith(_VISION) for name in stored
    ):
        raise disagreeing(
            f"tensors of the vision part ({_VISION}*), and no"
            f" {quote(f'{inside}.embed_tokens.weight')}: the text part is not there"
        )
    return "model"


def _described(
    settings: dict[str, Any], stored: dict[str, Any], fused: bool, experts: str
) -> Described:
    """Mixer and MLP (or experts) in turn.

    **Arguments:**

    - `settings`: of the text.
    - `fused`: whether projections lie in two tensors by key heads (Qwen3-Next).
    - `experts`: "never", "always", or "by layer", as config.json says.
    """
    silu_only(settings)
    settings = _DEFAULTS | settings
    network = NetworkSettings.of(settings, 2048, "rms_norm_eps", 1e-6)
    layers = layer_count(settings, "num_hidden_layers", 48)
    period = integer(settings, "full_attention_interval", 4)
    default = ["attention" if (i + 1) % period == 0 else "mamba" for i in range(layers)]
    kinds = covered_layers(settings, ("attention", "mamba"), default)
    attention = network.llama_attention(share=_SHARE, **_OFFSET)
    attention = replace(attention, gates=attention.head_dim)
    mlp = network.mlp(5632, **_OFFSET)
    root, blocks, parts = _root(stored), [], []
    for i, kind in enumerate(kinds):
        prefix = f"{root}.layers.{i}."
        before, behind = (
            f"{prefix}{name}_layernorm" for name in ("input", "post_attention")
        )
        if kind == "attention":
            blocks.append(attention)
            own = attention_parts(attention, stored, f"{prefix}self_attn.", before)
            parts.append(own | head_norms(attention, f"{prefix}self_attn."))
        else:
            mixer = delta_sizes(network, **_OFFSET)
            blocks.append(mixer)
            own = fused_parts(mixer) if fused else apart(mixer)
            own = under(f"{prefix}linear_attn.", own | delta_parts(mixer))
            parts.append(norm_parts(before, network.d_model) | own)
        if experts == "never" or (experts == "by layer" and _dense(settings, i)):
            blocks.append(mlp)
            parts.append(mlp_parts(mlp, stored, f"{prefix}mlp.", behind))
        else:
            shares = experts == "always" or switch(settings, "norm_topk_prob", True)
            sparse = _experts(network, mlp, shares)
            blocks.append(sparse)
            own = expert_block(sparse, stored, f"{prefix}mlp.", "shared_expert")
            parts.append(norm_parts(behind, network.d_model) | own)
    config = network.config(blocks, vocab_size=151936, **_OFFSET)
    names = top_names(config, root, "embed_tokens", "norm")
    pictures = [name for name in stored if name.startswith(_VISION)]
    return Described(config, names, parts, pictures, layers)


def _dense(settings: dict[str, Any], layer: int) -> bool:
    """Whether a layer of Qwen3-Next has an MLP."""
    only = settings.get("mlp_only_layers") or []
    if not isinstance(only, list):
        raise refuse("mlp_only_layers", only, "a list of layers")
    every = integer(settings, "decoder_sparse_step", 1)
    none = natural(settings, "num_experts", 512) == 0
    return none or layer in only or (layer + 1) % every != 0


def _experts(
    network: NetworkSettings, mlp: "sublayers.MlpSizes", shares: bool
) -> "sublayers.ExpertsSizes":
    settings = network.settings
    shared = integer(settings, "shared_expert_intermediate_size", 512)
    return network.experts(
        mlp,
        integer(settings, "num_experts", 512),
        integer(settings, "moe_intermediate_size", 512),
        scoring="softmax",
        shares=shares,
        shared=replace(mlp, d_hidden=shared, norm_front=False),
        shared_routed=True,
        **_OFFSET,
    )


def expert_block(
    e: "sublayers.ExpertsSizes", stored: dict[str, Any], prefix: str, shared: str
) -> dict[str, Part]:
    """Router, experts, and what all tokens go through, as Qwen's code names them."""
    parts = {"router": Part(f"{prefix}gate.weight", (e.experts, e.d_model))}
    parts |= expert_parts(e, stored, f"{prefix}experts.")
    if e.shared is not None:
        common = mlp_parts(e.shared, stored, f"{prefix}{shared}.")
        parts |= {f"shared_{key}": part for key, part in common.items()}
    if e.shared_routed:
        name = f"{prefix}{shared}_gate.weight"
        parts["shared_router"] = Part(name, (1, e.d_model))
    return parts


def head_norms(
    a: "sublayers.AttentionSizes",
    prefix: str,
    norm: str = "norm",
    heads: tuple[int, int] = (1, 1),
) -> dict[str, Part]:
    """Norms of queries and of keys, over so many heads at a time."""
    return {
        f"{key}_norm": Part(f"{prefix}{key}_{norm}.weight", (count * a.head_dim,))
        for key, count in zip("qk", heads, strict=True)
    }


def delta_parts(m: "sublayers.GatedDeltaSizes", norm: str = "norm") -> dict[str, Part]:
    """What all layouts have in common."""
    inner = m.value_heads * m.value_dim
    conv = 2 * m.key_heads * m.key_dim + inner
    return {
        "conv_weight": Part("conv1d.weight", (conv, 1, m.d_conv), without_middle_axis),
        "A_log": Part("A_log", (m.value_heads,)),
        "dt_bias": Part("dt_bias", (m.value_heads,)),
        "gate_norm": Part(f"{norm}.weight", (m.value_dim,)),
        "out_proj": Part("out_proj.weight", (m.d_model, inner)),
    }


def fused_parts(m: "sublayers.GatedDeltaSizes") -> dict[str, Part]:
    """Two tensors; rows of each key head together, its value heads' after its own."""
    each = m.value_heads // m.key_heads
    found: dict[str, Part] = {}
    for name, sizes in (
        ("qkvz", (m.key_dim, m.key_dim, each * m.value_dim, each * m.value_dim)),
        ("ba", (each, each)),
    ):
        shape, start = (m.key_heads * sum(sizes), m.d_model), 0
        for key, size in zip(name, sizes, strict=True):
            take = rows_of_each(m.key_heads, start, start + size)
            found[f"{key}_proj"] = Part(f"in_proj_{name}.weight", shape, take)
            start += size
    return found


def apart(m: "sublayers.GatedDeltaSizes") -> dict[str, Part]:
    """Queries, keys and values in one tensor, the others alone."""
    keys, inner = m.key_heads * m.key_dim, m.value_heads * m.value_dim
    shape = (2 * keys + inner, m.d_model)
    ends = {"q": (0, keys), "k": (keys, 2 * keys), "v": (2 * keys, 2 * keys + inner)}
    sizes = {"z": inner, "a": m.value_heads, "b": m.value_heads}
    return {
        f"{key}_proj": Part("in_proj_qkv.weight", shape, rows(*place))
        for key, place in ends.items()
    } | {
        f"{key}_proj": Part(f"in_proj_{key}.weight", (size, m.d_model))
        for key, size in sizes.items()
    }


def _next(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    return _described(settings, stored, fused=True, experts="by layer")


def _dense_3_5(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    return _described(_text(settings, "qwen3_5"), stored, fused=False, experts="never")


def _moe_3_5(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    text = {"num_experts": 256, "num_experts_per_tok": 8}
    text |= _text(settings, "qwen3_5_moe")
    return _described(text, stored, fused=False, experts="always")


def _family(
    title: str,
    read: Callable[[dict[str, Any], dict[str, Any]], Described],
    *model_types: str,
    covered: tuple[str, ...] = (),
    not_covered: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> Family:
    named = " or ".join(model_types)
    layout = (
        f"transformers (model_type {named}): model.safetensors, one file or sharded,"
        " as released or as saved"
    )
    common = ("gated attention, of which a quarter of each head turns", *covered)
    refused = (NO_EXPONENT, SILU, POSITIONS, "heads for more tokens (mtp.*, skipped)")
    readers = {"transformers": read}
    refused = (*refused, *not_covered)
    return Family(title, (layout, *also), readers, common, refused, model_types)


_PICTURES = "pictures: the vision part (model.visual.*) is skipped"
_EXPERTS = "experts, fused or one by one, beside one that the token weighs"

QWEN3_NEXT = _family(
    *("Qwen3-Next", _next, "qwen3_next"),
    covered=(_EXPERTS,),
    also=(of_llama_cpp("qwen3next"),),
)
QWEN3_5 = _family(
    *("Qwen3.5", _dense_3_5, "qwen3_5_text", "qwen3_5"), not_covered=(_PICTURES,)
)
QWEN3_5_MOE = _family(
    *("Qwen3.5 with experts", _moe_3_5, "qwen3_5_moe_text", "qwen3_5_moe"),
    covered=(_EXPERTS,),
    not_covered=(_PICTURES,),
)
