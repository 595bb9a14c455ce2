"""Mamba-3 in NumPy, token by token, apart from the package.

After mamba_ssm 2.3.2: `modules/mamba3.py` (what is made of the input) and the
references of its tests, `mamba3_siso_step_ref` (tests/ops/triton/test_mamba3_siso.py)
and `mamba3_MIMO_step_ref` (tests/ops/tilelang/test_mamba3_mimo.py), whose rotation is
paired here as the MIMO kernels pair it (`apply_rotary_qk_inference_reference` with
rotate_pairwise false).
"""

import numpy as np

from oracles.networks.mamba_ssm import rms, silu


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rotation(theta, d_state, pairwise):
    """The matrix that turns a vector of d_state by angles of its leading pairs."""
    matrix = np.eye(d_state)
    for i, angle in enumerate(theta):
        one, two = (2 * i, 2 * i + 1) if pairwise else (i, i + d_state // 2)
        matrix[one, one] = matrix[two, two] = np.cos(angle)
        matrix[one, two], matrix[two, one] = -np.sin(angle), np.sin(angle)
    return matrix


def mamba3(x, w, ssm, after=None):
    """The mixer's output; `after` is filled with what is carried at the end."""
    heads, rank, d_state = w["B_bias"].shape
    inner, groups = w["out_proj.weight"].shape[1], ssm.get("ngroups", 1)
    size, angles = inner // heads, int(d_state * ssm.get("rope_fraction", 0.5)) // 2
    mimo, normed = ssm.get("is_mimo", False), ssm.get("is_outproj_norm", False)
    one = np.ones((heads, 1, size))
    mimo_x, mimo_z, mimo_o = (w.get(f"mimo_{name}", one) for name in "xzo")
    wide = rank * groups * d_state
    ends = np.cumsum([inner, inner, wide, wide, heads, heads, heads])
    theta, y = np.zeros((heads, angles)), np.zeros((len(x), inner))
    H = np.zeros((heads, size, d_state))
    last = np.zeros_like(H)  # sum over ranks of v k^T of the token before
    for t, row in enumerate(x @ w["in_proj.weight"].T):
        z, u, B, C, dd_dt, dd_A, trap, angle = np.split(row, ends)
        assert angle.shape == (angles,)
        dt = np.log1p(np.exp(dd_dt + w["dt_bias"]))
        A = np.minimum(-np.log1p(np.exp(dd_A)), -ssm.get("A_floor", 1e-4))
        lam, alpha = sigmoid(trap), np.exp(A * dt)
        theta = theta + np.pi * np.tanh(angle) * dt[:, None]
        B, C = (
            rms(part.reshape(rank, groups, d_state), w[f"{name}_norm.weight"], 1e-5)
            for part, name in ((B, "B"), (C, "C"))
        )
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            turn = rotation(theta[h], d_state, not mimo)
            group = h // (heads // groups)
            k = (B[:, group] + w["B_bias"][h]) @ turn.T
            q = (C[:, group] + w["C_bias"][h]) @ turn.T
            v, gate = u[own] * mimo_x[h], z[own] * mimo_z[h]
            now = sum(np.outer(v[r], k[r]) for r in range(rank))
            H[h] = alpha[h] * H[h]
            H[h] += (1 - lam[h]) * dt[h] * alpha[h] * last[h] + lam[h] * dt[h] * now
            last[h] = now
            out = q @ H[h].T + w["D"][h] * v
            if normed:
                out = rms(out, w["norm.weight"][own], 1e-5)
            y[t, own] = np.sum(out * silu(gate) * mimo_o[h], axis=0)
    if after is not None:
        after.update(state=H, angle=theta)
    return y @ w["out_proj.weight"].T


def logits(weights, config, tokens):
    """A stack of them in MambaLMHeadModel."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    stream = w["backbone.embedding.weight"][tokens]
    for i in range(config["n_layer"]):
        prefix = f"backbone.layers.{i}."
        own = {
            k.removeprefix(f"{prefix}mixer."): v
            for k, v in w.items()
            if k.startswith(f"{prefix}mixer.")
        }
        x = rms(stream, w[f"{prefix}norm.weight"], 1e-5)
        stream = stream + mamba3(x, own, config["ssm_cfg"])
    x = rms(stream, w["backbone.norm_f.weight"], 1e-5)
    return x @ w["backbone.embedding.weight"].T


def shapes(config):
    """Stored names and shapes, as mamba_ssm makes them."""
    ssm, width = config["ssm_cfg"], config["d_model"]
    inner, d_state = 2 * width, ssm["d_state"]
    heads, groups = inner // ssm["headdim"], ssm.get("ngroups", 1)
    rank = ssm.get("mimo_rank", 4) if ssm.get("is_mimo") else 1
    angles = int(d_state * ssm.get("rope_fraction", 0.5)) // 2
    rows = 2 * inner + 2 * rank * groups * d_state + 3 * heads + angles
    mixer = {
        "in_proj.weight": (rows, width), "out_proj.weight": (width, inner),
        "dt_bias": (heads,), "D": (heads,), "B_norm.weight": (d_state,),
        "C_norm.weight": (d_state,), "B_bias": (heads, rank, d_state),
        "C_bias": (heads, rank, d_state),
    }  # fmt: skip
    if ssm.get("is_mimo"):
        each = (heads, rank, ssm["headdim"])
        mixer |= {f"mimo_{name}": each for name in "xzo"}
    if ssm.get("is_outproj_norm"):
        mixer["norm.weight"] = (inner,)
    found = {
        "backbone.embedding.weight": (config["vocab_size"], width),
        "backbone.norm_f.weight": (width,),
    }
    for i in range(config["n_layer"]):
        prefix = f"backbone.layers.{i}."
        found[f"{prefix}norm.weight"] = (width,)
        found |= {f"{prefix}mixer.{name}": shape for name, shape in mixer.items()}
    return found
