"""Qwen3-Next and Qwen3.5 in plain NumPy, read off transformers' modeling files.

Nothing here is shared with the library: tensors by their stored names, loops over
tokens and heads. fp64 throughout, which transformers' own delta rule is not.
"""

import numpy as np

from oracles.networks.delta_rule import (
    convolved,
    delta_rule,
    experts,
    heads_normed,
    inside,
    mlp,
    sigmoid,
)
from oracles.networks.mamba_ssm import attended, rms, silu


def mixed(x, w, config):
    """q, k, v before the convolution, z, a and b of either layout, (seq, channels)."""
    groups, size = config["linear_num_key_heads"], config["linear_key_head_dim"]
    each = config["linear_num_value_heads"] // groups
    inner = each * config["linear_value_head_dim"]
    if "in_proj_qkv.weight" in w:
        names = ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b")
        return [x @ w[f"{name}.weight"].T for name in names]
    qkvz = (x @ w["in_proj_qkvz.weight"].T).reshape(len(x), groups, -1)
    q, k, v, z = np.split(qkvz, np.cumsum([size, size, inner]), axis=-1)
    b, a = np.split(
        (x @ w["in_proj_ba.weight"].T).reshape(len(x), groups, -1), 2, axis=-1
    )
    q, k, v, z, a, b = (part.reshape(len(x), -1) for part in (q, k, v, z, a, b))
    return np.concatenate([q, k, v], axis=-1), z, a, b


def gated_delta(x, w, config, after=None):
    """The mixer behind the norm; `after` is given its states."""
    heads, size = config["linear_num_key_heads"], config["linear_key_head_dim"]
    value_heads = config["linear_num_value_heads"]
    qkv, z, a, b = mixed(x, w, config)
    qkv = convolved(qkv, w["conv1d.weight"])
    q, k, v = np.split(qkv, [heads * size, 2 * heads * size], axis=-1)
    q, k = (
        np.repeat(part.reshape(len(x), heads, size), value_heads // heads, axis=1)
        for part in (q, k)
    )
    gate = -np.exp(w["A_log"]) * np.log1p(np.exp(a + w["dt_bias"]))
    y = delta_rule(
        q, k, v.reshape(len(x), value_heads, -1), gate[..., None], sigmoid(b), after
    )
    y = rms(y, w["norm.weight"], config["rms_norm_eps"])
    return (y.reshape(len(x), -1) * silu(z)) @ w["out_proj.weight"].T


def gated_attention(x, w, config):
    """The attention behind the norm: a gate of every channel that heads read."""
    size, epsilon = config["head_dim"], config["rms_norm_eps"]
    rope = config["rope_parameters"]
    bias = lambda name: w.get(f"{name}_proj.bias", 0.0)
    both = x @ w["q_proj.weight"].T + bias("q")
    q, gate = np.split(both.reshape(len(x), -1, 2 * size), 2, axis=-1)
    q, gate = (part.reshape(len(x), -1) for part in (q, gate))
    k, v = (x @ w[f"{name}_proj.weight"].T + bias(name) for name in "kv")
    q = heads_normed(q, 1 + w["q_norm.weight"], size, epsilon)
    k = heads_normed(k, 1 + w["k_norm.weight"], size, epsilon)
    turned = int(size * rope.get("partial_rotary_factor", 0.25))
    y = attended(q, k, v, size, turned, rope["rope_theta"])
    return (y * sigmoid(gate)) @ w["o_proj.weight"].T + bias("o")


def moe(x, w, config):
    """Experts and the one that all tokens go through, weighed by the token."""

    def weigh(row):
        scores = np.exp(w["gate.weight"] @ row)
        scores /= scores.sum()
        best = np.argsort(-scores)[: config["num_experts_per_tok"]]
        total = scores[best].sum() if config.get("norm_topk_prob", True) else 1.0
        return {place: scores[place] / total for place in best}

    shared = mlp(x, inside(w, "shared_expert."))
    share = sigmoid(x @ w["shared_expert_gate.weight"].T)
    return experts(x, w, weigh) + share * shared


def logits(weights, config, tokens, after=None):
    """The forward of the text part; `after` is given the states of each mixer."""
    config = config.get("text_config", config)
    pictures = any("language_model" in name for name in weights)
    root = "model.language_model." if pictures else "model."
    w, epsilon = inside(weights, root), config["rms_norm_eps"]
    stream = w["embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        own = inside(w, f"layers.{i}.")
        x = rms(stream, 1 + own["input_layernorm.weight"], epsilon)
        if "self_attn.q_proj.weight" in own:
            stream = stream + gated_attention(x, inside(own, "self_attn."), config)
        else:
            stream = stream + gated_delta(x, inside(own, "linear_attn."), config, after)
        x = rms(stream, 1 + own["post_attention_layernorm.weight"], epsilon)
        behind = inside(own, "mlp.")
        sparse = "gate.weight" in behind
        stream = stream + (moe(x, behind, config) if sparse else mlp(x, behind))
    x = rms(stream, 1 + w["norm.weight"], epsilon)
    head = weights.get("lm_head.weight", w["embed_tokens.weight"])
    return x @ np.asarray(head, np.float64).T
