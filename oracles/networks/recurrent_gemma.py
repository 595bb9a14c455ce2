"""RecurrentGemma in plain NumPy, read off transformers' modeling_recurrent_gemma.py."""

import math

import numpy as np

from oracles.networks.delta_rule import inside, sigmoid
from oracles.networks.mamba_ssm import attended, convolved, rms


def gelu(x):
    """By tanh, which is what every name of the two that are covered computes."""
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def linear(x, w, name):
    """A product with a matrix, and its bias where there is one."""
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def gates(u, w):
    """The gate of what is written, and the log decay, (seq, width) each."""
    heads = w["input_gate_weight"].shape[0]
    parts = u.reshape(len(u), heads, -1)

    def gate(name):
        found = np.einsum("thi,hio->tho", parts, w[f"{name}_gate_weight"])
        return sigmoid((found + w[f"{name}_gate_bias"]).reshape(len(u), -1))

    return gate("input"), -8 * gate("recurrent") * np.logaddexp(0, w["recurrent_param"])


def recurrent(x, w, after=None, logs=None):
    """The block behind the norm; `after` is given its states, `logs` its log decays."""
    u = convolved(linear(x, w, "linear_x"), w["conv_1d.weight"], w["conv_1d.bias"])
    written, log_decay = gates(u, inside(w, "rg_lru."))
    state, y = np.zeros(u.shape[1]), np.zeros_like(u)
    for t, log in enumerate(log_decay):
        scale = np.sqrt(-np.expm1(2 * log)) if t else 1.0
        state = np.exp(log) * state + scale * written[t] * u[t]
        y[t] = state
    if after is not None:
        after.append(state)
    if logs is not None:
        logs.append(log_decay)
    return linear(y * gelu(linear(x, w, "linear_y")), w, "linear_out")


def attention(x, w, config):
    """In a window, positions over the first half of each head."""
    size = config["hidden_size"] // config["num_attention_heads"]
    q, k, v = (linear(x, w, f"{name}_proj") for name in "qkv")
    rope = config["rope_parameters"]
    turned = int(size * rope["partial_rotary_factor"])
    y = attended(
        q, k, v, size, turned, rope["rope_theta"], config["attention_window_size"]
    )
    return linear(y, w, "o_proj")


def logits(weights, config, tokens, after=None, logs=None):
    """The forward; `after` is given the states of each mixer."""
    w, epsilon = inside(weights, "model."), config["rms_norm_eps"]
    width = config["hidden_size"]
    # the eight leading bits of its root
    scale = 2.0 ** (math.frexp(width**0.5)[1] - 8)
    scale *= round(width**0.5 / scale)
    stream = scale * w["embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        own = inside(w, f"layers.{i}.")
        x = rms(stream, 1 + own["temporal_pre_norm.weight"], epsilon)
        behind = inside(own, "temporal_block.")
        if "linear_x.weight" in behind:
            stream = stream + recurrent(x, behind, after, logs)
        else:
            stream = stream + attention(x, behind, config)
        x = rms(stream, 1 + own["channel_pre_norm.weight"], epsilon)
        behind = inside(own, "mlp_block.")
        hidden = gelu(linear(x, behind, "gate_proj")) * linear(x, behind, "up_proj")
        stream = stream + linear(hidden, behind, "down_proj")
    x = rms(stream, 1 + w["final_norm.weight"], epsilon)
    head = weights.get("lm_head.weight", w["embed_tokens.weight"])
    cap = config["logits_soft_cap"]
    return cap * np.tanh(x @ np.asarray(head, np.float64).T / cap)
