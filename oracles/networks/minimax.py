"""MiniMax in plain NumPy, read off transformers' modeling_minimax.py.

A text goes through in blocks, with the decays that are stored: what comes of the tokens
of a block is a sum over pairs.
"""

import numpy as np

from oracles.networks.delta_rule import experts, inside, sigmoid
from oracles.networks.mamba_ssm import attended, rms, silu


def buffers(weights):
    """The tensors of decays in fp64, as the stored slopes make them."""
    found = {}
    for name, array in weights.items():
        if name.endswith("slope_rate"):
            root = name.removesuffix("slope_rate")
            slope = array.astype(float)
            block = weights[f"{root}query_decay"].shape[1]
            since = np.arange(1, block + 1)[:, None]
            apart = since - since.T
            between = np.where(apart < 0, 0.0, np.exp(-slope * np.maximum(apart, 0)))
            found[f"{root}query_decay"] = np.exp(-slope * since)
            found[f"{root}key_decay"] = np.exp(-slope * (block - since))
            found[f"{root}diagonal_decay"] = between[None]
    return found


def head_size(config):
    return config.get("head_dim") or (
        config["hidden_size"] // config["num_attention_heads"]
    )


def lightning(x, w, config, after=None, decays=None):
    """Linear attention behind the norm; `after` is given its states."""
    heads, size = config["num_attention_heads"], head_size(config)
    block = config["block_size"]
    qkv = silu(x @ w["qkv_proj.weight"].T).reshape(len(x), heads, 3 * size)
    out = np.zeros((len(x), heads * size))
    for h in range(heads):
        q, k, v = np.split(qkv[:, h], 3, axis=-1)
        state, slope = np.zeros((size, size)), w["slope_rate"][h, 0, 0]
        for first in range(0, len(x), block):
            own = slice(first, min(first + block, len(x)))
            count = own.stop - own.start
            pairs = q[own] @ k[own].T * w["diagonal_decay"][0, h, :count, :count]
            read = (q[own] * w["query_decay"][h, :count]) @ state
            out[own, h * size : (h + 1) * size] = pairs @ v[own] + read
            kept = k[own] * w["key_decay"][h, -count:]
            state = state * np.exp(-slope * count) + kept.T @ v[own]
        if after is not None:
            after.append(state)
        if decays is not None:
            decays.append(-slope)
    y = rms(out, w["norm.weight"], 1e-6)
    return (y * sigmoid(x @ w["output_gate.weight"].T)) @ w["out_proj.weight"].T


def attention(x, w, config):
    q, k, v = (x @ w[f"{name}_proj.weight"].T for name in "qkv")
    size, base = head_size(config), config["rope_parameters"]["rope_theta"]
    y = attended(q, k, v, size, size, base, config["sliding_window"])
    return y @ w["o_proj.weight"].T


def moe(x, w, config):
    """Experts by softmax, whose weights are shares of those that were chosen."""

    def weigh(row):
        scores = w["gate.weight"] @ row
        best = np.argsort(-scores)[: config["num_experts_per_tok"]]
        share = np.exp(scores[best] - scores[best].max())
        return dict(zip(best, share / share.sum(), strict=True))

    names = ("w1", "w3", "w2")
    return experts(x, w, weigh, names)


def logits(weights, config, tokens, after=None, decays=None):
    """The forward; `after` is given the states of each head, `decays` log decays."""
    w, epsilon = inside(weights, "model."), config["rms_norm_eps"]
    stream = w["embed_tokens.weight"][tokens]
    for i, kind in enumerate(config["layer_types"]):
        own = inside(w, f"layers.{i}.")
        x = rms(stream, own["input_layernorm.weight"], epsilon)
        behind, of = inside(own, "self_attn."), "full_attn"
        if kind == "linear_attention":
            y, of = lightning(x, behind, config, after, decays), "linear_attn"
        else:
            y = attention(x, behind, config)
        stream = config[f"{of}_alpha_factor"] * x + config[f"{of}_beta_factor"] * y
        x = rms(stream, own["post_attention_layernorm.weight"], epsilon)
        y = moe(x, inside(own, "block_sparse_moe."), config)
        stream = config["mlp_alpha_factor"] * x + config["mlp_beta_factor"] * y
    x = rms(stream, w["norm.weight"], epsilon)
    head = weights.get("lm_head.weight", w["embed_tokens.weight"])
    return x @ np.asarray(head, np.float64).T
