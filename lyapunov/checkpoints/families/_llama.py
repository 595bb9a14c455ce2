"""Llama (TinyLlama), OLMo and OLMo 2, Transformers for contrast."""

from typing import Any

from .._family import NO_EXPONENT, POSITIONS, Family, of_transformers
from .._parts import (
    Described,
    Part,
    attention_parts,
    ending,
    mlp_parts,
    top_names,
)
from .._settings import integer, layer_count, positive
from .._sizes import NetworkSettings


_INPUT, _ATTENTION = "input_layernorm", "post_attention_layernorm"


def _read_llama(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    epsilon = positive(settings, "rms_norm_eps", 1e-6)
    return _described(settings, stored, epsilon, (_INPUT, _ATTENTION))


def _read_olmo(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    """Norms have no weights."""
    found = _described(settings, stored, 1e-5, (None, None), norm_centred=True)
    return found._replace(names=found.names._replace(final_norm=None))


def _read_olmo2(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    """Norms stand behind, and over queries and keys."""
    epsilon = positive(settings, "rms_norm_eps", 1e-5)
    norms = _ATTENTION, "post_feedforward_layernorm"
    behind = {"norm_front": False, "norm_behind": True}
    found = _described(settings, stored, epsilon, norms, **behind)
    for i, parts in enumerate(found.parts):
        parts["norm_behind"] = parts.pop("norm")
        sizes, prefix = found.config.sublayers[i], f"model.layers.{i // 2}.self_attn."
        if sizes.kind == "attention":
            for name, heads in (("q", sizes.heads), ("k", sizes.kv_heads)):
                size = (heads * sizes.head_dim,)
                parts[f"{name}_norm"] = Part(f"{prefix}{name}_norm.weight", size)
    return found


def _described(
    settings: dict[str, Any],
    stored: dict[str, Any],
    epsilon: float,
    norms: tuple[str | None, str | None],
    **others: Any,
) -> Described:
    """Attention and MLP in turn, with these norms before them."""
    network = NetworkSettings(settings, integer(settings, "hidden_size", 4096), epsilon)
    clip = settings.get("clip_qkv")
    clip = None if clip is None else positive(settings, "clip_qkv", 1.0)
    attention = network.llama_attention(clip=clip, **others)
    mlp = network.mlp(11008, **others)
    layers = layer_count(settings, "num_hidden_layers", 32)
    centred = others.get("norm_centred", False)
    config = network.config([attention, mlp] * layers, norm_centred=centred)
    parts: list[dict[str, Part]] = []
    for i in range(layers):
        prefix = f"model.layers.{i}."
        before, behind = (norm and f"{prefix}{norm}" for norm in norms)
        parts += [
            attention_parts(attention, stored, f"{prefix}self_attn.", before),
            mlp_parts(mlp, stored, f"{prefix}mlp.", behind),
        ]
    names = top_names(config, "model", "embed_tokens", "norm")
    buffers = ending(stored, "rotary_emb.inv_freq")
    return Described(config, names, parts, buffers, layers)


def _family(title: str, name: str, read: Any, *covered: str) -> Family:
    readers, refused = {"transformers": read}, (NO_EXPONENT, POSITIONS)
    return Family(title, (of_transformers(name),), readers, covered, refused)


LLAMA = _family(
    "Llama (TinyLlama)", "llama", _read_llama, "grouped heads", "biases, or none"
)
OLMO = _family(
    "OLMo",
    "olmo",
    _read_olmo,
    "norms without weights",
    "clipped queries, keys and values",
)
OLMO2 = _family(
    "OLMo 2",
    "olmo2",
    _read_olmo2,
    "norms behind attention and MLP, over queries and keys",
)
