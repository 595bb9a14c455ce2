"""Ling 3 in plain NumPy, read off transformers' modeling_bailing_hybrid.py."""

import functools

import numpy as np

from oracles.networks import kimi_linear
from oracles.networks.delta_rule import inside, mlp, sigmoid
from oracles.networks.mamba_ssm import rms


def kimi_delta(x, w, config, after=None):
    """The mixer: gates straight from the input, and no further down than a bound."""
    heads = config["num_attention_heads"]
    f = (x @ w["f_proj.weight"].T + w["dt_bias"]).reshape(len(x), heads, -1)
    speed = np.exp(w["A_log"])[:, None]
    if config["kda_safe_gate"]:
        gate = config["kda_lower_bound"] * sigmoid(speed * f)
    else:
        gate = -speed * np.log1p(np.exp(f))
    y = kimi_linear.by_channel(x, w, heads, gate, config["rms_norm_eps"], after)
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
    base = config["rope_parameters"]["rope_theta"]
    turned = functools.partial(in_pairs, base=base)
    y = kimi_linear.of_latent(x, w, config, turned)
    y = sigmoid(x @ w["g_proj.weight"].T)[..., None] * y
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
