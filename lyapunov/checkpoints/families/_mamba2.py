"""Mamba-2 of transformers and of mamba_ssm; Codestral Mamba, by Mistral's names too."""

from typing import Any

from .._family import SILU, Family, of_llama_cpp, of_transformers
from .._parts import Described, mamba2_parts
from .._settings import (
    expanded,
    integer,
    limits,
    silu_only,
    switch,
    unsupported,
)
from .._sizes import NetworkSettings
from ..files._files import disagreeing
from . import _mamba_ssm as mamba_ssm
from ._mamba1 import only_mixers


_NAMES = {
    "d_state": ("state_size", 128),
    "groups": ("n_groups", 8),
    "d_conv": ("conv_kernel", 4),
    "chunk": ("chunk_size", 256),
    "conv_bias": ("use_conv_bias", True),
    "proj_bias": ("use_bias", False),
}
_MAMBA_SSM_NAMES = {
    "d_state": ("d_state", 128),
    "groups": ("ngroups", 1),
    "d_conv": ("d_conv", 4),
    "chunk": ("chunk_size", 256),
    "conv_bias": ("conv_bias", True),
    "proj_bias": ("bias", False),
}
_MAMBA_SSM_SETTINGS = {
    "layer", "d_state", "d_conv", "conv_init", "expand", "headdim", "d_ssm", "ngroups",
    "A_init_range", "D_has_hdim", "rmsnorm", "norm_before_gate", "dt_min", "dt_max",
    "dt_init_floor", "dt_limit", "bias", "conv_bias", "chunk_size", "use_mem_eff_path",
}  # fmt: skip


def _read_transformers(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    silu_only(settings)
    network = NetworkSettings.of(settings, 4096, "layer_norm_epsilon", 1e-5)
    d_inner = expanded(settings, network.d_model)
    head_dim = integer(settings, "head_dim", 64)
    heads = integer(settings, "num_heads", 128)
    if heads * head_dim != d_inner:
        raise disagreeing(
            f"config.json: {heads} heads of {head_dim} channels are not the"
            f" {d_inner} that expand * hidden_size makes"
        )
    mixer = network.mamba2(d_inner, heads, _NAMES)
    return only_mixers(
        stored, network, mixer, 64, mamba2_parts, vocab_size=32768, tied=False
    )


def _read_mamba_ssm(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    network = mamba_ssm.mixer_settings(settings, _MAMBA_SSM_SETTINGS)
    ssm = network.settings
    d_inner = expanded(ssm, network.d_model)
    if ssm.get("d_ssm") not in (None, d_inner):
        raise unsupported(
            "a Mamba-2 layer with an MLP of its own (d_ssm < d_inner) is not covered"
        )
    mixer = network.mamba2(
        d_inner,
        mamba_ssm.head_count(ssm, d_inner),
        _MAMBA_SSM_NAMES,
        dt_limit=limits(ssm, "dt_limit"),
        gate_norm=switch(ssm, "rmsnorm", True),
        norm_before_gate=switch(ssm, "norm_before_gate", False),
        norm_centred=mamba_ssm.centred(settings),
    )
    return mamba_ssm.described(settings, stored, mixer, mamba2_parts)


MAMBA2 = Family(
    "Mamba-2, Codestral Mamba",
    (
        of_transformers("mamba2"),
        of_llama_cpp("mamba2"),
        "mamba_ssm (ssm_cfg.layer Mamba2): pytorch_model.bin or model.safetensors",
        "Mistral: params.json and consolidated.safetensors",
    ),
    {"transformers": _read_transformers, "mamba_ssm": _read_mamba_ssm},
    (
        "groups, D per head or per channel, limits of dt",
        "the gated norm before or after the gate, or none",
        mamba_ssm.COVERED,
    ),
    (
        SILU,
        "an MLP inside the mixer (d_ssm below d_inner)",
        mamba_ssm.NOT_COVERED,
    ),
)
