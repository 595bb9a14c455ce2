"""Delta rules in NumPy, token by token, and what networks of them have in common.

After the recurrences written out in transformers 5.24 (modeling_qwen3_next.py,
modeling_kimi_linear.py). fp64 throughout; tensors by their stored names.
"""

import numpy as np

from oracles.networks.mamba_ssm import rms, silu


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def unit(x):
    """x over its length; 1e-6 is added to the sum of squares."""
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def convolved(x, weight):
    """Causal and depthwise without a bias, then silu; (channels, 1, taps)."""
    taps = weight.shape[-1]
    padded = np.concatenate([np.zeros((taps - 1, x.shape[1])), x])
    return silu(sum(padded[i : i + len(x)] * weight[:, 0, i] for i in range(taps)))


def delta_rule(q, k, v, gate, rate, after=None):
    """What heads read: (seq, heads, value_dim).

    `q`, `k`: (seq, heads, key_dim), `gate`: that or (seq, heads, 1), log decays of the
    keys; `rate`: (seq, heads). `after` is given the states at the end.
    """
    seq, heads, key_dim = k.shape
    out, states = np.zeros_like(v), np.zeros((heads, key_dim, v.shape[-1]))
    for t in range(seq):
        for h in range(heads):
            key, query = unit(k[t, h]), unit(q[t, h]) / np.sqrt(key_dim)
            state = np.exp(gate[t, h])[:, None] * states[h]
            states[h] = state + rate[t, h] * np.outer(key, v[t, h] - key @ state)
            out[t, h] = query @ states[h]
    if after is not None:
        after.append(states)
    return out


def inside(weights, prefix):
    """The tensors below a module, by their names there."""
    return {
        name.removeprefix(prefix): np.asarray(value, np.float64)
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def mlp(x, w, names=("gate_proj", "up_proj", "down_proj")):
    gate, up, down = (w[f"{name}.weight"] for name in names)
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def experts(x, w, weigh, names=("gate_proj", "up_proj", "down_proj")):
    """Token by token through the experts that `weigh(token)` names, with weights."""
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        for place, weight in weigh(row).items():
            if "experts.down_proj" in w:
                gate, up = np.split(w["experts.gate_up_proj"][place], 2)
                hidden = silu(gate @ row) * (up @ row)
                out[t] += weight * (w["experts.down_proj"][place] @ hidden)
            else:
                out[t] += weight * mlp(row, inside(w, f"experts.{place}."), names)
    return out


def heads_normed(x, weight, head_dim, epsilon):
    """Each head's channels normalised: (seq, heads head_dim)."""
    return rms(x.reshape(len(x), -1, head_dim), weight, epsilon).reshape(x.shape)
