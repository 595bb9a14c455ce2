"""Falcon-H1: Mamba-2 and attention side by side, then an MLP."""

from typing import Any

from .._family import NO_EXPONENT, SILU, Family, of_llama_cpp, of_transformers
from .._parts import Described
from .._settings import (
    layer_count,
    number,
    numbers,
    silu_only,
    switch,
)
from .._sizes import NetworkSettings
from ._hybrid import bamba_mixer, layers_in_turn


def _read(settings: dict[str, Any], stored: dict[str, Any]) -> Described:
    silu_only(settings)
    network = NetworkSettings.of(
        {"mamba_d_ssm": 1024, **settings}, 4096, "rms_norm_eps", 1e-5
    )
    rows = numbers(settings, "ssm_multipliers", 5)
    mixer = bamba_mixer(
        network,
        gate_norm=switch(settings, "mamba_rms_norm", False),
        norm_before_gate=switch(settings, "mamba_norm_before_gate", True),
        out_bias=switch(settings, "projectors_bias", False),
        in_multiplier=number(settings, "ssm_in_multiplier"),
        row_multipliers=None if set(rows) == {1.0} else rows,
        out_multiplier=number(settings, "ssm_out_multiplier"),
    )
    attention = network.llama_attention(
        key_multiplier=number(settings, "key_multiplier"),
        in_multiplier=number(settings, "attention_in_multiplier"),
        out_multiplier=number(settings, "attention_out_multiplier"),
        beside=True,
    )
    gate, down = numbers(settings, "mlp_multipliers", 2)
    mlp = network.mlp(14336, gate_multiplier=gate, down_multiplier=down)
    layers = layer_count(settings, "num_hidden_layers", 32)
    config = network.config(
        [mixer, attention, mlp] * layers,
        embedding_multiplier=number(settings, "embedding_multiplier"),
        logits_multiplier=number(settings, "lm_head_multiplier"),
    )
    return layers_in_turn(stored, config, 3)


FALCON_H1 = Family(
    "Falcon-H1",
    (
        of_transformers("falcon_h1"),
        of_llama_cpp("falcon-h1"),
    ),
    {"transformers": _read},
    ("mixer and attention side by side", "all multipliers"),
    (NO_EXPONENT, SILU),
)
