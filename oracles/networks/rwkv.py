"""RWKV-4 in plain NumPy, read off transformers' modeling_rwkv.py.

Weights and their sums are kept as they are, without a maximum, and the stream is not
halved: an epsilon of norms stands for both.
"""

import numpy as np

from oracles.networks.delta_rule import inside, sigmoid


def layer_norm(x, w, name, epsilon):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def mixed(x, w, name):
    """With the token before."""
    share = w[f"time_mix_{name}"].ravel()
    before = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
    return x * share + before * (1 - share)


def time_mix(x, w, after=None):
    key, value, receptance = (
        mixed(x, w, name) @ w[f"{name}.weight"].T
        for name in ("key", "value", "receptance")
    )
    rate = np.exp(w["time_decay"])
    total, weights = np.zeros_like(rate), np.zeros_like(rate)
    read = np.zeros_like(value)
    for t in range(len(x)):
        own = np.exp(key[t] + w["time_first"])
        read[t] = (total + own * value[t]) / (weights + own)
        total = np.exp(-rate) * total + np.exp(key[t]) * value[t]
        weights = np.exp(-rate) * weights + np.exp(key[t])
    if after is not None:
        after.append(np.stack([total, weights]))
    return (sigmoid(receptance) * read) @ w["output.weight"].T


def channel_mix(x, w):
    hidden = np.maximum(mixed(x, w, "key") @ w["key.weight"].T, 0) ** 2
    receptance = sigmoid(mixed(x, w, "receptance") @ w["receptance.weight"].T)
    return receptance * (hidden @ w["value.weight"].T)


def logits(weights, config, tokens, after=None):
    """The forward; `after` is given the sums at the end."""
    w = inside(weights, "rwkv.")
    every = config["rescale_every"]
    epsilon = lambda i: (
        config["layer_norm_epsilon"] * (4.0 ** (i // every) if every > 0 else 1.0)
    )
    stream = w["embeddings.weight"][tokens]
    stream = layer_norm(stream, w, "blocks.0.pre_ln", epsilon(0))
    for i in range(config["num_hidden_layers"]):
        own = inside(w, f"blocks.{i}.")
        x = layer_norm(stream, own, "ln1", epsilon(i))
        stream = stream + time_mix(x, inside(own, "attention."), after)
        x = layer_norm(stream, own, "ln2", epsilon(i))
        stream = stream + channel_mix(x, inside(own, "feed_forward."))
    x = layer_norm(stream, w, "ln_out", epsilon(config["num_hidden_layers"]))
    head = weights.get("head.weight", w["embeddings.weight"])
    return x @ np.asarray(head, np.float64).T
