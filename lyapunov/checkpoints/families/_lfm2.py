"""LFM2: short convolutions between gates, and attention; an MLP after each."""

from typing import Any

from ... import sublayers
from .._family import NO_EXPONENT, POSITIONS, Family, of_transformers
from .._parts import (
    Described,
    Part,
    attention_parts,
    linear_parts,
    norm_parts,
    top_names,
    without_middle_axis,
)
from .._settings import (
    covered_layers,
    integer,
    layer_count,
    number,
    refuse,
    switch,
)
from .._sizes import NetworkSettings
from ._qwen3_next import head_norms


_OTHER_NAMES = {
    "block_ff_dim": "intermediate_size",
    "tie_embedding": "tie_word_embeddings",
}
_MLP = {"gate": "w1", "up": "w3", "down": "w2"}


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    given = {_OTHER_NAMES.get(key, key): value for key, value in settings.items()}
    settings = {"rope_theta": 1e6, "num_key_value_heads": 8} | given
    network = NetworkSettings.of(settings, 2560, "norm_eps", 1e-5)
    layers = layer_count(settings, "num_hidden_layers", 32)
    full = settings.get("full_attn_idxs")
    if full is not None and not isinstance(full, list):
        raise refuse("full_attn_idxs", full, "a list of layers")
    default = [
        "attention" if full is None or i in full else "conv" for i in range(layers)
    ]
    kinds = covered_layers(settings, ("attention", "conv"), default)
    mixers: dict[str, Any] = {
        "attention": (network.llama_attention(), _attention_parts),
        "conv": (
            sublayers.ShortConvSizes(
                network.d_model, integer(settings, "conv_L_cache", 3), network.epsilon
            ),
            _conv_parts,
        ),
    }
    mlp = sublayers.MlpSizes(
        network.d_model, _hidden(settings), "silu", True, network.epsilon
    )
    blocks: list[Any] = []
    parts: list[dict[str, Part]] = []
    for i, kind in enumerate(kinds):
        prefix, (mixer, make) = f"model.layers.{i}.", mixers[kind]
        blocks += [mixer, mlp]
        own = norm_parts(f"{prefix}operator_norm", network.d_model)
        parts.append(own | make(mixer, stored, prefix))
        own = norm_parts(f"{prefix}ffn_norm", network.d_model)
        for key, name in _MLP.items():
            shape = (mlp.d_hidden, mlp.d_model)
            if key == "down":
                shape = shape[::-1]
            own[key] = Part(f"{prefix}feed_forward.{name}.weight", shape)
        parts.append(own)
    config = network.config(blocks, vocab_size=65536, tied=True)
    names = top_names(config, "model", "embed_tokens", "embedding_norm")
    return Described(config, names, parts, (), layers)


def _hidden(settings: dict[str, Any]) -> int:
    """Width of the MLPs, which the code makes of what config.json says."""
    hidden = integer(settings, "intermediate_size", 12288)
    if not switch(settings, "block_auto_adjust_ff_dim", True):
        return hidden
    hidden = int(2 * hidden / 3)
    if settings.get("block_ffn_dim_multiplier", 1.0) is not None:
        hidden = int(number(settings, "block_ffn_dim_multiplier") * hidden)
        multiple = integer(settings, "block_multiple_of", 256)
        hidden = multiple * -(-hidden // multiple)
    return hidden


def _attention_parts(
    a: "sublayers.AttentionSizes", stored: dict[str, Any], prefix: str
) -> dict[str, Part]:
    """As Llama's, but for names."""
    inside = f"{prefix}self_attn."
    parts = attention_parts(a, stored, inside)
    out = f"{inside}out_proj.weight"
    parts["o_proj"] = parts["o_proj"]._replace(name=out)
    return parts | head_norms(a, inside, "layernorm")


def _conv_parts(
    s: "sublayers.ShortConvSizes", stored: dict[str, Any], prefix: str
) -> dict[str, Part]:
    inside, width = f"{prefix}conv.", s.d_model
    shape = (width, 1, s.d_conv)
    parts = {"conv_weight": Part(f"{inside}conv.weight", shape, without_middle_axis)}
    if f"{inside}conv.bias" in stored:
        parts["conv_bias"] = Part(f"{inside}conv.bias", (width,))
    for key, rows in (("in_proj", 3 * width), ("out_proj", width)):
        own = linear_parts(key, f"{inside}{key}", (rows, width), stored)
        bias = f"{key.removesuffix('_proj')}_bias"
        if bias in own:
            own[f"{key}_bias"] = own.pop(bias)
        parts |= own
    return parts


LFM2 = Family(
    "LFM2",
    (of_transformers("lfm2"),),
    {"transformers": _read},
    ("biases, or none", "norms over queries and keys", "widths that the code adjusts"),
    (
        NO_EXPONENT,
        "a window forgets all of a token in as many steps as it has taps: no exponent",
        POSITIONS,
    ),
)
