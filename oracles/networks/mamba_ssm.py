"""mamba_ssm's hybrids and OpenELM in plain NumPy, read off their published code.

Nothing here is shared with the library: tensors by their stored names, a loop over
tokens for the recurrence, loops over heads for attention. fp64 throughout.
"""

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def rms(x, weight, epsilon):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def layer_norm(x, weight, bias, epsilon):
    apart = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(apart * apart, axis=-1, keepdims=True)
    return apart / np.sqrt(variance + epsilon) * weight + bias


def convolved(x, weight, bias):
    """Causal and depthwise: (seq, channels) with (channels, 1, taps)."""
    taps = weight.shape[-1]
    out = np.tile(bias, (len(x), 1)).astype(float)
    for t in range(len(x)):
        for k in range(taps):
            if t - (taps - 1 - k) >= 0:
                out[t] += weight[:, 0, k] * x[t - (taps - 1 - k)]
    return out


def rotated(x, size, base):
    """Positions turn the first `size` channels of (seq, channels), halves together."""
    half = size // 2
    out = x.copy()
    for t in range(len(x)):
        for i in range(half):
            angle = t * base ** (-i / half)
            a, b = x[t, i], x[t, i + half]
            out[t, i] = a * np.cos(angle) - b * np.sin(angle)
            out[t, i + half] = b * np.cos(angle) + a * np.sin(angle)
    return out


def attended(q, k, v, head_dim, rotary, base, window=None):
    """Causal attention: (seq, heads head_dim) each, fewer heads in k and v.

    `window`: tokens that each reads, itself among them; None: all.
    """
    heads, kv_heads = q.shape[1] // head_dim, k.shape[1] // head_dim
    out = np.zeros_like(q)
    for h in range(heads):
        own = slice(h * head_dim, (h + 1) * head_dim)
        group = h // (heads // kv_heads)
        shared = slice(group * head_dim, (group + 1) * head_dim)
        query, key = q[:, own], k[:, shared]
        if rotary:
            query, key = rotated(query, rotary, base), rotated(key, rotary, base)
        for t in range(len(q)):
            seen = slice(0 if window is None else max(0, t + 1 - window), t + 1)
            scores = key[seen] @ query[t] / np.sqrt(head_dim)
            weight = np.exp(scores - scores.max())
            out[t, own] = (weight / weight.sum()) @ v[seen, shared]
    return out


def mamba2(x, w, ssm):
    """mamba_ssm's Mamba2 (modules/mamba2.py), token by token."""
    inner, wide = w["out_proj.weight"].shape[1], ssm["ngroups"] * ssm["d_state"]
    heads = w["A_log"].size
    size = inner // heads
    projected = x @ w["in_proj.weight"].T + w.get("in_proj.bias", 0.0)
    z, mixed = projected[:, :inner], projected[:, inner : 2 * inner + 2 * wide]
    dt = np.log1p(np.exp(projected[:, -heads:] + w["dt_bias"]))
    dt = np.clip(dt, *ssm.get("dt_limit", (0.0, np.inf)))
    mixed = silu(
        convolved(mixed, w["conv1d.weight"], w.get("conv1d.bias", np.zeros(1)))
    )
    u, B, C = mixed[:, :inner], mixed[:, inner : inner + wide], mixed[:, inner + wide :]
    D = np.broadcast_to(w["D"].reshape(heads, -1), (heads, size))
    state = np.zeros((heads, size, ssm["d_state"]))
    y = np.zeros((len(x), inner))
    for t in range(len(x)):
        for h in range(heads):
            group = h // (heads // ssm["ngroups"])
            of_group = slice(group * ssm["d_state"], (group + 1) * ssm["d_state"])
            own = slice(h * size, (h + 1) * size)
            decay = np.exp(-np.exp(w["A_log"][h]) * dt[t, h])
            state[h] = decay * state[h] + dt[t, h] * np.outer(u[t, own], B[t, of_group])
            y[t, own] = state[h] @ C[t, of_group] + D[h] * u[t, own]
    if ssm.get("rmsnorm", True):
        before = ssm.get("norm_before_gate", False)
        gated = y if before else y * silu(z)
        parts = gated.reshape(len(x), ssm["ngroups"], -1)
        weight = w["norm.weight"].reshape(ssm["ngroups"], -1)
        y = rms(parts, weight, 1e-5).reshape(y.shape)
        y = y * silu(z) if before else y
    else:
        y = y * silu(z)
    return y @ w["out_proj.weight"].T + w.get("out_proj.bias", 0.0)


def mamba1(x, w, ssm):
    """mamba_ssm's Mamba (modules/mamba_simple.py), token by token."""
    inner, d_state = w["A_log"].shape
    rank = w["dt_proj.weight"].shape[1]
    projected = x @ w["in_proj.weight"].T
    u = silu(convolved(projected[:, :inner], w["conv1d.weight"], w["conv1d.bias"]))
    low = u @ w["x_proj.weight"].T
    dt = np.log1p(np.exp(low[:, :rank] @ w["dt_proj.weight"].T + w["dt_proj.bias"]))
    B, C = low[:, rank : rank + d_state], low[:, rank + d_state :]
    state, y = np.zeros((inner, d_state)), np.zeros((len(x), inner))
    for t in range(len(x)):
        decay = np.exp(-np.exp(w["A_log"]) * dt[t][:, None])
        state = decay * state + (dt[t] * u[t])[:, None] * B[t]
        y[t] = state @ C[t] + w["D"] * u[t]
    return (y * silu(projected[:, inner:])) @ w["out_proj.weight"].T


def mha(x, w, attn):
    """mamba_ssm's MHA (modules/mha.py)."""
    q = attn["num_heads"] * attn["head_dim"]
    kv = attn.get("num_heads_kv", attn["num_heads"]) * attn["head_dim"]
    mixed = x @ w["in_proj.weight"].T + w.get("in_proj.bias", 0.0)
    if attn.get("d_conv"):
        mixed = convolved(mixed, w["conv1d.weight"], w["conv1d.bias"])
    parts = mixed[:, :q], mixed[:, q : q + kv], mixed[:, q + kv :]
    rotary, base = attn.get("rotary_emb_dim", 0), attn.get("rotary_emb_base", 1e4)
    y = attended(*parts, attn["head_dim"], rotary, base)
    return y @ w["out_proj.weight"].T + w.get("out_proj.bias", 0.0)


def mamba_ssm_logits(weights, config, tokens):
    """MambaLMHeadModel's forward (models/mixer_seq_simple.py, modules/block.py)."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}

    def inside(prefix):
        return {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}

    def norm(x, name):
        if config["rms_norm"]:
            return rms(x, w[f"{name}.weight"], 1e-5)
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    stream = w["backbone.embedding.weight"][tokens]
    for i in range(config["n_layer"]):
        prefix = f"backbone.layers.{i}."
        own = inside(f"{prefix}mixer.")
        x = norm(stream, f"{prefix}norm")
        if i in config["attn_layer_idx"]:
            stream = stream + mha(x, own, config["attn_cfg"])
        elif config["ssm_cfg"].get("layer") == "Mamba2":
            stream = stream + mamba2(x, own, config["ssm_cfg"])
        else:
            stream = stream + mamba1(x, own, config["ssm_cfg"])
        if config["d_intermediate"]:
            x = norm(stream, f"{prefix}norm2") @ w[f"{prefix}mlp.fc1.weight"].T
            through, gate = np.split(x, 2, axis=-1)
            stream = stream + (through * silu(gate)) @ w[f"{prefix}mlp.fc2.weight"].T
    x = norm(stream, "backbone.norm_f")
    return x @ w.get("lm_head.weight", w["backbone.embedding.weight"]).T
