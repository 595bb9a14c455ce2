"""mamba_ssm's models: Mamba-1, 2 or 3 mixers, with attention and MLPs among them."""

from typing import Any

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ...sublayers import (
    AttentionSizes,
    Mamba1Sizes,
    Mamba2Sizes,
    Mamba3Sizes,
    MlpSizes,
    NetworkConfig,
)
from .._blocks import rows
from .._checkpoint import Checkpoint
from .._network import NetworkLayout, Part, recognise_network, without_middle_axis
from .._settings import (
    expanded,
    integer,
    layer_count,
    limits,
    positive,
    rank,
    refuse,
    switch,
)
from ..files._files import listing
from ._families import LIST_HINT
from ._mamba import mamba1_parts, mamba2_parts, norm_parts, top_names, under
from ._mamba_config import divided


_EPSILON = 1e-5  # mamba_ssm fixes it

_MAMBA1_SETTINGS = {
    "layer", "d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias",
    "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path",
}  # fmt: skip
_MAMBA2_SETTINGS = {
    "layer", "d_state", "d_conv", "conv_init", "expand", "headdim", "d_ssm", "ngroups",
    "A_init_range", "D_has_hdim", "rmsnorm", "norm_before_gate", "dt_min", "dt_max",
    "dt_init_floor", "dt_limit", "bias", "conv_bias", "chunk_size", "use_mem_eff_path",
}  # fmt: skip
_MAMBA3_SETTINGS = {
    "layer", "d_state", "expand", "headdim", "ngroups", "rope_fraction", "dt_min",
    "dt_max", "dt_init_floor", "A_floor", "is_outproj_norm", "is_mimo", "mimo_rank",
    "chunk_size", "dropout",
}  # fmt: skip
_ATTENTION_SETTINGS = {
    "num_heads", "num_heads_kv", "head_dim", "mlp_dim", "qkv_proj_bias",
    "out_proj_bias", "softmax_scale", "causal", "d_conv", "rotary_emb_dim",
    "rotary_emb_base", "rotary_emb_interleaved",
}  # fmt: skip


def mamba_ssm_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from mamba_ssm's `config.json` with Mamba-1 mixers."""
    ssm = _known(config, "ssm_cfg", _MAMBA1_SETTINGS)
    d_model = integer(config, "d_model", 2560)
    sizes = Mamba1Sizes(
        d_model=d_model,
        d_inner=expanded(ssm, d_model),
        d_state=integer(ssm, "d_state", 16),
        d_conv=integer(ssm, "d_conv", 4),
        dt_rank=rank(ssm, "dt_rank", d_model),
        norm_epsilon=_EPSILON,
        conv_bias=switch(ssm, "conv_bias", True),
        proj_bias=switch(ssm, "bias", False),
        norm_centred=not switch(config, "rms_norm", True),
    )
    return _network(config, sizes)


def mamba_ssm_mamba2_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from mamba_ssm's `config.json` with Mamba-2 mixers."""
    ssm = _known(config, "ssm_cfg", _MAMBA2_SETTINGS)
    d_model = integer(config, "d_model", 2560)
    d_inner = expanded(ssm, d_model)
    if ssm.get("d_ssm") not in (None, d_inner):
        raise UnsupportedCheckpointError(
            "a Mamba-2 layer with an MLP of its own (d_ssm < d_inner) is not covered",
            hint=LIST_HINT,
        )
    head_dim = integer(ssm, "headdim", 64)
    if d_inner % head_dim:
        raise refuse("headdim", head_dim, f"a divisor of {d_inner} channels")
    groups = integer(ssm, "ngroups", 1)
    sizes = Mamba2Sizes(
        d_model=d_model,
        d_inner=d_inner,
        d_state=integer(ssm, "d_state", 128),
        heads=d_inner // head_dim,
        groups=groups,
        d_conv=integer(ssm, "d_conv", 4),
        chunk=integer(ssm, "chunk_size", 256),
        norm_epsilon=_EPSILON,
        gate_norm_epsilon=_EPSILON,
        dt_limit=limits(ssm, "dt_limit"),
        gate_norm=switch(ssm, "rmsnorm", True),
        norm_groups=groups,
        norm_before_gate=switch(ssm, "norm_before_gate", False),
        conv_bias=switch(ssm, "conv_bias", True),
        proj_bias=switch(ssm, "bias", False),
        norm_centred=not switch(config, "rms_norm", True),
    )
    return _network(config, divided(sizes))


def mamba_ssm_mamba3_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from mamba_ssm's `config.json` with Mamba-3 mixers."""
    ssm = _known(config, "ssm_cfg", _MAMBA3_SETTINGS)
    d_model = integer(config, "d_model", 2560)
    d_inner = expanded(ssm, d_model)
    head_dim, d_state = integer(ssm, "headdim", 64), integer(ssm, "d_state", 128)
    if d_inner % head_dim:
        raise refuse("headdim", head_dim, f"a divisor of {d_inner} channels")
    heads, groups = d_inner // head_dim, integer(ssm, "ngroups", 1)
    if heads % groups:
        raise refuse("ngroups", groups, f"a divisor of {heads} heads")
    turning = positive(ssm, "rope_fraction", 0.5)
    if turning not in (0.5, 1.0):
        raise refuse("rope_fraction", turning, "0.5 or 1.0")
    angles = int(d_state * turning) // 2
    if d_state % 2 or not angles:
        raise refuse("d_state", d_state, "an even number, with a pair that turns")
    mimo = switch(ssm, "is_mimo", False)
    sizes = Mamba3Sizes(
        d_model=d_model,
        d_inner=d_inner,
        d_state=d_state,
        heads=heads,
        groups=groups,
        rank=integer(ssm, "mimo_rank", 4) if mimo else None,
        angles=angles,
        least_rate=positive(ssm, "A_floor", 1e-4),
        norm_epsilon=_EPSILON,
        mixer_norm_epsilon=_EPSILON,
        gate_norm=switch(ssm, "is_outproj_norm", False),
        chunk=integer(ssm, "chunk_size", 64),
        norm_centred=not switch(config, "rms_norm", True),
    )
    return _network(config, sizes)


def _known(config: dict[str, Any], key: str, settings: set[str]) -> dict[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise CorruptCheckpointError(
            f"config.json: {key} is not an object", hint="download config.json again"
        )
    unknown = sorted(set(found) - settings)
    if unknown:
        raise UnsupportedCheckpointError(
            f"config.json: {key} has settings that are not known here:"
            f" {listing(unknown)}",
            hint=LIST_HINT,
        )
    return found


def _network(config: dict[str, Any], mixer: Any) -> NetworkConfig:
    """Mixers in every layer but those of attn_layer_idx, and an MLP after each."""
    layers = layer_count(config, "n_layer", 64)
    attended = config.get("attn_layer_idx") or []
    if not isinstance(attended, list) or not set(attended) <= set(range(layers)):
        raise refuse("attn_layer_idx", attended, f"a list of layers below {layers}")
    hidden = config.get("d_intermediate") or 0
    sublayers: list[Any] = []
    for i in range(layers):
        sublayers.append(_attention(config, mixer) if i in attended else mixer)
        if hidden:
            sublayers.append(
                MlpSizes(
                    d_model=mixer.d_model,
                    # mamba_ssm rounds up to a multiple of 128
                    d_hidden=-(-integer(config, "d_intermediate", 0) // 128) * 128,
                    activation="silu",
                    gated=True,
                    norm_epsilon=_EPSILON,
                    norm_centred=mixer.norm_centred,
                )
            )
    vocab_size = integer(config, "vocab_size", 50277)
    multiple = integer(config, "pad_vocab_size_multiple", 8)
    return NetworkConfig(
        vocab_size=vocab_size,
        padded_vocab_size=-(-vocab_size // multiple) * multiple,
        d_model=mixer.d_model,
        sublayers=tuple(sublayers),
        norm_epsilon=_EPSILON,
        residual_in_fp32=switch(config, "residual_in_fp32", True),
        tie_embeddings=switch(config, "tie_embeddings", True),
        fused_add_norm=switch(config, "fused_add_norm", True),
        norm_centred=mixer.norm_centred,
    )


def _attention(config: dict[str, Any], mixer: Any) -> AttentionSizes:
    attn = _known(config, "attn_cfg", _ATTENTION_SETTINGS)
    for refused, what in (
        (not switch(attn, "causal", False), "that is not causal"),
        (switch(attn, "rotary_emb_interleaved", False), "with interleaved positions"),
        (attn.get("mlp_dim", 0), "with an MLP of its own (mlp_dim)"),
    ):
        if refused:
            raise UnsupportedCheckpointError(
                f"attention {what} is not covered", hint=LIST_HINT
            )
    if attn.get("num_heads") is None:
        raise refuse("num_heads", None, "a number of heads")
    heads = integer(attn, "num_heads", 1)
    kv_heads = heads
    if attn.get("num_heads_kv") is not None:
        kv_heads = integer(attn, "num_heads_kv", heads)
    head_dim = mixer.d_model // heads
    if attn.get("head_dim") is not None:
        head_dim = integer(attn, "head_dim", 1)
    scale = head_dim**-0.5
    if attn.get("softmax_scale") is not None:
        scale = positive(attn, "softmax_scale", 1.0)
    return AttentionSizes(
        d_model=mixer.d_model,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rotary=(attn.get("rotary_emb_dim") and integer(attn, "rotary_emb_dim", 1)) or 0,
        theta=positive(attn, "rotary_emb_base", 10000.0),
        scale=scale,
        norm_epsilon=_EPSILON,
        norm_centred=mixer.norm_centred,
        d_conv=(attn.get("d_conv") and integer(attn, "d_conv", 1)) or 0,
    )


def recognise_mamba_ssm(checkpoint: Checkpoint, config: NetworkConfig) -> NetworkLayout:
    """A model of mamba_ssm, whichever mixers it has."""
    names, root = top_names(checkpoint, config.tie_embeddings, config.norm_centred)
    stored = checkpoint.tensors
    parts: list[dict[str, Part]] = []
    layer = -1
    for sizes in config.sublayers:
        layer += not isinstance(sizes, MlpSizes)
        prefix = f"{root}{layer}."
        mixer, norm = f"{prefix}mixer.", f"{prefix}norm"
        if isinstance(sizes, Mamba1Sizes):
            parts.append(mamba1_parts(sizes, mixer, norm))
        elif isinstance(sizes, Mamba2Sizes):
            parts.append(mamba2_parts(sizes, mixer, norm, stored))
        elif isinstance(sizes, Mamba3Sizes):
            parts.append(_mamba3_parts(sizes, mixer, norm))
        elif isinstance(sizes, AttentionSizes):
            parts.append(_attention_parts(sizes, mixer, norm, stored))
        else:
            parts.append(_mlp_parts(sizes, f"{prefix}mlp.", f"{prefix}norm2"))
    kinds = {sizes.kind for sizes in config.sublayers}
    name = next((one for one in ("mamba3", "mamba2") if one in kinds), "mamba1")
    return recognise_network(checkpoint, name, config, names, parts, layers=layer + 1)


def _mamba3_parts(c: Mamba3Sizes, prefix: str, norm: str) -> dict[str, Part]:
    """Rows of in_proj are z, x, B, C, dt, A, lambda and the angles."""
    rank = c.rank or 1
    in_rows = 2 * (c.d_inner + rank * c.groups * c.d_state) + 3 * c.heads + c.angles
    parts = {
        "in_proj": Part("in_proj.weight", (in_rows, c.d_model)),
        "dt_bias": Part("dt_bias", (c.heads,)),
        "B_bias": Part("B_bias", (c.heads, rank, c.d_state)),
        "C_bias": Part("C_bias", (c.heads, rank, c.d_state)),
        "B_norm": Part("B_norm.weight", (c.d_state,)),
        "C_norm": Part("C_norm.weight", (c.d_state,)),
        "D": Part("D", (c.heads,)),
        "out_proj": Part("out_proj.weight", (c.d_model, c.d_inner)),
    }
    if c.rank is not None:
        for name in ("mimo_x", "mimo_z", "mimo_o"):
            parts[name] = Part(name, (c.heads, rank, c.d_inner // c.heads))
    if c.gate_norm:
        parts["gate_norm"] = Part("norm.weight", (c.d_inner,))
    return norm_parts(norm, c.d_model, c.norm_centred) | under(prefix, parts)


def _attention_parts(
    c: AttentionSizes, prefix: str, norm: str, stored: dict[str, Any]
) -> dict[str, Part]:
    """Query, key and value lie in one tensor, in this order."""
    q, kv, out = c.heads * c.head_dim, c.kv_heads * c.head_dim, c.heads * c.head_dim
    all_rows = q + 2 * kv
    places = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, all_rows)}
    parts = {}
    for name, (start, stop) in places.items():
        take = rows(start, stop)
        parts[f"{name}_proj"] = Part("in_proj.weight", (all_rows, c.d_model), take)
        if f"{prefix}in_proj.bias" in stored:
            parts[f"{name}_bias"] = Part("in_proj.bias", (all_rows,), take)
    parts["o_proj"] = Part("out_proj.weight", (c.d_model, out))
    if f"{prefix}out_proj.bias" in stored:
        parts["o_bias"] = Part("out_proj.bias", (c.d_model,))
    if c.d_conv:
        shape = (all_rows, 1, c.d_conv)
        parts["conv_weight"] = Part("conv1d.weight", shape, without_middle_axis)
        parts["conv_bias"] = Part("conv1d.bias", (all_rows,))
    return norm_parts(norm, c.d_model, c.norm_centred) | under(prefix, parts)


def _mlp_parts(c: MlpSizes, prefix: str, norm: str) -> dict[str, Part]:
    """What goes through and what gates it lie in one tensor, in this order."""
    shape = (2 * c.d_hidden, c.d_model)
    parts = {
        "up": Part("fc1.weight", shape, rows(0, c.d_hidden)),
        "gate": Part("fc1.weight", shape, rows(c.d_hidden, 2 * c.d_hidden)),
        "down": Part("fc2.weight", (c.d_model, c.d_hidden)),
    }
    return norm_parts(norm, c.d_model, c.norm_centred) | under(prefix, parts)
