"""Sizes of Mamba, Falcon Mamba and Mamba-2 from transformers' `config.json`."""

from typing import Any

from ..._errors import CorruptCheckpointError
from ...sublayers import Mamba1Sizes, Mamba2Sizes, NetworkConfig
from .._settings import (
    expanded,
    integer,
    layer_count,
    limits,
    positive,
    rank,
    silu_only,
    switch,
)


def transformers_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from transformers' `config.json` with model_type "mamba"."""
    return _mamba1_network(config, None)


def falcon_mamba_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from `config.json` with model_type "falcon_mamba".

    Mamba-1, with norms that have no weights over what dt is made of, over B and C.
    """
    return _mamba1_network(config, positive(config, "mixer_rms_eps", 1e-6))


def _mamba1_network(
    config: dict[str, Any], mixer_norm_epsilon: float | None
) -> NetworkConfig:
    """Mamba-1 mixers, all alike."""
    silu_only(config)
    d_model = integer(config, "hidden_size", 768)
    vocab_size = integer(config, "vocab_size", 50280)
    epsilon = positive(config, "layer_norm_epsilon", 1e-5)
    sizes = Mamba1Sizes(
        d_model=d_model,
        d_inner=expanded(config, d_model),
        d_state=integer(config, "state_size", 16),
        d_conv=integer(config, "conv_kernel", 4),
        dt_rank=rank(config, "time_step_rank", d_model),
        norm_epsilon=epsilon,
        conv_bias=switch(config, "use_conv_bias", True),
        proj_bias=switch(config, "use_bias", False),
        mixer_norm_epsilon=mixer_norm_epsilon,
    )
    return NetworkConfig(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=d_model,
        sublayers=(sizes,) * layer_count(config, "num_hidden_layers", 32),
        norm_epsilon=epsilon,
        residual_in_fp32=switch(config, "residual_in_fp32", True),
        tie_embeddings=switch(config, "tie_word_embeddings", True),
    )


def transformers_mamba2_config(config: dict[str, Any]) -> NetworkConfig:
    """Sizes from transformers' `config.json` with model_type "mamba2"."""
    silu_only(config)
    d_model = integer(config, "hidden_size", 4096)
    d_inner = expanded(config, d_model)
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
        dt_limit=limits(config, "time_step_limit"),
        norm_groups=groups,
        conv_bias=switch(config, "use_conv_bias", True),
        proj_bias=switch(config, "use_bias", False),
    )
    vocab_size = integer(config, "vocab_size", 32768)
    return NetworkConfig(
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        d_model=d_model,
        sublayers=(divided(sizes),) * layer_count(config, "num_hidden_layers", 64),
        norm_epsilon=epsilon,
        residual_in_fp32=switch(config, "residual_in_fp32", True),
        tie_embeddings=switch(config, "tie_word_embeddings", False),
    )


def divided(sizes: Mamba2Sizes) -> Mamba2Sizes:
    """The sizes, if heads fall evenly into groups."""
    if sizes.heads % sizes.groups or sizes.d_inner % sizes.norm_groups:
        raise CorruptCheckpointError(
            f"config.json: {sizes.heads} heads do not fall into {sizes.groups} groups",
            hint="take config.json and weights from the same place",
        )
    return sizes
