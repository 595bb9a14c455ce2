"""Lara Mini in plain NumPy, read off transformers' modeling_lara_mini.py."""

import numpy as np

from oracles.networks import qwen3_next
from oracles.networks.delta_rule import heads_normed, inside, sigmoid
from oracles.networks.mamba_ssm import rms, rotated


def gated_delta(x, w, config, after=None):
    """Qwen3.5's mixer, whose projections lie in one tensor."""
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    heads = config["linear_num_value_heads"]
    inner = heads * config["linear_value_head_dim"]
    ends = np.cumsum([2 * keys + inner, inner, heads])
    qkv, z, b, a = np.split(w["in_proj.weight"], ends)
    w = w | {
        "in_proj_qkv.weight": qkv,
        "in_proj_z.weight": z,
        "in_proj_b.weight": b,
        "in_proj_a.weight": a,
        "norm.weight": w["out_norm.weight"],
    }
    return qwen3_next.gated_delta(x, w, config, after)


def attention(x, w, config, window):
    """Over all tokens without positions, or over the last few with them."""
    size, epsilon = config["head_dim"], config["rms_norm_eps"]
    theta = config["rope_parameters"]["rope_theta"]
    q, k, v = (x @ w[f"{name}_proj.weight"].T for name in "qkv")
    q = heads_normed(q, w["q_norm.weight"], size, epsilon)
    k = heads_normed(k, w["k_norm.weight"], size, epsilon)
    q, k, v = (part.reshape(len(x), -1, size) for part in (q, k, v))
    out = np.zeros_like(q)
    for h in range(q.shape[1]):
        group = h // (q.shape[1] // k.shape[1])
        query, key = q[:, h], k[:, group]
        if window is not None:
            query, key = rotated(query, size, theta), rotated(key, size, theta)
        for t in range(len(x)):
            seen = slice(0 if window is None else max(0, t + 1 - window), t + 1)
            scores = key[seen] @ query[t] / np.sqrt(size)
            weight = np.exp(scores - scores.max())
            out[t, h] = (weight / weight.sum()) @ v[seen, group]
    return out.reshape(len(x), -1) @ w["o_proj.weight"].T


def moe(x, w, config):
    """Qwen3-Next's experts; the one that all tokens go through has the share 1."""
    whole = {"shared_expert_gate.weight": np.zeros((1, x.shape[1]))}
    half = {
        name: value / (sigmoid(0.0) if name == "shared_expert.down_proj.weight" else 1)
        for name, value in w.items()
    }
    return qwen3_next.moe(x, half | whole, config)


def logits(weights, config, tokens, after=None):
    """The forward."""
    w, epsilon = inside(weights, "model."), config["rms_norm_eps"]
    stream = w["embed_tokens.weight"][tokens]
    for i, kind in enumerate(config["layer_types"]):
        own = inside(w, f"layers.{i}.")
        x = rms(stream, own["input_layernorm.weight"], epsilon)
        if kind == "linear_attention":
            y = gated_delta(x, inside(own, "linear_attn."), config, after)
        else:
            window = config["sliding_window"] if kind == "sliding_attention" else None
            y = attention(x, inside(own, "self_attn."), config, window)
        stream = stream + y
        x = rms(stream, own["post_attention_layernorm.weight"], epsilon)
        stream = stream + moe(x, inside(own, "mlp."), config)
    x = rms(stream, w["norm.weight"], epsilon)
    head = weights.get("lm_head.weight", w["embed_tokens.weight"])
    return x @ np.asarray(head, np.float64).T
