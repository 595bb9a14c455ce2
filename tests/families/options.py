"""Every option that a family's configuration class has, and another value of it.

Whatever transformers adds to a class and is named in none of the tables makes
`test_every_option_of_a_configuration_is_known` fail.
"""

import copy

from oracles.checkpoints.configurations import (
    ATTENTION,
    BAMBA,
    CONFIGURATIONS,
    MAMBA2,
    SMALL,
)


PLAIN = {**SMALL, "num_hidden_layers": 1, "state_size": 4}

FIRST = {
    "mamba": PLAIN,
    "falcon_mamba": PLAIN,
    "mamba2": {**MAMBA2, "num_hidden_layers": 1, "n_groups": 1},
    "jamba": {
        **SMALL, **ATTENTION, "num_hidden_layers": 2, "intermediate_size": 40,
        "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
        "mamba_d_state": 4,
    },
    "bamba": {**BAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **BAMBA, "layer_types": ["linear_attention", "full_attention"],
        "shared_intermediate_size": 24, "num_local_experts": 4,
    },
    "falcon_h1": {**BAMBA, "num_hidden_layers": 1, "mamba_d_ssm": 32},
} | {
    family: next(iter(CONFIGURATIONS[family].values()))
    for family in (
        "nemotron_h", "zamba", "zamba2", "gpt_neox", "llama", "olmo", "olmo2",
        "qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid", "kimi_linear",
        "bailing_hybrid", "lara_mini", "lfm2", "recurrent_gemma", "rwkv",
        "minimax", "xlstm",
    )
}  # fmt: skip
"""Where the options below begin, by transformers' model_type."""

_MIXER_1 = {
    "conv_kernel": 3, "layer_norm_epsilon": 0.1, "expand": 3, "state_size": 3,
    "use_bias": True, "use_conv_bias": False, "residual_in_fp32": False,
    "time_step_rank": 5, "tie_word_embeddings": False,
}  # fmt: skip
_BAMBA = {
    "attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True,
    "mamba_conv_bias": False, "mamba_d_conv": 3, "mamba_n_groups": 2,
    "mamba_chunk_size": 8, "time_step_limit": (0.2, 1.0), "rms_norm_eps": 0.1,
    "tie_word_embeddings": True, "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}  # fmt: skip
_LLAMA = {
    "hidden_act": "gelu", "attention_bias": True, "tie_word_embeddings": True,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}  # fmt: skip
_QWEN = {
    "linear_conv_kernel_dim": 3, "rms_norm_eps": 0.1, "attention_bias": True,
    "tie_word_embeddings": True, "num_key_value_heads": 4,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5,
    },
}  # fmt: skip
_LATENT = {
    "q_lora_rank": 10, "moe_renormalize": False, "num_expert_group": 4,
    "routed_scaling_factor": 1.5, "topk_group": 3, "num_shared_experts": 2,
    "rms_norm_eps": 0.1, "attention_bias": True,
}  # fmt: skip

OPTIONS = {
    "mamba": _MIXER_1,
    "falcon_mamba": {**_MIXER_1, "mixer_rms_eps": 0.3},
    "mamba2": {
        "conv_kernel": 3, "layer_norm_epsilon": 0.1, "state_size": 4, "n_groups": 2,
        "chunk_size": 8, "use_bias": True, "use_conv_bias": False,
        "residual_in_fp32": False, "tie_word_embeddings": True,
        "time_step_limit": (0.1, 0.8),
    },
    "jamba": {
        "mamba_proj_bias": True, "mamba_conv_bias": False, "mamba_d_conv": 3,
        "mamba_expand": 3, "mamba_dt_rank": 3, "num_experts": 1,
        "num_experts_per_tok": 1, "rms_norm_eps": 0.1, "tie_word_embeddings": True,
        "num_key_value_heads": 4,
    },
    "bamba": _BAMBA,
    # its biases of MLPs are in none of its modules
    "granitemoehybrid": {
        **{key: value for key, value in _BAMBA.items() if key != "mlp_bias"},
        "embedding_multiplier": 3.0, "logits_scaling": 4.0,
        "residual_multiplier": 0.3, "attention_multiplier": 0.2,
        "position_embedding_type": "rope", "num_local_experts": 0,
    },
    "falcon_h1": {
        **_BAMBA, "projectors_bias": True, "mamba_rms_norm": True,
        "mamba_norm_before_gate": False, "ssm_multipliers": [0.5, 0.7, 1.3, 0.9, 1.1],
        "mlp_multipliers": [0.8, 1.2], "key_multiplier": 0.6,
        "attention_out_multiplier": 1.1, "attention_in_multiplier": 0.9,
        "ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.7,
        "lm_head_multiplier": 0.3, "embedding_multiplier": 2.0,
    },
    "nemotron_h": {
        "use_bias": True, "mlp_bias": True, "use_conv_bias": False, "conv_kernel": 3,
        "n_groups": 1, "chunk_size": 8, "time_step_limit": (0.0, 0.05),
        "time_step_min": 0.02, "layer_norm_epsilon": 0.1, "residual_in_fp32": True,
        "mlp_hidden_act": "silu", "moe_latent_size": 12, "norm_topk_prob": False,
        "routed_scaling_factor": 1.5, "num_experts_per_tok": 3,
        "num_key_value_heads": 4, "attention_bias": True,
    },
    "zamba": {
        "mamba_proj_bias": True, "mamba_conv_bias": False, "mamba_d_conv": 3,
        "mamba_expand": 4, "mamba_dt_rank": 3, "n_mamba_heads": 1,
        "rms_norm_eps": 0.1, "tie_word_embeddings": False,
        "hidden_act": "gelu_new",
    },
    "zamba2": {
        "add_bias_linear": True, "mamba_d_conv": 3, "mamba_ngroups": 1,
        "chunk_size": 8, "time_step_min": 0.02, "rms_norm_eps": 0.1,
        "tie_word_embeddings": False, "num_mem_blocks": 1, "adapter_rank": 2,
        "use_mem_rope": False, "use_shared_attention_adapter": False,
        "hidden_act": "gelu_new",
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
    "gpt_neox": {
        "hidden_act": "gelu_new", "use_parallel_residual": False,
        "attention_bias": False, "layer_norm_eps": 0.1, "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5,
        },
    },
    "llama": {**_LLAMA, "mlp_bias": True, "head_dim": 12, "rms_norm_eps": 0.1},
    "olmo": {**_LLAMA, "clip_qkv": None},
    "olmo2": {**_LLAMA, "rms_norm_eps": 0.1},
    "qwen3_next": {**_QWEN, "norm_topk_prob": False, "decoder_sparse_step": 2},
    "qwen3_5": _QWEN,
    "qwen3_5_moe": _QWEN,
    "lfm2": {
        "conv_L_cache": 4, "conv_bias": True, "norm_eps": 0.1,
        "num_key_value_heads": 4, "tie_word_embeddings": False,
        "block_auto_adjust_ff_dim": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
    "minimax": {
        "rms_norm_eps": 0.1, "tie_word_embeddings": True, "num_key_value_heads": 4,
        "head_dim": 12, "sliding_window": 5, "block_size": 5,
        "full_attn_alpha_factor": 1, "full_attn_beta_factor": 0.7,
        "linear_attn_alpha_factor": 0.6, "linear_attn_beta_factor": 1,
        "mlp_alpha_factor": 1, "mlp_beta_factor": 1.4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
    "recurrent_gemma": {
        "conv1d_width": 3, "rms_norm_eps": 0.1, "attention_bias": True,
        "tie_word_embeddings": False, "num_key_value_heads": 4,
        "attention_window_size": 8, "logits_soft_cap": 2.0,
        "hidden_activation": "gelu",
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0,
        },
    },
    "xlstm": {
        "norm_eps": 0.1, "eps": 0.1, "gate_soft_cap": 2.0, "output_logit_soft_cap": 1.0,
    },
    "rwkv": {
        "layer_norm_epsilon": 0.1, "rescale_every": 4, "tie_word_embeddings": False,
    },
    "lara_mini": {
        "linear_conv_kernel_dim": 3, "rms_norm_eps": 0.1, "attention_bias": True,
        "tie_word_embeddings": False, "num_key_value_heads": 4, "sliding_window": 8,
        "norm_topk_prob": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
    "olmo_hybrid": {
        "linear_conv_kernel_dim": 3, "rms_norm_eps": 0.1, "attention_bias": True,
        "tie_word_embeddings": True, "num_key_value_heads": 2,
        "linear_allow_neg_eigval": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": None},
    },
    "kimi_linear": {**_LATENT, "linear_conv_kernel_dim": 3},
    "bailing_hybrid": {
        **_LATENT, "short_conv_kernel_size": 3, "kda_safe_gate": False,
        "kda_lower_bound": -3.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
}  # fmt: skip

_SIZES = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_heads", "head_dim", "mamba_n_heads", "mamba_d_head",
    "mamba_d_state", "mamba_d_ssm", "mamba_num_heads", "mamba_head_dim",
    "ssm_state_size", "n_mamba_heads", "mamba_headdim", "attention_hidden_size",
    "attention_head_dim", "shared_intermediate_size", "moe_intermediate_size",
    "moe_shared_expert_intermediate_size", "n_routed_experts", "mamba_expand",
    "expand", "num_experts_per_tok", "num_key_value_heads", "linear_num_key_heads",
    "linear_key_head_dim", "linear_num_value_heads", "linear_value_head_dim",
    "linear_head_dim", "linear_num_heads", "num_experts", "num_experts_per_token",
    "shared_expert_intermediate_size", "kv_lora_rank", "qk_rope_head_dim",
    "qk_nope_head_dim", "v_head_dim", "qk_head_dim", "block_multiple_of",
    "block_ffn_dim_multiplier", "lru_width", "num_local_experts",
}  # fmt: skip
_PLACES = {
    "layer_types", "layers_block_type", "attn_layer_indices", "attn_layer_period",
    "attn_layer_offset", "expert_layer_period", "expert_layer_offset",
    "hybrid_layer_ids", "mlp_only_layers", "mlp_layer_types", "first_k_dense_replace",
    "layer_group_size", "full_attn_idxs", "block_types",
}  # fmt: skip

EXEMPT = {
    **dict.fromkeys(_SIZES, "a size, which the first values set"),
    **dict.fromkeys(_PLACES, "which sublayer stands where"),
    **dict.fromkeys(
        ("pad_token_id", "bos_token_id", "eos_token_id", "max_position_embeddings"),
        "of the tokenizer, or a promise on lengths",
    ),
    **dict.fromkeys(
        (
            "initializer_range", "rescale_prenorm_residual", "time_step_scale",
            "time_step_max", "time_step_floor", "time_step_init_scheme",
            "linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max",
            "linear_dt_init_floor", "w_init_variance_scale",
            "final_w_init_variance_scale",
        ),
        "of how weights begin",
    ),
    **dict.fromkeys(
        (
            "attention_dropout", "hidden_dropout", "classifier_dropout",
            "output_router_logits", "router_aux_loss_coef", "z_loss_coefficient",
            "mtp_loss_scaling_factor", "router_jitter_noise",
        ),
        "of training",
    ),
    **dict.fromkeys(
        (
            "use_cache", "num_logits_to_keep", "use_mamba_kernels", "use_mambapy",
            "use_associative_scan", "use_mem_eff_path", "mamba_ssm_cache_dtype",
            "moe_shared_expert_overlap",
        ),
        "how it is run, and not on this path",
    ),
    **dict.fromkeys(
        (
            "pretraining_tp", "is_decoder", "kv_channels", "num_query_groups",
            "n_shared_experts", "num_nextn_predict_layers",
            "mtp_layers_block_type", "sliding_window",
        ),
        "read by no module of the network",
    ),
    "model_max_length": "a promise on lengths",
    **dict.fromkeys(
        (
            "chunkwise_kernel", "sequence_kernel", "step_kernel", "mode", "chunk_size",
            "return_last_states", "autocast_kernel_dtype", "inference_state_dtype",
            "max_inference_chunksize",
        ),
        "of how an mLSTM is run: no torch code reads it, or calls are refused by it",
    ),
    **dict.fromkeys(
        ("embedding_dim", "num_blocks", "qk_dim_factor", "v_dim_factor",
         "ffn_proj_factor", "ffn_round_up_to_multiple_of"),
        "a size, which the first values set",
    ),
    **dict.fromkeys(
        ("use_bias", "norm_reduction_force_float32"), "refused when it is loaded"
    ),
    "add_out_norm": "read by no module of the network",
    "weight_mode": "varied in `test_xlstm`: transformers fails to begin fused weights",
    "context_length": "of a kernel for GPUs, which no execution here declares",
    "use_long_context": "changes rope_theta, which is written out",
}  # fmt: skip
"""Options that make no other function of a whole text, and why."""

EXEMPT_IN = {
    ("mamba", "hidden_act"): "refused when it is loaded, as in all below",
    ("falcon_mamba", "hidden_act"): "",
    ("xlstm", "tie_word_embeddings"): "no class ties them; refused where they differ",
    ("mamba2", "hidden_act"): "",
    ("jamba", "hidden_act"): "",
    ("bamba", "hidden_act"): "",
    ("granitemoehybrid", "hidden_act"): "",
    ("falcon_h1", "hidden_act"): "",
    ("nemotron_h", "mamba_hidden_act"): "",
    ("zamba", "hidden_mamba_act"): "",
    ("mamba", "time_step_min"): "of how weights begin, as in all below",
    ("falcon_mamba", "time_step_min"): "",
    ("mamba2", "time_step_min"): "",
    ("zamba", "time_step_min"): "",
    ("mamba2", "time_step_rank"): "read by no module of the network",
    ("granitemoehybrid", "mlp_bias"): "read by no module of the network",
    ("nemotron_h", "tie_word_embeddings"): "transformers ties nothing there",
    ("kimi_linear", "tie_word_embeddings"): "",
    ("bailing_hybrid", "tie_word_embeddings"): "",
    ("nemotron_h", "mamba_proj_bias"): "use_bias is what its modules read",
    ("nemotron_h", "n_group"): "varied in Kimi Linear and Ling, which choose alike",
    ("nemotron_h", "topk_group"): "",
    ("qwen3_next", "hidden_act"): "refused when it is loaded, as in all below",
    ("qwen3_5", "hidden_act"): "",
    ("qwen3_5_moe", "hidden_act"): "",
    ("olmo_hybrid", "hidden_act"): "",
    ("lara_mini", "hidden_act"): "",
    ("minimax", "hidden_act"): "",
    ("kimi_linear", "hidden_act"): "",
    ("bailing_hybrid", "hidden_act"): "",
    ("bailing_hybrid", "rope_theta"): "written out in rope_parameters",
    ("bailing_hybrid", "linear_conv_kernel_dim"): "made of short_conv_kernel_size",
    ("zamba2", "use_conv_bias"): "its modules always have that bias",
}
"""Of one family, and why; an empty reason is the one before it."""


def altered(family: str, start: int = 0, step: int = 1) -> dict:
    """The first values, with each `step`-th option from `start` at its other value."""
    options = OPTIONS[family]
    # a configuration writes into the dictionaries that it is given
    chosen = {key: options[key] for key in list(options)[start::step]}
    return FIRST[family] | copy.deepcopy(chosen)
