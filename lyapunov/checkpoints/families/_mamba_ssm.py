"""mamba_ssm's layout: Mamba mixers of one kind, with attention and MLPs among them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ... import sublayers
from ..._errors import CorruptCheckpointError
from .._parts import (
    Described,
    Part,
    TopNames,
    fused_mlp_parts,
    linear_parts,
    norm_parts,
    rows,
    without_middle_axis,
)
from .._settings import integer, layer_count, positive, refuse, switch, unsupported
from .._sizes import NetworkSettings
from ..files._files import listing


EPSILON = 1e-5  # mamba_ssm fixes it

COVERED = "RMSNorm or LayerNorm, attention layers and MLPs among the mixers (mamba_ssm)"
NOT_COVERED = (
    "attention of mamba_ssm that is not causal, has interleaved positions or an MLP of"
    " its own (mlp_dim)"
)

_ATTENTION_SETTINGS = {
    "num_heads", "num_heads_kv", "head_dim", "mlp_dim", "qkv_proj_bias",
    "out_proj_bias", "softmax_scale", "causal", "d_conv", "rotary_emb_dim",
    "rotary_emb_base", "rotary_emb_interleaved",
}  # fmt: skip


def mixer_settings(config: Mapping[str, Any], known: set[str]) -> NetworkSettings:
    """What ssm_cfg says of the mixers.

    **Raises:** `UnsupportedCheckpointError` for settings that are not `known`.
    """
    ssm = _known(config, "ssm_cfg", known)
    return NetworkSettings(ssm, integer(config, "d_model", 2560), EPSILON)


def centred(config: Mapping[str, Any]) -> bool:
    """Whether norms are LayerNorms."""
    return not switch(config, "rms_norm", True)


def head_count(settings: Mapping[str, Any], d_inner: int) -> int:
    """Heads of a mixer, by their size."""
    head_dim = integer(settings, "headdim", 64)
    if d_inner % head_dim:
        raise refuse("headdim", head_dim, f"a divisor of {d_inner} channels")
    return d_inner // head_dim


def described(
    config: Mapping[str, Any],
    stored: dict[str, Any],
    mixer: Any,
    mixer_parts: Callable[..., dict[str, Part]],
) -> Described:
    """A network of these mixers but for the layers of attn_layer_idx, and an MLP after
    each where d_intermediate says so."""
    layers = layer_count(config, "n_layer", 64)
    attended = config.get("attn_layer_idx") or []
    known = range(layers)
    if not isinstance(attended, list) or not all(one in known for one in attended):
        raise refuse("attn_layer_idx", attended, f"a list of layers below {layers}")
    network = NetworkSettings(config, mixer.d_model, EPSILON)
    attention = _attention(config, mixer) if attended else None
    mlp = _mlp(network, mixer) if config.get("d_intermediate") or 0 else None
    names, root = names_around(stored, _tied(config), mixer.norm_centred)
    blocks: list[Any] = []
    parts: list[dict[str, Part]] = []
    for i in range(layers):
        inside, norm = f"{root}{i}.mixer.", f"{root}{i}.norm"
        if attention is not None and i in attended:
            blocks.append(attention)
            parts.append(_attention_parts(attention, stored, inside, norm))
        else:
            blocks.append(mixer)
            parts.append(mixer_parts(mixer, stored, inside, norm))
        if mlp is not None:
            blocks.append(mlp)
            parts.append(_mlp_parts(mlp, f"{root}{i}.mlp.", f"{root}{i}.norm2"))
    around = network.config(
        blocks,
        vocab_size=50277,
        residual_in_fp32=switch(config, "residual_in_fp32", True),
        tie_embeddings=_tied(config),
        fused_add_norm=switch(config, "fused_add_norm", True),
        norm_centred=mixer.norm_centred,
    )
    multiple = integer(config, "pad_vocab_size_multiple", 8)
    padded = -(-around.vocab_size // multiple) * multiple
    around = replace(around, padded_vocab_size=padded)
    return Described(around, names, parts, layers=layers)


def names_around(
    stored: dict[str, Any], tied: bool, norm_centred: bool
) -> tuple[TopNames, str]:
    """Names around the layers, and the prefix of the layers' own.

    **Arguments:**

    - `tied`: whether the head is the embedding.
    - `norm_centred`: whether the last norm is a LayerNorm, which has a bias.
    """
    for root in ("backbone.", "model.", ""):  # a bare backbone has no prefix
        if f"{root}norm_f.weight" in stored:
            break
    else:
        root = "backbone."
    plural, singular = f"{root}embeddings.weight", f"{root}embedding.weight"
    embedding = singular if singular in stored else plural
    names = TopNames(
        embedding=embedding,
        final_norm=f"{root}norm_f.weight",
        head=embedding if tied else "lm_head.weight",
        inside=(root,) if root else ("layers.",),
        final_norm_bias=f"{root}norm_f.bias" if norm_centred else None,
    )
    return names, f"{root}layers."


def _tied(config: Mapping[str, Any]) -> bool:
    return switch(config, "tie_embeddings", True)


def _known(config: Mapping[str, Any], key: str, settings: set[str]) -> dict[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise CorruptCheckpointError(
            f"config.json: {key} is not an object", hint="download config.json again"
        )
    unknown = sorted(set(found) - settings)
    if unknown:
        raise unsupported(
            f"config.json: {key} has settings that are not known here:"
            f" {listing(unknown)}"
        )
    return found


def _mlp(network: NetworkSettings, mixer: Any) -> "sublayers.MlpSizes":
    hidden = integer(network.settings, "d_intermediate", 0)
    return sublayers.MlpSizes(
        d_model=mixer.d_model,
        d_hidden=-(-hidden // 128) * 128,  # mamba_ssm rounds up to a multiple of it
        activation="silu",
        gated=True,
        norm_epsilon=EPSILON,
        norm_centred=mixer.norm_centred,
    )


def _attention(config: Mapping[str, Any], mixer: Any) -> "sublayers.AttentionSizes":
    attn = _known(config, "attn_cfg", _ATTENTION_SETTINGS)
    for refused, what in (
        (not switch(attn, "causal", False), "that is not causal"),
        (switch(attn, "rotary_emb_interleaved", False), "with interleaved positions"),
        (attn.get("mlp_dim", 0), "with an MLP of its own (mlp_dim)"),
    ):
        if refused:
            raise unsupported(f"attention {what} is not covered")
    if attn.get("num_heads") is None:
        raise refuse("num_heads", None, "a number of heads")
    given = {key: value for key, value in attn.items() if value is not None}
    heads = integer(attn, "num_heads", 1)
    head_dim = integer(given, "head_dim", mixer.d_model // heads)
    return NetworkSettings(attn, mixer.d_model, EPSILON).attention(
        (heads, integer(given, "num_heads_kv", heads)),
        head_dim,
        (
            (attn.get("rotary_emb_dim") and integer(attn, "rotary_emb_dim", 1)) or 0,
            positive(attn, "rotary_emb_base", 10000.0),
        ),
        scale=positive(given, "softmax_scale", head_dim**-0.5),
        norm_centred=mixer.norm_centred,
        d_conv=(attn.get("d_conv") and integer(attn, "d_conv", 1)) or 0,
    )


def _attention_parts(
    c: "sublayers.AttentionSizes", stored: dict[str, Any], prefix: str, norm: str
) -> dict[str, Part]:
    """Query, key and value lie in one tensor, in this order."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    all_rows = q + 2 * kv
    parts = norm_parts(norm, c.d_model, c.norm_centred)
    parts |= linear_parts("o_proj", f"{prefix}out_proj", (c.d_model, q), stored)
    for name, place in (("q", (0, q)), ("k", (q, q + kv)), ("v", (q + kv, all_rows))):
        fused, shape = f"{prefix}in_proj", (all_rows, c.d_model)
        parts |= linear_parts(f"{name}_proj", fused, shape, stored, rows(*place))
    if c.d_conv:
        conv, shape = f"{prefix}conv1d", (all_rows, 1, c.d_conv)
        parts["conv_weight"] = Part(f"{conv}.weight", shape, without_middle_axis)
        parts["conv_bias"] = Part(f"{conv}.bias", (all_rows,))
    return parts


def _mlp_parts(c: "sublayers.MlpSizes", prefix: str, norm: str) -> dict[str, Part]:
    """What goes through and what gates it lie in one tensor, in this order."""
    own = fused_mlp_parts(c, f"{prefix}fc1", f"{prefix}fc2", order="up gate")
    return norm_parts(norm, c.d_model, c.norm_centred) | own
