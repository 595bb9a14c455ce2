"""Kimi Linear in plain NumPy, read off transformers' modeling_kimi_linear.py."""

import numpy as np

from oracles.networks.delta_rule import (
    convolved,
    delta_rule,
    experts,
    inside,
    mlp,
    sigmoid,
)
from oracles.networks.mamba_ssm import rms


EXPERT = ("w1", "w3", "w2")


def by_channel(x, w, heads, gate, epsilon, after=None):
    """What a delta rule reads with a decay of every channel of the keys, normed."""
    q, k, v = (
        convolved(x @ w[f"{name}_proj.weight"].T, w[f"{name}_conv1d.weight"]).reshape(
            len(x), heads, -1
        )
        for name in "qkv"
    )
    y = delta_rule(q, k, v, gate, sigmoid(x @ w["b_proj.weight"].T), after)
    return rms(y, w["o_norm.weight"], epsilon).reshape(len(x), -1)


def kimi_delta(x, w, config, after=None):
    """The mixer behind the norm."""
    heads = config["linear_num_heads"]
    f = x @ w["f_a_proj.weight"].T @ w["f_b_proj.weight"].T + w["dt_bias"]
    gate = np.log1p(np.exp(f)).reshape(len(x), heads, -1)
    gate = -np.exp(w["A_log"].reshape(heads, 1)) * gate
    y = by_channel(x, w, heads, gate, config["rms_norm_eps"], after)
    y = y * sigmoid(x @ w["g_a_proj.weight"].T @ w["g_b_proj.weight"].T)
    return y @ w["o_proj.weight"].T


def of_latent(x, w, config, turned=lambda channels: channels):
    """What heads read: (seq, heads, value_dim). Keys and values are of a latent, and
    heads share a part of the key, which may turn."""
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    rank = config["kv_lora_rank"]
    if "q_proj.weight" in w:
        q = x @ w["q_proj.weight"].T
    else:
        low = rms(x @ w["q_a_proj.weight"].T, w["q_a_layernorm.weight"], 1e-6)
        q = low @ w["q_b_proj.weight"].T
    low = x @ w["kv_a_proj_with_mqa.weight"].T
    shared = turned(low[:, rank:])
    both = rms(low[:, :rank], w["kv_a_layernorm.weight"], 1e-6)
    both = (both @ w["kv_b_proj.weight"].T).reshape(len(x), heads, -1)
    out = []
    for h, query in enumerate(np.split(q, heads, axis=-1)):
        k, v = np.split(both[:, h], [nope], axis=-1)
        k = np.concatenate([k, shared], axis=-1)
        apart = [query[:, :nope], turned(query[:, nope:])]
        query = np.concatenate(apart, axis=-1)
        rows = []
        for t in range(len(x)):
            scores = k[: t + 1] @ query[t] / np.sqrt(k.shape[-1])
            weight = np.exp(scores - scores.max())
            rows.append(weight / weight.sum() @ v[: t + 1])
        out.append(np.stack(rows))
    return np.stack(out, axis=1)


def latent_attention(x, w, config):
    """Without an order."""
    return of_latent(x, w, config).reshape(len(x), -1) @ w["o_proj.weight"].T


def moe(x, w, config, names=EXPERT):
    """Experts by sigmoids; a bias, and groups of experts, decide who is chosen."""
    groups = config.get("num_expert_group", 1)

    def weigh(row):
        scores = sigmoid(w["gate.weight"] @ row)
        ranked = scores + w["gate.e_score_correction_bias"]
        parted = ranked.reshape(groups, -1)
        best = np.sort(parted, axis=-1)[:, -2:].sum(axis=-1)
        for group in np.argsort(-best)[config["topk_group"] :]:
            parted[group] = -np.inf
        chosen = np.argsort(-ranked)[: config["num_experts_per_token"]]
        total = scores[chosen].sum() if config["moe_renormalize"] else 1.0
        factor = config["routed_scaling_factor"]
        return {place: scores[place] / total * factor for place in chosen}

    return experts(x, w, weigh, names) + mlp(x, inside(w, "shared_experts."))


def logits(weights, config, tokens, after=None):
    """The forward."""
    w, epsilon = inside(weights, "model."), config["rms_norm_eps"]
    stream = w["embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        own = inside(w, f"layers.{i}.")
        x = rms(stream, own["input_layernorm.weight"], epsilon)
        mixer = inside(own, "self_attn.")
        if "kv_b_proj.weight" in mixer:
            stream = stream + latent_attention(x, mixer, config)
        else:
            stream = stream + kimi_delta(x, mixer, config, after)
        x = rms(stream, own["post_attention_layernorm.weight"], epsilon)
        behind = inside(own, "block_sparse_moe.") or inside(own, "mlp.")
        sparse = "gate.weight" in behind
        stream = stream + (moe(x, behind, config) if sparse else mlp(x, behind))
    x = rms(stream, w["norm.weight"], epsilon)
    return x @ np.asarray(weights["lm_head.weight"], np.float64).T
