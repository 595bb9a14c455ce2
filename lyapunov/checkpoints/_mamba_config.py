"""Sizes of a Mamba model from `config.json`, as either library writes it."""

import math
from typing import Any

from .._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ..models.config import Mamba1Config, Mamba2Sizes, NetworkConfig
from ._families import LIST_HINT
from ._files import listing, quote


_MAX_SIZE = 2**31 - 1


def transformers_config(config: dict[str, Any]) -> Mamba1Config:
    """Sizes from transformers' `config.json` with model_type "mamba"."""
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise UnsupportedCheckpointError(
            f"config.json says hidden_act = {quote(act)}; only silu is covered",
            hint="Mamba's published models use silu",
        )
    d_model = integer(config, "hidden_size", 768)
    vocab_size = integer(config, "vocab_size", 50280)
    return Mamba1Config(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=d_model,
        d_inner=_expanded(config, d_model),
        d_state=integer(config, "state_size", 16),
        d_conv=integer(config, "conv_kernel", 4),
        dt_rank=_rank(config, "time_step_rank", d_model),
        n_layers=integer(config, "num_hidden_layers", 32),
        norm_epsilon=positive(config, "layer_norm_epsilon", 1e-5),
        residual_in_fp32=switch(config, "residual_in_fp32", True),
        tie_embeddings=switch(config, "tie_word_embeddings", True),
        conv_bias=switch(config, "use_conv_bias", True),
        proj_bias=switch(config, "use_bias", False),
    )


_SSM_SETTINGS = {
    "layer", "d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias",
    "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path",
}  # fmt: skip


def _refuse_parts(config: dict[str, Any]) -> None:
    for refused, what in (
        (not switch(config, "rms_norm", True), "LayerNorm (rms_norm = false)"),
        (config.get("d_intermediate"), "MLP layers (d_intermediate > 0)"),
        (config.get("attn_layer_idx"), "attention layers (attn_layer_idx)"),
    ):
        if refused:
            raise UnsupportedCheckpointError(
                f"a mamba_ssm model with {what} is not covered yet; it is planned",
                hint=LIST_HINT,
            )


def mamba_ssm_config(config: dict[str, Any]) -> Mamba1Config:
    """Sizes from `mamba_ssm`'s `config.json`."""
    ssm = config.get("ssm_cfg") or {}
    _refuse_parts(config)
    unknown = sorted(set(ssm) - _SSM_SETTINGS)
    if unknown:
        raise UnsupportedCheckpointError(
            f"config.json: ssm_cfg has settings that Mamba-1 does not know:"
            f" {listing(unknown)}",
            hint=LIST_HINT,
        )
    d_model = integer(config, "d_model", 2560)
    vocab_size = integer(config, "vocab_size", 50277)
    multiple = integer(config, "pad_vocab_size_multiple", 8)
    return Mamba1Config(
        vocab_size=vocab_size,
        padded_vocab_size=-(-vocab_size // multiple) * multiple,
        d_model=d_model,
        d_inner=_expanded(ssm, d_model),
        d_state=integer(ssm, "d_state", 16),
        d_conv=integer(ssm, "d_conv", 4),
        dt_rank=_rank(ssm, "dt_rank", d_model),
        n_layers=integer(config, "n_layer", 64),
        norm_epsilon=1e-5,  # mamba_ssm fixes it
        residual_in_fp32=switch(config, "residual_in_fp32", True),
        tie_embeddings=switch(config, "tie_embeddings", True),
        conv_bias=switch(ssm, "conv_bias", True),
        proj_bias=switch(ssm, "bias", False),
        fused_add_norm=switch(config, "fused_add_norm", True),
    )


_SSD_SETTINGS = {
    "layer", "d_state", "d_conv", "conv_init", "expand", "headdim", "d_ssm", "ngroups",
    "A_init_range", "D_has_hdim", "rmsnorm", "norm_before_gate", "dt_min", "dt_max",
    "dt_init_floor", "dt_limit", "bias", "conv_bias", "chunk_size", "use_mem_eff_path",
}  # fmt: skip


def transformers_mamba2_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from transformers' `config.json` with model_type "mamba2"."""
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise UnsupportedCheckpointError(
            f"config.json says hidden_act = {quote(act)}; only silu is covered",
            hint="Mamba's published models use silu",
        )
    d_model = integer(config, "hidden_size", 4096)
    d_inner = _expanded(config, d_model)
    head_dim = integer(config, "head_dim", 64)
    heads = integer(config, "num_heads", 128)
    if heads * head_dim != d_inner:
        raise CorruptCheckpointError(
            f"config.json: {heads} heads of {head_dim} channels are not the"
            f" {d_inner} that expand * hidden_size makes",
            hint="take config.json and weights from the same place",
        )
    epsilon = positive(config, "layer_norm_epsilon", 1e-5)
    groups = integer(config, "n_groups", 8)
    sizes = Mamba2Sizes(
        d_model=d_model,
        d_inner=d_inner,
        d_state=integer(config, "state_size", 128),
        heads=heads,
        groups=groups,
        d_conv=integer(config, "conv_kernel", 4),
        chunk=integer(config, "chunk_size", 256),
        norm_epsilon=epsilon,
        gate_norm_epsilon=epsilon,
        dt_limit=_limits(config, "time_step_limit"),
        norm_groups=groups,
        conv_bias=switch(config, "use_conv_bias", True),
        proj_bias=switch(config, "use_bias", False),
    )
    vocab_size = integer(config, "vocab_size", 32768)
    return NetworkConfig(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=d_model,
        sublayers=(_divided(sizes),) * integer(config, "num_hidden_layers", 64),
        norm_epsilon=epsilon,
        residual_in_fp32=switch(config, "residual_in_fp32", True),
        tie_embeddings=switch(config, "tie_word_embeddings", False),
    )


def mamba_ssm_mamba2_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `mamba_ssm`'s `config.json` with layer "Mamba2"."""
    ssm = config.get("ssm_cfg") or {}
    _refuse_parts(config)
    unknown = sorted(set(ssm) - _SSD_SETTINGS)
    if unknown:
        raise UnsupportedCheckpointError(
            f"config.json: ssm_cfg has settings that Mamba-2 does not know:"
            f" {listing(unknown)}",
            hint=LIST_HINT,
        )
    d_model = integer(config, "d_model", 2560)
    d_inner = _expanded(ssm, d_model)
    if ssm.get("d_ssm") not in (None, d_inner):
        raise UnsupportedCheckpointError(
            "a Mamba-2 layer with an MLP of its own (d_ssm < d_inner) is not covered",
            hint=LIST_HINT,
        )
    head_dim = integer(ssm, "headdim", 64)
    if d_inner % head_dim:
        raise _refuse("headdim", head_dim, f"a divisor of {d_inner} channels")
    groups = integer(ssm, "ngroups", 1)
    sizes = Mamba2Sizes(
        d_model=d_model,
        d_inner=d_inner,
        d_state=integer(ssm, "d_state", 128),
        heads=d_inner // head_dim,
        groups=groups,
        d_conv=integer(ssm, "d_conv", 4),
        chunk=integer(ssm, "chunk_size", 256),
        norm_epsilon=1e-5,  # mamba_ssm fixes both
        gate_norm_epsilon=1e-5,
        dt_limit=_limits(ssm, "dt_limit"),
        gate_norm=switch(ssm, "rmsnorm", True),
        norm_groups=groups,
        norm_before_gate=switch(ssm, "norm_before_gate", False),
        conv_bias=switch(ssm, "conv_bias", True),
        proj_bias=switch(ssm, "bias", False),
    )
    vocab_size = integer(config, "vocab_size", 50277)
    multiple = integer(config, "pad_vocab_size_multiple", 8)
    return NetworkConfig(
        vocab_size=vocab_size,
        padded_vocab_size=-(-vocab_size // multiple) * multiple,
        d_model=d_model,
        sublayers=(_divided(sizes),) * integer(config, "n_layer", 64),
        norm_epsilon=1e-5,
        residual_in_fp32=switch(config, "residual_in_fp32", True),
        tie_embeddings=switch(config, "tie_embeddings", True),
        fused_add_norm=switch(config, "fused_add_norm", True),
    )


def _divided(sizes: Mamba2Sizes) -> Mamba2Sizes:
    """The sizes, if heads fall evenly into groups."""
    if sizes.heads % sizes.groups or sizes.d_inner % sizes.norm_groups:
        raise CorruptCheckpointError(
            f"config.json: {sizes.heads} heads do not fall into {sizes.groups} groups",
            hint="take config.json and weights from the same place",
        )
    return sizes


def _limits(config: dict[str, Any], key: str) -> tuple[float, float]:
    value = config.get(key, (0.0, math.inf))
    try:
        # transformers writes an infinite end as {"__float__": "Infinity"}
        low, high = (
            float(end["__float__"] if isinstance(end, dict) else end) for end in value
        )
    except (KeyError, TypeError, ValueError):
        raise _refuse(key, value, "a pair of numbers") from None
    if not 0 <= low < high:
        raise _refuse(key, value, "a range of positive numbers")
    return low, high


def _refuse(key: str, value: object, wanted: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"config.json says {key} = {quote(value, 40)}, which is not {wanted}",
        hint="download config.json again",
    )


def integer(config: dict[str, Any], key: str, default: int) -> int:
    """A size: an integer of at least 1."""
    value = config.get(key, default)
    if type(value) is not int or not 1 <= value <= _MAX_SIZE:
        raise _refuse(key, value, "a plausible size")
    return value


def switch(config: dict[str, Any], key: str, default: bool) -> bool:
    """True or false."""
    value = config.get(key, default)
    if type(value) is not bool:
        raise _refuse(key, value, "true or false")
    return value


def positive(config: dict[str, Any], key: str, default: float) -> float:
    """A positive, finite number."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise _refuse(key, value, "a positive number")
    return float(value)


def _expanded(config: dict[str, Any], d_model: int) -> int:
    value = config.get("expand", 2)
    if type(value) not in (int, float) or not 0 < value * d_model <= _MAX_SIZE:
        raise _refuse("expand", value, "a plausible factor")
    return int(value * d_model)


def _rank(config: dict[str, Any], key: str, d_model: int) -> int:
    if config.get(key, "auto") == "auto":
        return math.ceil(d_model / 16)
    return integer(config, key, 1)
