"""LFM2 in plain NumPy, read off transformers' modeling_lfm2.py."""

import numpy as np

from oracles.networks.delta_rule import heads_normed, inside, mlp
from oracles.networks.mamba_ssm import attended, convolved, rms


def short_conv(x, w):
    """A convolution between two gates."""
    mixed = x @ w["in_proj.weight"].T + w.get("in_proj.bias", 0.0)
    before, behind, through = np.split(mixed, 3, axis=-1)
    bias = w.get("conv.bias", np.zeros(x.shape[1]))
    y = behind * convolved(before * through, w["conv.weight"], bias)
    return y @ w["out_proj.weight"].T + w.get("out_proj.bias", 0.0)


def attention(x, w, config):
    """With norms of each head, and positions."""
    size = config["hidden_size"] // config["num_attention_heads"]
    q, k, v = (x @ w[f"{name}_proj.weight"].T for name in "qkv")
    q, k = (
        heads_normed(part, w[f"{name}_layernorm.weight"], size, config["norm_eps"])
        for part, name in ((q, "q"), (k, "k"))
    )
    y = attended(q, k, v, size, size, config["rope_parameters"]["rope_theta"])
    return y @ w["out_proj.weight"].T


def logits(weights, config, tokens, after=None):
    """The forward; there are no states that `after` could be given."""
    del after
    w, epsilon = inside(weights, "model."), config["norm_eps"]
    stream = w["embed_tokens.weight"][tokens]
    for i, kind in enumerate(config["layer_types"]):
        own = inside(w, f"layers.{i}.")
        x = rms(stream, own["operator_norm.weight"], epsilon)
        if kind == "conv":
            stream = stream + short_conv(x, inside(own, "conv."))
        else:
            stream = stream + attention(x, inside(own, "self_attn."), config)
        x = rms(stream, own["ffn_norm.weight"], epsilon)
        stream = stream + mlp(x, inside(own, "feed_forward."), ("w1", "w3", "w2"))
    x = rms(stream, w["embedding_norm.weight"], epsilon)
    head = weights.get("lm_head.weight", w["embed_tokens.weight"])
    return x @ np.asarray(head, np.float64).T
