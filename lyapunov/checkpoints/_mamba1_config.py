"""Sizes of a Mamba-1 model from `config.json`, as either library writes it."""

import math
from typing import Any

from .._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ..models.config import Mamba1Config
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
    d_model = _integer(config, "hidden_size", 768)
    vocab_size = _integer(config, "vocab_size", 50280)
    return Mamba1Config(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=d_model,
        d_inner=_expanded(config, d_model),
        d_state=_integer(config, "state_size", 16),
        d_conv=_integer(config, "conv_kernel", 4),
        dt_rank=_rank(config, "time_step_rank", d_model),
        n_layers=_integer(config, "num_hidden_layers", 32),
        norm_epsilon=_positive(config, "layer_norm_epsilon", 1e-5),
        residual_in_fp32=_switch(config, "residual_in_fp32", True),
        tie_embeddings=_switch(config, "tie_word_embeddings", True),
        conv_bias=_switch(config, "use_conv_bias", True),
        proj_bias=_switch(config, "use_bias", False),
    )


_SSM_SETTINGS = {
    "layer", "d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias",
    "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path",
}  # fmt: skip


def mamba_ssm_config(config: dict[str, Any]) -> Mamba1Config:
    """Sizes from `mamba_ssm`'s `config.json`."""
    ssm = config.get("ssm_cfg") or {}
    for refused, what in (
        (not _switch(config, "rms_norm", True), "LayerNorm (rms_norm = false)"),
        (config.get("d_intermediate"), "MLP layers (d_intermediate > 0)"),
        (config.get("attn_layer_idx"), "attention layers (attn_layer_idx)"),
    ):
        if refused:
            raise UnsupportedCheckpointError(
                f"a mamba_ssm model with {what} is not covered yet; it is planned",
                hint=LIST_HINT,
            )
    unknown = sorted(set(ssm) - _SSM_SETTINGS)
    if unknown:
        raise UnsupportedCheckpointError(
            f"config.json: ssm_cfg has settings that Mamba-1 does not know:"
            f" {listing(unknown)}",
            hint=LIST_HINT,
        )
    d_model = _integer(config, "d_model", 2560)
    vocab_size = _integer(config, "vocab_size", 50277)
    multiple = _integer(config, "pad_vocab_size_multiple", 8)
    return Mamba1Config(
        vocab_size=vocab_size,
        padded_vocab_size=-(-vocab_size // multiple) * multiple,
        d_model=d_model,
        d_inner=_expanded(ssm, d_model),
        d_state=_integer(ssm, "d_state", 16),
        d_conv=_integer(ssm, "d_conv", 4),
        dt_rank=_rank(ssm, "dt_rank", d_model),
        n_layers=_integer(config, "n_layer", 64),
        norm_epsilon=1e-5,  # mamba_ssm fixes it
        residual_in_fp32=_switch(config, "residual_in_fp32", True),
        tie_embeddings=_switch(config, "tie_embeddings", True),
        conv_bias=_switch(ssm, "conv_bias", True),
        proj_bias=_switch(ssm, "bias", False),
        fused_add_norm=_switch(config, "fused_add_norm", True),
    )


def _refuse(key: str, value: object, wanted: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"config.json says {key} = {quote(value, 40)}, which is not {wanted}",
        hint="download config.json again",
    )


def _integer(config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if type(value) is not int or not 1 <= value <= _MAX_SIZE:
        raise _refuse(key, value, "a plausible size")
    return value


def _switch(config: dict[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if type(value) is not bool:
        raise _refuse(key, value, "true or false")
    return value


def _positive(config: dict[str, Any], key: str, default: float) -> float:
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
    return _integer(config, key, 1)
