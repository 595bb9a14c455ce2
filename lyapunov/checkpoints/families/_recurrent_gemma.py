"""RecurrentGemma: RG-LRU blocks and attention in windows; a gated MLP after each."""

from dataclasses import replace
from typing import Any

from ... import sublayers
from .._family import NO_EXPONENT, POSITIONS, Family, of_transformers
from .._parts import (
    Described,
    Part,
    attention_parts,
    linear_parts,
    mlp_parts,
    norm_parts,
    top_names,
    without_middle_axis,
)
from .._settings import (
    activation,
    integer,
    layer_count,
    only_covered,
    positive,
    refuse,
    unsupported,
)
from .._sizes import NetworkSettings
from ..files._files import disagreeing


_DEFAULTS = {"num_attention_heads": 10}
_ACT = "hidden_activation", "gelu_pytorch_tanh"


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    # heads are as wide as their number makes them, whatever is said of it
    settings = _DEFAULTS | settings | {"head_dim": None}
    network = NetworkSettings.of(settings, 2560, "rms_norm_eps", 1e-6)
    width = network.d_model
    if settings.get("embeddings_scale_by_sqrt_dim", True) is not True:
        raise unsupported("embeddings that are not scaled are not covered")
    attention = network.llama_attention(
        share=0.5, window=integer(settings, "attention_window_size", 2048), **_OFFSET
    )
    given = {key: value for key, value in settings.items() if value is not None}
    d_inner = integer(given, "lru_width", width)
    if d_inner % attention.heads:
        raise disagreeing(
            f"config.json: lru_width = {d_inner} is no multiple of"
            f" {attention.heads} heads"
        )
    recurrent = sublayers.RGLRUSizes(
        d_model=width,
        d_inner=d_inner,
        heads=attention.heads,
        d_conv=integer(settings, "conv1d_width", 4),
        activation=activation(settings, _ACT[1], _ACT[0]),
        norm_epsilon=network.epsilon,
        **_OFFSET,
    )
    mlp = network.mlp(3 * 2560, act=_ACT[1], act_key=_ACT[0], **_OFFSET)
    mlp = replace(mlp, d_hidden=max(mlp.d_hidden // 2, 1))
    mixers: dict[str, Any] = {
        "recurrent": (recurrent, recurrent_parts),
        "attention": (attention, attention_parts),
    }
    layers = layer_count(settings, "num_hidden_layers", 26)
    kinds = _blocks(settings, layers)
    blocks: list[Any] = []
    parts: list[dict[str, Part]] = []
    for i, kind in enumerate(kinds):
        prefix, (mixer, make) = f"model.layers.{i}.", mixers[kind]
        before = norm_parts(f"{prefix}temporal_pre_norm", width)
        behind = f"{prefix}channel_pre_norm"
        blocks += [mixer, mlp]
        parts += [
            before | make(mixer, stored, f"{prefix}temporal_block."),
            mlp_parts(mlp, stored, f"{prefix}mlp_block.", behind),
        ]
    import ml_dtypes

    scale = ml_dtypes.bfloat16(width**0.5)
    config = network.config(
        blocks,
        vocab_size=256000,
        tied=True,
        # a constant of the model in bf16, whatever its weights are in
        embedding_multiplier=float(scale),
        logits_soft_cap=positive(settings, "logits_soft_cap", 30.0),
        **_OFFSET,
    )
    names = top_names(config, "model", "embed_tokens", "final_norm")
    return Described(config, names, parts, (), layers)


_OFFSET: dict[str, Any] = {"norm_offset": 1.0}


def _blocks(settings: dict[str, Any], layers: int) -> list[str]:
    """What each layer is: a pattern, over and over."""
    pattern = settings.get("block_types", ["recurrent", "recurrent", "attention"])
    if not isinstance(pattern, list | tuple) or not pattern:
        raise refuse("block_types", pattern, "a list of blocks")
    only_covered([str(one) for one in pattern], ("recurrent", "attention"))
    return [pattern[i % len(pattern)] for i in range(layers)]


def recurrent_parts(
    s: "sublayers.RGLRUSizes", stored: dict[str, Any], prefix: str
) -> dict[str, Part]:
    width, inside, each = s.d_inner, f"{prefix}rg_lru.", s.d_inner // s.heads
    conv = Part(f"{prefix}conv_1d.weight", (width, 1, s.d_conv), without_middle_axis)
    parts = {
        "conv_weight": conv,
        "conv_bias": Part(f"{prefix}conv_1d.bias", (width,)),
        "decay_logit": Part(f"{inside}recurrent_param", (width,)),
    }
    for key, name in (("input_gate", "input_gate"), ("decay_gate", "recurrent_gate")):
        # a row of theirs is an input, and of ours an output
        weight, bias = f"{inside}{name}_weight", f"{inside}{name}_bias"
        parts[key] = Part(weight, (s.heads, each, each), lambda a: a.swapaxes(1, 2))
        parts[f"{key}_bias"] = Part(bias, (s.heads, each), lambda a: a.reshape(-1))
    for key, name, shape in (
        ("x_proj", "linear_x", (width, s.d_model)),
        ("y_proj", "linear_y", (width, s.d_model)),
        ("out_proj", "linear_out", (s.d_model, width)),
    ):
        parts |= linear_parts(key, f"{prefix}{name}", shape, stored)
    return parts


RECURRENT_GEMMA = Family(
    "RecurrentGemma",
    (of_transformers("recurrent_gemma"),),
    {"transformers": _read},
    (
        "soft-capped logits, embeddings scaled in bf16",
        "a recurrence wider than the model, or narrower",
    ),
    (
        NO_EXPONENT,
        "the decay of 0 at a text's first token, in front of which there is nothing: no"
        " exponent counts it",
        POSITIONS,
    ),
)
