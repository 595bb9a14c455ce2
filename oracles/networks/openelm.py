"""OpenELM in plain NumPy, read off its published code; attention is mamba_ssm's."""

import numpy as np

from oracles.networks.mamba_ssm import attended, rms, silu


def openelm_logits(weights, config, tokens):
    """OpenELM's forward (arXiv 2404.14619, and Apple's modeling_openelm.py)."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    size = config["head_dim"]
    stream = w["transformer.token_embeddings.weight"][tokens]
    for i in range(config["num_transformer_layers"]):
        prefix = f"transformer.layers.{i}."
        q_size = config["num_query_heads"][i] * size
        kv = config["num_kv_heads"][i] * size
        x = rms(stream, w[f"{prefix}attn_norm.weight"], 1e-6)
        x = x @ w[f"{prefix}attn.qkv_proj.weight"].T
        q, k, v = x[:, :q_size], x[:, q_size : q_size + kv], x[:, q_size + kv :]
        if config["normalize_qk_projections"]:
            q, k = (
                rms(a.reshape(len(a), -1, size), w[name], 1e-6).reshape(a.shape)
                for a, name in (
                    (q, f"{prefix}attn.q_norm.weight"),
                    (k, f"{prefix}attn.k_norm.weight"),
                )
            )
        y = attended(q, k, v, size, size, config["rope_freq_constant"])
        stream = stream + y @ w[f"{prefix}attn.out_proj.weight"].T
        x = rms(stream, w[f"{prefix}ffn_norm.weight"], 1e-6)
        gate, through = np.split(x @ w[f"{prefix}ffn.proj_1.weight"].T, 2, axis=-1)
        stream = stream + (silu(gate) * through) @ w[f"{prefix}ffn.proj_2.weight"].T
    x = rms(stream, w["transformer.norm.weight"], 1e-6)
    return x @ w.get("lm_head.weight", w["transformer.token_embeddings.weight"]).T
