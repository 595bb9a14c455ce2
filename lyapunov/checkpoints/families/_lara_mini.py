"""Lara Mini: the gated delta rule, attention in windows and over all, experts."""

from dataclasses import replace
from typing import Any

from .._family import NO_EXPONENT, POSITIONS, SILU, Family, of_transformers
from .._parts import (
    Described,
    Part,
    attention_parts,
    norm_parts,
    rows,
    top_names,
    under,
)
from .._settings import (
    covered_layers,
    integer,
    layer_count,
    silu_only,
    switch,
)
from .._sizes import NetworkSettings
from ._qwen3_next import apart, delta_parts, delta_sizes, expert_block, head_norms


_PATTERN = ("mamba", "sliding_attention", "mamba", "attention", "sliding_attention")
_DEFAULTS = {
    "head_dim": 128, "num_attention_heads": 16, "num_experts_per_tok": 4,
    "linear_num_key_heads": 8, "linear_num_value_heads": 16,
}  # fmt: skip


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    silu_only(settings)
    settings = _DEFAULTS | settings
    network = NetworkSettings.of(settings, 1024, "rms_norm_eps", 1e-6)
    layers = layer_count(settings, "num_hidden_layers", 34)
    default = [_PATTERN[i % len(_PATTERN)] for i in range(layers)]
    kinds = covered_layers(settings, _PATTERN, default)
    window = integer(settings, "sliding_window", 512)
    mixers: dict[str, Any] = {
        "mamba": delta_sizes(network),
        "attention": network.llama_attention(turns=False),
        "sliding_attention": network.llama_attention(window=window),
    }
    mlp = network.mlp(512, size="shared_expert_intermediate_size", norm_front=False)
    sparse = network.experts(
        replace(mlp, norm_front=True),
        integer(settings, "num_experts", 128),
        integer(settings, "moe_intermediate_size", 512),
        scoring="softmax",
        shares=switch(settings, "norm_topk_prob", True),
        shared=mlp,
    )
    blocks: list[Any] = []
    parts: list[dict[str, Part]] = []
    for i, kind in enumerate(kinds):
        prefix, mixer = f"model.layers.{i}.", mixers[kind]
        norms = [f"{prefix}{name}_layernorm" for name in ("input", "post_attention")]
        before, behind = (norm_parts(norm, network.d_model) for norm in norms)
        if kind == "mamba":
            own = _mixer_parts(mixer, stored, f"{prefix}linear_attn.")
        else:
            inside = f"{prefix}self_attn."
            own = attention_parts(mixer, stored, inside) | head_norms(mixer, inside)
        blocks += [mixer, sparse]
        inside = f"{prefix}mlp."
        parts += [
            before | own,
            behind | expert_block(sparse, stored, inside, "shared_expert"),
        ]
    config = network.config(blocks, vocab_size=151936, tied=True)
    names = top_names(config, "model", "embed_tokens", "norm")
    return Described(config, names, parts, (), layers)


def _mixer_parts(m: Any, stored: dict[str, Any], prefix: str) -> dict[str, Part]:
    """All projections in one tensor, as q, k, v, z, b, a."""
    keys, inner = m.key_heads * m.key_dim, m.value_heads * m.value_dim
    sizes = (keys, keys, inner, inner, m.value_heads, m.value_heads)
    found = apart(m)
    if f"{prefix}in_proj.weight" in stored:
        shape, start = (sum(sizes), m.d_model), 0
        for key, size in zip("qkvzba", sizes, strict=True):
            take = rows(start, start + size)
            found[f"{key}_proj"] = Part("in_proj.weight", shape, take)
            start += size
    norm = "out_norm" if f"{prefix}out_norm.weight" in stored else "norm"
    return under(prefix, found | delta_parts(m, norm))


LARA_MINI = Family(
    "Lara Mini",
    (of_transformers("lara_mini"),),
    {"transformers": _read},
    (
        "attention within a window, with positions, and over all, without",
        "experts, fused or one by one, beside one that all tokens go through",
    ),
    (NO_EXPONENT, SILU, POSITIONS),
)
