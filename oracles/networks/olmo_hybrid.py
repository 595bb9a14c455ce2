"""OLMo hybrid in plain NumPy, read off transformers' modeling_olmo_hybrid.py."""

import numpy as np

from oracles.networks.delta_rule import convolved, delta_rule, inside, mlp, sigmoid
from oracles.networks.mamba_ssm import attended, rms, silu


def gated_delta(x, w, config, after=None):
    """The mixer behind the norm; its three convolutions joined, whatever their cuts."""
    heads, size = config["linear_num_key_heads"], config["linear_key_head_dim"]
    value_heads = config["linear_num_value_heads"]
    qkv = np.concatenate([x @ w[f"{name}_proj.weight"].T for name in "qkv"], axis=-1)
    taps = np.concatenate([w[f"{name}_conv1d.weight"] for name in "qkv"])
    qkv = convolved(qkv, taps)
    q, k, v = np.split(qkv, [heads * size, 2 * heads * size], axis=-1)
    q, k = (
        np.repeat(part.reshape(len(x), heads, size), value_heads // heads, axis=1)
        for part in (q, k)
    )
    rate = sigmoid(x @ w["b_proj.weight"].T)
    rate = rate * (2.0 if config["linear_allow_neg_eigval"] else 1.0)
    gate = np.log1p(np.exp(x @ w["a_proj.weight"].T + w["dt_bias"]))
    gate = -np.exp(w["A_log"]) * gate
    v = v.reshape(len(x), value_heads, -1)
    y = rms(delta_rule(q, k, v, gate[..., None], rate, after), w["o_norm.weight"], 1e-5)
    y = y.reshape(len(x), -1) * silu(x @ w["g_proj.weight"].T)
    return y @ w["o_proj.weight"].T


def attention(x, w, config):
    """Norms over all heads of queries and keys together, and positions or none."""
    size = config["hidden_size"] // config["num_attention_heads"]
    q, k, v = (x @ w[f"{name}_proj.weight"].T for name in "qkv")
    q, k = (
        rms(part, w[f"{name}_norm.weight"], config["rms_norm_eps"])
        for part, name in ((q, "q"), (k, "k"))
    )
    theta = (config["rope_parameters"] or {"rope_theta": 1e4})["rope_theta"]
    turned = 0 if theta is None else size
    return attended(q, k, v, size, turned, theta or 1.0) @ w["o_proj.weight"].T


def logits(weights, config, tokens, after=None):
    """The forward; norms stand in front of mixers, and behind attention."""
    w, epsilon = inside(weights, "model."), config["rms_norm_eps"]
    stream = w["embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        own = inside(w, f"layers.{i}.")
        norm = lambda x, name, own=own: rms(x, own[f"{name}.weight"], epsilon)
        if "self_attn.q_proj.weight" in own:
            y = attention(stream, inside(own, "self_attn."), config)
            stream = stream + norm(y, "feedforward_layer_norm")
            y = mlp(stream, inside(own, "mlp."))
            stream = stream + norm(y, "post_feedforward_layernorm")
            continue
        x = norm(stream, "attention_layer_norm")
        stream = stream + gated_delta(x, inside(own, "linear_attn."), config, after)
        x = norm(stream, "feedforward_layer_norm")
        stream = stream + mlp(x, inside(own, "mlp."))
    x = rms(stream, w["norm.weight"], epsilon)
    return x @ np.asarray(weights["lm_head.weight"], np.float64).T
