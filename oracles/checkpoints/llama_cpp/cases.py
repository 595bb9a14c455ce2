"""Small networks of transformers that llama.cpp computes as well, by name.

llama.cpp takes mixers of twice the width alone in most families, one size of keys and
values in Qwen3-Next, no limits of dt anywhere, and one epsilon, kept in fp32: 2^-17 is
the same in both.
"""

from typing import Any

from ..configurations import (
    BAMBA,
    CONFIGURATIONS,
    MAMBA2,
    NEMOTRON,
    NO_LIMITS,
    QWEN,
    QWEN_EXPERTS,
    SMALL,
)


EPSILON = 2.0**-17

_NORM = {"layer_norm_epsilon": EPSILON}
_RMS = {"rms_norm_eps": EPSILON}
_MAMBA = {**SMALL, **_NORM, "num_hidden_layers": 2, "state_size": 16}
_MAMBA2 = {**MAMBA2, **_NORM, **NO_LIMITS["mamba2"], "state_size": 16}
_HYBRID = {**BAMBA, **_RMS, **NO_LIMITS["bamba"], "mamba_d_state": 16}
# dt's first values come from that limit, under which a state would hold nothing
_NEMOTRON = {**NEMOTRON, **_NORM, **NO_LIMITS["nemotron_h"], "ssm_state_size": 16}
_NEMOTRON |= {"time_step_floor": 0.1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", _MAMBA),
    "mamba, untied": (
        "mamba",
        {**_MAMBA, "tie_word_embeddings": False, "time_step_rank": 5},
    ),
    "falcon_mamba": ("falcon_mamba", {**_MAMBA, "mixer_rms_eps": EPSILON}),
    "mamba2": ("mamba2", {**_MAMBA2, "n_groups": 1}),
    "mamba2, groups, tied": (
        "mamba2",
        {**_MAMBA2, "n_groups": 4, "tie_word_embeddings": True},
    ),
    "falcon_h1, all multipliers": (
        "falcon_h1",
        {**CONFIGURATIONS["falcon_h1"]["all multipliers"], **_HYBRID}
        | {"num_hidden_layers": 2, "mamba_d_ssm": 32},
    ),
    "falcon_h1, a gated norm": (
        "falcon_h1",
        {
            **_HYBRID, "mamba_d_ssm": 64, "mamba_rms_norm": True, "head_dim": 12,
            "mamba_norm_before_gate": False, "mamba_n_groups": 2,
        },
    ),
    "granitemoehybrid, experts": (
        "granitemoehybrid",
        {**CONFIGURATIONS["granitemoehybrid"]["experts, no positions"], **_HYBRID},
    ),
    "granitemoehybrid, dense, positions": (
        "granitemoehybrid",
        {
            **CONFIGURATIONS["granitemoehybrid"]["dense, positions"], **_HYBRID,
            "attention_bias": False, "attention_multiplier": 0.3,
            "mamba_n_groups": 2,
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            **_NEMOTRON,
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
        },
    ),
    "nemotron_h, latent experts": (
        "nemotron_h",
        {
            **_NEMOTRON, "routed_scaling_factor": 2.5, "moe_latent_size": 12,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        },
    ),
    "jamba, experts": (
        "jamba",
        {**CONFIGURATIONS["jamba"]["experts"], **_RMS, "mamba_d_state": 16},
    ),
    "qwen3_next": (
        "qwen3_next",
        {
            **QWEN, **QWEN_EXPERTS, "num_hidden_layers": 4, "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "full_attention_interval": 2,
        },
    ),
}  # fmt: skip
"""transformers' model_type and settings."""

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bamba": (
        "bamba",
        {
            **_HYBRID, "hidden_size": 64, "attn_layer_indices": [1],
            "mamba_n_groups": 2,
        },
    ),
}  # fmt: skip
"""Those of which llama.cpp computes another function than transformers: it turns other
pairs of a head's rows than the original has."""
