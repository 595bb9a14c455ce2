"""xLSTM in plain NumPy, read off transformers' modeling_xlstm.py.

States are kept as they are, without a maximum: of that there is the e^m that its
epsilon is multiplied by.
"""

import numpy as np

from oracles.networks.delta_rule import inside, mlp, sigmoid
from oracles.networks.mamba_ssm import rms


def capped(x, cap):
    return cap * np.tanh(x / cap)


def mlstm(x, w, config, after=None):
    heads, seq = config["num_heads"], len(x)
    if config["weight_mode"] == "fused":
        width = config["hidden_size"]
        keys = int(width * config["qk_dim_factor"])
        parts = x @ w["qkv_opreact.weight"].T
        values = (parts.shape[-1] - 2 * keys) // 2
        q, k, v, output = np.split(parts, [keys, 2 * keys, 2 * keys + values], axis=-1)
        gates = x @ w["ifgate_preact.weight"].T + w["ifgate_preact.bias"]
        into, forget = np.split(gates, 2, axis=-1)
    else:
        q, k, v, output = (
            x @ w[f"{name}.weight"].T for name in ("q", "k", "v", "ogate_preact")
        )
        into, forget = (
            x @ w[f"{name}gate_preact.weight"].T + w[f"{name}gate_preact.bias"]
            for name in "if"
        )
    into, forget = (capped(gate, config["gate_soft_cap"]) for gate in (into, forget))
    log_forget = -np.logaddexp(0, -forget)
    q, k, v = (one.reshape(seq, heads, -1) for one in (q, k, v))
    state = np.zeros((heads, k.shape[-1], v.shape[-1]))
    norm, top = np.zeros((heads, k.shape[-1])), np.zeros(heads)
    read = np.zeros_like(v)
    for t in range(seq):
        top = np.maximum(log_forget[t] + top, into[t])
        for h in range(heads):
            fade, new = np.exp(log_forget[t, h]), np.exp(into[t, h])
            state[h] = fade * state[h] + new * np.outer(k[t, h], v[t, h])
            norm[h] = fade * norm[h] + new * k[t, h]
            query = q[t, h] / np.sqrt(k.shape[-1])
            least = max(abs(query @ norm[h]), 1.0) + config["eps"] * np.exp(top[h])
            read[t, h] = query @ state[h] / least
    if after is not None:
        after.append(state)
    centred = read - read.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    y = centred / np.sqrt(variance + config["norm_eps"])
    y = y.reshape(seq, -1) * w["multihead_norm.weight"]
    return (sigmoid(output) * y) @ w["out_proj.weight"].T


def logits(weights, config, tokens, after=None):
    """The forward; `after` is given the states at the end."""
    w, epsilon = inside(weights, "backbone."), config["norm_eps"]
    stream = w["embeddings.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        own = inside(w, f"blocks.{i}.")
        x = rms(stream, own["norm_mlstm.weight"], epsilon)
        stream = stream + mlstm(x, inside(own, "mlstm_layer."), config, after)
        x, ffn = rms(stream, own["norm_ffn.weight"], epsilon), inside(own, "ffn.")
        if "proj_up_gate_z.weight" in ffn:
            gate, up = np.split(ffn["proj_up_gate_z.weight"], 2)
            ffn |= {"proj_up_gate.weight": gate, "proj_up.weight": up}
        stream = stream + mlp(x, ffn, ("proj_up_gate", "proj_up", "proj_down"))
    x = rms(stream, w["out_norm.weight"], epsilon)
    y = x @ np.asarray(weights["lm_head.weight"], np.float64).T
    return capped(y, config["output_logit_soft_cap"])
