"""Mamba-1 of transformers and of mamba_ssm, and Falcon Mamba."""

from typing import Any

from .._family import SILU, Family, of_llama_cpp, of_transformers
from .._parts import Described, mamba1_parts
from .._settings import layer_count, positive, silu_only, switch
from .._sizes import NetworkSettings
from . import _mamba_ssm as mamba_ssm


_NAMES = (
    *("expand", "state_size", "conv_kernel", "time_step_rank"),
    *("use_conv_bias", "use_bias"),
)
_MAMBA_SSM_NAMES = ("expand", "d_state", "d_conv", "dt_rank", "conv_bias", "bias")
_MAMBA_SSM_SETTINGS = {
    *("layer", *_MAMBA_SSM_NAMES, "use_fast_path"),
    *("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor"),
}


def _read_transformers(
    settings: dict[str, Any],
    stored: dict[str, Any],
    mixer_norm_epsilon: float | None = None,
) -> Described:
    silu_only(settings)
    network = NetworkSettings.of(settings, 768, "layer_norm_epsilon", 1e-5)
    mixer = network.mamba1(_NAMES, mixer_norm_epsilon=mixer_norm_epsilon)
    return only_mixers(stored, network, mixer, 32, mamba1_parts, vocab_size=50280)


def _read_falcon_mamba(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    """Mamba-1 with norms that have no weights over what dt is made of, over B and C."""
    epsilon = positive(settings, "mixer_rms_eps", 1e-6)
    return _read_transformers(settings, stored, epsilon)


def only_mixers(
    stored: dict[str, Any],
    network: NetworkSettings,
    mixer: Any,
    layers: int,
    mixer_parts: Any,
    *,
    vocab_size: int,
    tied: bool = True,
) -> Described:
    """A network of transformers with nothing but mixers, all alike.

    **Arguments:**

    - `layers`, `vocab_size`, `tied`: where the settings do not say.
    """
    settings = network.settings
    layers = layer_count(settings, "num_hidden_layers", layers)
    config = network.config(
        [mixer] * layers,
        vocab_size=vocab_size,
        tied=tied,
        residual_in_fp32=switch(settings, "residual_in_fp32", True),
    )
    names, root = mamba_ssm.names_around(stored, config.tie_embeddings, False)
    parts = [
        mixer_parts(mixer, stored, f"{root}{i}.mixer.", f"{root}{i}.norm")
        for i in range(layers)
    ]
    return Described(config, names, parts)


def _read_mamba_ssm(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    network = mamba_ssm.mixer_settings(settings, _MAMBA_SSM_SETTINGS)
    centred = mamba_ssm.centred(settings)
    mixer = network.mamba1(_MAMBA_SSM_NAMES, norm_centred=centred)
    return mamba_ssm.described(settings, stored, mixer, mamba1_parts)


MAMBA1 = Family(
    "Mamba-1",
    (
        of_transformers("mamba"),
        of_llama_cpp("mamba"),
        "mamba_ssm: pytorch_model.bin or model.safetensors",
    ),
    {"transformers": _read_transformers, "mamba_ssm": _read_mamba_ssm},
    (
        "padded vocabularies",
        "biases of the projections and of the convolution, or none",
        mamba_ssm.COVERED,
    ),
    (SILU, mamba_ssm.NOT_COVERED),
    ("mamba",),
)
FALCON_MAMBA = Family(
    "Falcon Mamba",
    (
        of_transformers("falcon_mamba"),
        of_llama_cpp("mamba"),
    ),
    {"transformers": _read_falcon_mamba},
    ("norms without weights over dt, B and C, before dt_proj",),
    (
        SILU,
        "the fused kernel of training, which normalises dt after dt_proj: another"
        " function",
    ),
)
