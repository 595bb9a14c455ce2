"""Ling 3 in plain NumPy, read off transformers' modeling_bailing_hybrid.py."""

import numpy as np

from oracles.networks import kimi_linear
from oracles.networks.delta_rule import convolved, delta_rule, inside, mlp, sigmoid
from oracles.networks.mamba_ssm import rms


def kimi_delta(x, w, config, after=None):
    """The mixer: gates straight from the input, and no further down than a bound."""
    heads = config["num_attention_heads"]
    q, k, v = (
        convolved(x @ w[f"{name}_proj.weight"].T, w[f"{name}_conv1d.weight"]).reshape(
            len(x), heads, -1
        )
        for name in "qkv"
    )
    f = (x @ w["f_proj.weight"].T + w["dt_bias"]).reshape(k.shape)
    speed = np.exp(w["A_log"])[:, None]
    if config["kda_safe_gate"]:
        gate = config["kda_lower_bound"] * sigmoid(speed * f)
    else:
        gate = -speed * np.log1p(np.exp(f))
    y = delta_rule(q, k, v, gate, sigmoid(x @ w["b_proj.weight"].T), after)
    y = rms(y, w["o_norm.weight"], config["rms_norm_eps"]).reshape(len(x), -1)
    return (y * sigmoid(x @ w["g_proj.weight"].T)) @ w["dense.weight"].T


def in_pairs(x, base):
    """Positions turn neighbouring channels: (seq, channels)."""
    out = x.copy()
    for t in range(len(x)):
        for i in range(x.shape[1] // 2):
            angle = t * base ** (-2 * i / x.shape[1])
            a, b = x[t, 2 * i], x[t, 2 * i + 1]
            out[t, 2 * i] = a * np.cos(angle) - b * np.sin(angle)
            out[t, 2 * i + 1] = b * np.cos(angle) + a * np.sin(angle)
    return out


def latent_attention(x, w, config):
    """As Kimi Linear's, but what heads share turns, and each head has a gate."""
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    rank, theta = config["kv_lora_rank"], config["rope_parameters"]["rope_theta"]
    if "q_proj.weight" in w:
        q = x @ w["q_proj.weight"].T
    else:
        low = rms(x @ w["q_a_proj.weight"].T, w["q_a_layernorm.weight"], 1e-6)
        q = low @ w["q_b_proj.weight"].T
    low = x @ w["kv_a_proj_with_mqa.weight"].T
    shared = in_pairs(low[:, rank:], theta)
    both = rms(low[:, :rank], w["kv_a_layernorm.weight"], 1e-6)
    both = (both @ w["kv_b_proj.weight"].T).reshape(len(x), heads, -1)
    gates = sigmoid(x @ w["g_proj.weight"].T)
    out = []
    for h, query in enumerate(np.split(q, heads, axis=-1)):
        k, v = np.split(both[:, h], [nope], axis=-1)
        k = np.concatenate([k, shared], axis=-1)
        query = np.concatenate(
            [query[:, :nope], in_pairs(query[:, nope:], theta)], axis=-1
        )
        for t in range(len(x)):
            scores = k[: t + 1] @ query[t] / np.sqrt(k.shape[-1])
            weight = np.exp(scores - scores.max())
            out.append(gates[t, h] * (weight / weight.sum() @ v[: t + 1]))
    y = np.stack(out).reshape(heads, len(x), -1).swapaxes(0, 1)
    return y.reshape(len(x), -1) @ w["dense.weight"].T


def logits(weights, config, tokens, after=None):
    """The forward."""
    w, epsilon = inside(weights, "model."), config["rms_norm_eps"]
    stream = w["word_embeddings.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        own = inside(w, f"layers.{i}.")
        x = rms(stream, own["input_layernorm.weight"], epsilon)
        mixer = inside(own, "attention.")
        if "kv_b_proj.weight" in mixer:
            stream = stream + latent_attention(x, mixer, config)
        else:
            stream = stream + kimi_delta(x, mixer, config, after)
        x = rms(stream, own["post_attention_layernorm.weight"], epsilon)
        behind = inside(own, "mlp.")
        if "gate.weight" in behind:
            bias = {"gate.e_score_correction_bias": behind["gate.expert_bias"]}
            names = ("gate_proj", "up_proj", "down_proj")
            y = kimi_linear.moe(x, behind | bias, config, names)
        else:
            y = mlp(x, behind)
        stream = stream + y
    x = rms(stream, w["norm.weight"], epsilon)
    return x @ np.asarray(weights["lm_head.weight"], np.float64).T
