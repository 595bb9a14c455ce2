"""Small configurations of each family that take different paths through its code."""

SMALL = {"vocab_size": 50, "hidden_size": 32, "pad_token_id": None}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2}
BAMBA = {
    **SMALL, **ATTENTION, "num_hidden_layers": 2, "intermediate_size": 40,
    "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 16,
}  # fmt: skip
MAMBA2 = {
    **SMALL, "num_hidden_layers": 2, "state_size": 8, "head_dim": 8, "num_heads": 8,
    "chunk_size": 16,
}  # fmt: skip
NEMOTRON = {
    **SMALL, **ATTENTION, "head_dim": 8, "ssm_state_size": 8, "mamba_num_heads": 4,
    "mamba_head_dim": 8, "n_groups": 2, "intermediate_size": 40, "chunk_size": 16,
    "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 20,
    "n_routed_experts": 4,
    # transformers takes the first, and the publisher's code the second
    "time_step_min": 0.001, "time_step_limit": (0.001, float("inf")),
}  # fmt: skip
ZAMBA2 = {
    **SMALL, "num_attention_heads": 4, "mamba_d_state": 8, "n_mamba_heads": 4,
    "intermediate_size": 48, "adapter_rank": 3, "chunk_size": 16,
    "time_step_min": 0.001, "time_step_limit": (0.001, float("inf")),
}  # fmt: skip
LINEAR = {
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_num_value_heads": 4,
    "linear_value_head_dim": 6,
}  # fmt: skip
QWEN = {**SMALL, **ATTENTION, **LINEAR, "head_dim": 16, "intermediate_size": 40}
QWEN_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20,
}  # fmt: skip
LATENT = {
    **SMALL, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 3,
    "intermediate_size": 40, "moe_intermediate_size": 24, "kv_lora_rank": 12,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6, "head_dim": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2, "bos_token_id": 0,
    "eos_token_id": 1, "mlp_layer_types": ["dense", "sparse", "sparse"],
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip
XLSTM = {
    "vocab_size": 50, "hidden_size": 64, "embedding_dim": 64, "num_hidden_layers": 2,
    "num_blocks": 2, "num_heads": 2, "ffn_proj_factor": 1.0,
}  # fmt: skip
NO_LIMITS = {
    family: {"time_step_limit": (0.0, float("inf")), **more}
    for families, more in (
        (("mamba2", "bamba", "granitemoehybrid", "falcon_h1"), {}),
        (("nemotron_h", "zamba2"), {"time_step_min": 1e-30}),
    )
    for family in families
}
"""Settings with which dt has no limits, by family; steps apply none."""

CONFIGURATIONS = {
    "mamba2": {
        "one group": {**MAMBA2, "n_groups": 1},
        "Codestral's groups": {**MAMBA2, "n_groups": 8, "tie_word_embeddings": True},
        "limits of dt, biases": {
            **MAMBA2, "n_groups": 2, "time_step_limit": (0.1, 0.8), "use_bias": True,
            "use_conv_bias": False,
        },
    },
    "falcon_mamba": {
        "plain": {**SMALL, "num_hidden_layers": 2, "state_size": 4},
        "biased, untied": {
            **SMALL, "num_hidden_layers": 1, "state_size": 3, "conv_kernel": 3,
            "use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False,
            "time_step_rank": 5, "mixer_rms_eps": 0.3,
        },
    },
    "jamba": {
        "experts": {
            **SMALL, **ATTENTION, "num_hidden_layers": 4, "intermediate_size": 40,
            "num_experts": 4, "attn_layer_period": 3, "attn_layer_offset": 2,
            "mamba_d_state": 4,
        },
        "no experts, tied": {
            **SMALL, "num_attention_heads": 4, "num_key_value_heads": 4,
            "num_hidden_layers": 2, "intermediate_size": 40, "num_experts": 1,
            "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
            "mamba_d_state": 4, "mamba_proj_bias": True, "mamba_conv_bias": False,
            "tie_word_embeddings": True, "mamba_dt_rank": 3,
        },
    },
    "bamba": {
        "plain": {**BAMBA, "attn_layer_indices": [1]},
        "groups, limits, biases": {
            **BAMBA, "attn_layer_indices": [0], "mamba_n_groups": 2,
            "time_step_limit": (0.2, 1.0), "attention_bias": True, "mlp_bias": True,
            "mamba_proj_bias": True, "mamba_conv_bias": False,
            "tie_word_embeddings": True,
        },
    },
    "granitemoehybrid": {
        "experts, no positions": {
            **BAMBA, "layer_types": ["linear_attention", "full_attention"],
            "shared_intermediate_size": 24, "num_local_experts": 4,
            "embedding_multiplier": 3.0, "logits_scaling": 4.0,
            "residual_multiplier": 0.3, "attention_multiplier": 0.2,
        },
        "dense, positions": {
            **BAMBA, "layer_types": ["full_attention", "linear_attention"],
            "shared_intermediate_size": 24, "num_local_experts": 0,
            "position_embedding_type": "rope", "residual_multiplier": 0.7,
            "tie_word_embeddings": True, "attention_bias": True,
        },
    },
    "falcon_h1": {
        "all multipliers": {
            **BAMBA, "num_hidden_layers": 1, "mamba_d_ssm": 32,
            "ssm_multipliers": [0.5, 0.7, 1.3, 0.9, 1.1], "ssm_in_multiplier": 1.2,
            "mlp_multipliers": [0.8, 1.2], "key_multiplier": 0.6,
            "attention_out_multiplier": 1.1, "attention_in_multiplier": 0.9,
            "ssm_out_multiplier": 0.7, "lm_head_multiplier": 0.3,
            "embedding_multiplier": 2.0,
        },
        "norm before the gate": {
            **BAMBA, "mamba_d_ssm": 64, "mamba_rms_norm": True, "mamba_n_groups": 2,
            "mamba_norm_before_gate": True, "tie_word_embeddings": True,
        },
        "norm behind the gate": {
            **BAMBA, "num_hidden_layers": 1, "mamba_d_ssm": None, "head_dim": 12,
            "mamba_rms_norm": True, "mamba_norm_before_gate": False,
            "projectors_bias": True, "attention_bias": True,
        },
    },
    "nemotron_h": {
        "every mixer": {
            **NEMOTRON, "routed_scaling_factor": 2.5,
            "layers_block_type": [
                "linear_attention", "moe", "full_attention", "mlp",
            ],
        },
        "latent experts": {
            **NEMOTRON, "moe_latent_size": 12, "norm_topk_prob": False,
            "layers_block_type": ["moe", "linear_attention"], "use_bias": True,
            "mlp_bias": True, "use_conv_bias": False, "time_step_min": 0.4,
            "time_step_limit": (0.4, float("inf")),
        },
    },
    "zamba2": {
        "two blocks, adapters, positions": {
            **ZAMBA2, "num_hidden_layers": 4, "mamba_ngroups": 2, "num_mem_blocks": 2,
            "layers_block_type": ["linear_attention", "hybrid", "hybrid", "hybrid"],
            "use_shared_attention_adapter": True, "use_mem_rope": True,
        },
        "one block, biases, untied": {
            **ZAMBA2, "num_hidden_layers": 3, "num_mem_blocks": 1,
            "layers_block_type": ["hybrid", "linear_attention", "hybrid"],
            "add_bias_linear": True, "tie_word_embeddings": False,
            "time_step_min": 0.4, "time_step_limit": (0.4, float("inf")),
        },
    },
    "zamba": {
        "two heads": {
            **SMALL, **ATTENTION, "num_key_value_heads": 4, "num_hidden_layers": 4,
            "mamba_d_state": 4, "intermediate_size": 48,
            "layers_block_type": ["linear_attention", "hybrid", "hybrid", "hybrid"],
        },
        "one head, biases, untied": {
            **SMALL, **ATTENTION, "num_key_value_heads": 4, "num_hidden_layers": 2,
            "mamba_d_state": 4, "intermediate_size": 48, "n_mamba_heads": 1,
            "layers_block_type": ["hybrid", "hybrid"], "mamba_proj_bias": True,
            "mamba_conv_bias": False, "tie_word_embeddings": False,
        },
    },
    "qwen3_next": {
        "experts and an MLP": {
            **QWEN, **QWEN_EXPERTS, "num_hidden_layers": 3, "mlp_only_layers": [1],
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
        "no shares, tied, biases, every fourth layer": {
            **QWEN, **QWEN_EXPERTS, "num_hidden_layers": 4, "norm_topk_prob": False,
            "decoder_sparse_step": 2, "attention_bias": True,
            "tie_word_embeddings": True,
        },
    },
    "qwen3_5": {
        "dense": {
            **QWEN, "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
        },
    },
    "qwen3_5_moe": {
        "experts": {
            **QWEN, **QWEN_EXPERTS, "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
        },
    },
    "lfm2": {
        "windows and attention": {
            **SMALL, **ATTENTION, "num_hidden_layers": 2, "intermediate_size": 40,
            "block_multiple_of": 8, "layer_types": ["conv", "full_attention"],
            "pad_token_id": 0,
        },
        "biases, four taps, untied": {
            **SMALL, **ATTENTION, "num_hidden_layers": 2, "intermediate_size": 40,
            "block_auto_adjust_ff_dim": False, "conv_bias": True, "conv_L_cache": 4,
            "tie_word_embeddings": False, "layer_types": ["full_attention", "conv"],
            "pad_token_id": 0,
        },
    },
    "recurrent_gemma": {
        "windows": {
            **SMALL, "num_attention_heads": 4, "num_key_value_heads": 1,
            "num_hidden_layers": 2, "intermediate_size": 48, "pad_token_id": 0,
            "attention_window_size": 5, "block_types": ["recurrent", "attention"],
        },
        "biases, untied, a low cap": {
            **SMALL, "num_attention_heads": 2, "num_hidden_layers": 2,
            "intermediate_size": 40, "pad_token_id": 0, "attention_bias": True,
            "block_types": ["attention", "recurrent"],
            "tie_word_embeddings": False, "logits_soft_cap": 2.0, "conv1d_width": 3,
            "hidden_activation": "gelu_new",
        },
    },
    "xlstm": {
        "single": {
            **XLSTM, "qk_dim_factor": 1.0,
        },
        "narrow keys, low caps": {
            **XLSTM, "qk_dim_factor": 0.5, "v_dim_factor": 0.75,
            "gate_soft_cap": 4.0, "output_logit_soft_cap": 2.0,
        },
    },
    "rwkv": {
        "tied": {**SMALL, "num_hidden_layers": 2, "tie_word_embeddings": True},
        "halved, more channels": {
            **SMALL, "num_hidden_layers": 3, "intermediate_size": 48,
            "attention_hidden_size": 40, "rescale_every": 2,
        },
    },
    "minimax": {
        "factors": {
            **SMALL, **ATTENTION, "num_hidden_layers": 3, "intermediate_size": 24,
            "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 4,
            "linear_attn_alpha_factor": 1.7, "linear_attn_beta_factor": 0.8,
            "full_attn_alpha_factor": 1.3, "full_attn_beta_factor": 1.1,
            "mlp_alpha_factor": 1.2, "mlp_beta_factor": 0.9,
        },
        "no factors, windows, tied": {
            **SMALL, **ATTENTION, "num_hidden_layers": 2, "intermediate_size": 24,
            "num_local_experts": 3, "num_experts_per_tok": 1, "block_size": 5,
            "layer_types": ["linear_attention", "full_attention"], "head_dim": 12,
            "sliding_window": 5, "tie_word_embeddings": True,
        },
    },
    "lara_mini": {
        "windows": {
            **SMALL, **ATTENTION, **LINEAR, **QWEN_EXPERTS, "head_dim": 16,
            "num_hidden_layers": 3, "sliding_window": 5, "eos_token_id": 1,
            "layer_types": [
                "linear_attention", "sliding_attention", "full_attention",
            ],
        },
    },
    "olmo_hybrid": {
        "positions": {
            **SMALL, **LINEAR, "num_attention_heads": 4, "intermediate_size": 40,
            "num_hidden_layers": 2, "eos_token_id": 1,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "no positions, rates up to 1, grouped heads": {
            **SMALL, **ATTENTION, **LINEAR, "intermediate_size": 40,
            "num_hidden_layers": 2, "eos_token_id": 1,
            "layer_types": ["full_attention", "linear_attention"],
            "linear_allow_neg_eigval": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": None},
        },
    },
    "kimi_linear": {
        "experts": {**LATENT, "linear_head_dim": 8, "linear_num_heads": 4},
        "queries of a latent, groups of experts": {
            **LATENT, "linear_head_dim": 6, "linear_num_heads": 2, "q_lora_rank": 10,
            "n_group": 4, "topk_group": 2, "norm_topk_prob": False,
        },
    },
    "bailing_hybrid": {
        "groups of experts": {**LATENT, "n_group": 4, "topk_group": 2},
    },
    "gpt_neox": {
        "parallel": {
            **SMALL, "intermediate_size": 64, "num_attention_heads": 4,
            "num_hidden_layers": 2,
        },
        "serial, tied, no biases": {
            **SMALL, "intermediate_size": 64, "num_attention_heads": 4,
            "num_hidden_layers": 1, "use_parallel_residual": False,
            "attention_bias": False, "tie_word_embeddings": True,
            "hidden_act": "gelu_new",
        },
    },
    "llama": {
        "grouped heads": {
            **SMALL, **ATTENTION, "intermediate_size": 40, "num_hidden_layers": 2,
        },
        "biases, tied, wide heads": {
            **SMALL, **ATTENTION, "intermediate_size": 40, "num_hidden_layers": 1,
            "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
            "head_dim": 12,
        },
    },
    "olmo": {
        "clipped": {
            **SMALL, **ATTENTION, "intermediate_size": 40, "num_hidden_layers": 2,
            "clip_qkv": 0.6, "eos_token_id": 1,
        },
        "tied": {
            **SMALL, "num_attention_heads": 4, "intermediate_size": 40,
            "num_hidden_layers": 1, "tie_word_embeddings": True, "eos_token_id": 1,
        },
    },
    "olmo2": {
        "grouped heads": {
            **SMALL, **ATTENTION, "intermediate_size": 40, "num_hidden_layers": 2,
            "eos_token_id": 1,
        },
    },
}  # fmt: skip

CASES = [(family, name) for family, named in CONFIGURATIONS.items() for name in named]
