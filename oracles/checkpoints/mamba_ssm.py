"""Small hybrids in mamba_ssm's layout, and OpenELM's: settings, shapes, weights."""

import json

import numpy as np


D_MODEL, D_INNER, STATE = 24, 48, 6


SSM2 = {"layer": "Mamba2", "d_state": STATE, "headdim": 8, "ngroups": 2}


CONFIGS = {
    "attention with a convolution": {
        "ssm_cfg": {**SSM2, "ngroups": 1, "chunk_size": 8},
        "attn_layer_idx": [1],
        "attn_cfg": {
            "causal": True, "num_heads": 4, "num_heads_kv": 2, "head_dim": 8,
            "d_conv": 3, "rotary_emb_dim": 4, "qkv_proj_bias": False,
            "out_proj_bias": False,
        },
    },
    "MLPs, biases, positions everywhere": {
        "ssm_cfg": {**SSM2, "bias": True, "dt_limit": [0.2, 0.9]},
        "attn_layer_idx": [0],
        "attn_cfg": {"causal": True, "num_heads": 3, "head_dim": 8,
                     "rotary_emb_dim": 8, "rotary_emb_base": 100.0},
        "d_intermediate": 40,
        "tie_embeddings": False,
    },
    "LayerNorm, D of each channel": {
        "ssm_cfg": {**SSM2, "D_has_hdim": True, "norm_before_gate": True},
        "rms_norm": False,
    },
    "no gated norm": {"ssm_cfg": {**SSM2, "rmsnorm": False}, "rms_norm": False,
                      "d_intermediate": 8},
    "Mamba-1 with LayerNorm, attention and MLPs": {
        "ssm_cfg": {"d_state": STATE, "dt_rank": 2},
        "rms_norm": False,
        "attn_layer_idx": [1],
        "attn_cfg": {"causal": True, "num_heads": 3, "head_dim": 8,
                     "softmax_scale": 8**-0.5},
        "d_intermediate": 8,
    },
}  # fmt: skip


def full_config(changes):
    return {
        "d_model": D_MODEL, "d_intermediate": 0, "n_layer": 2, "vocab_size": 37,
        "ssm_cfg": {}, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True,
        "residual_in_fp32": True, "fused_add_norm": True,
        "pad_vocab_size_multiple": 1, "tie_embeddings": True, **changes,
    }  # fmt: skip


def mixer_shapes(config):
    ssm = config["ssm_cfg"]
    if ssm.get("layer") != "Mamba2":
        return {
            "in_proj.weight": (2 * D_INNER, D_MODEL), "conv1d.bias": (D_INNER,),
            "conv1d.weight": (D_INNER, 1, 4), "x_proj.weight": (2 + 2 * STATE, D_INNER),
            "dt_proj.weight": (D_INNER, 2), "dt_proj.bias": (D_INNER,),
            "A_log": (D_INNER, STATE), "D": (D_INNER,),
            "out_proj.weight": (D_MODEL, D_INNER),
        }  # fmt: skip
    heads, wide = D_INNER // ssm["headdim"], ssm["ngroups"] * STATE
    conv = D_INNER + 2 * wide
    shapes = {
        "in_proj.weight": (D_INNER + conv + heads, D_MODEL), "conv1d.bias": (conv,),
        "conv1d.weight": (conv, 1, 4), "dt_bias": (heads,), "A_log": (heads,),
        "D": (D_INNER if ssm.get("D_has_hdim") else heads,),
        "out_proj.weight": (D_MODEL, D_INNER),
    }  # fmt: skip
    if ssm.get("rmsnorm", True):
        shapes["norm.weight"] = (D_INNER,)
    if ssm.get("bias"):
        shapes["in_proj.bias"] = (shapes["in_proj.weight"][0],)
        shapes["out_proj.bias"] = (D_MODEL,)
    return shapes


def attention_shapes(attn):
    q = attn["num_heads"] * attn["head_dim"]
    rows = q + 2 * attn.get("num_heads_kv", attn["num_heads"]) * attn["head_dim"]
    shapes = {"in_proj.weight": (rows, D_MODEL), "out_proj.weight": (D_MODEL, q)}
    if attn.get("qkv_proj_bias", True):
        shapes["in_proj.bias"] = (rows,)
    if attn.get("out_proj_bias", True):
        shapes["out_proj.bias"] = (D_MODEL,)
    if attn.get("d_conv"):
        shapes["conv1d.weight"] = (rows, 1, attn["d_conv"])
        shapes["conv1d.bias"] = (rows,)
    return shapes


def mamba_ssm_shapes(config):
    shapes: dict[str, tuple[int, ...]] = {"backbone.embedding.weight": (37, D_MODEL)}
    norms = ["backbone.norm_f"]
    for i in range(config["n_layer"]):
        prefix = f"backbone.layers.{i}."
        attends = i in config["attn_layer_idx"]
        own = attention_shapes(config["attn_cfg"]) if attends else mixer_shapes(config)
        shapes |= {f"{prefix}mixer.{name}": shape for name, shape in own.items()}
        norms.append(f"{prefix}norm")
        if config["d_intermediate"]:
            hidden = -(-config["d_intermediate"] // 128) * 128
            shapes[f"{prefix}mlp.fc1.weight"] = (2 * hidden, D_MODEL)
            shapes[f"{prefix}mlp.fc2.weight"] = (D_MODEL, hidden)
            norms.append(f"{prefix}norm2")
    for name in norms:
        shapes[f"{name}.weight"] = (D_MODEL,)
        if not config["rms_norm"]:
            shapes[f"{name}.bias"] = (D_MODEL,)
    if not config["tie_embeddings"]:
        shapes["lm_head.weight"] = (37, D_MODEL)
    return shapes


def drawn(shapes, rng):
    """fp32 weights; norms and D around 1, everything else around 0."""
    weights = {}
    for name, shape in shapes.items():
        value = rng.normal(size=shape)
        if len(shape) == 1:
            value = 0.3 * value + name.endswith(("norm.weight", "norm2.weight", ".D"))
        elif not name.endswith("A_log"):
            value = value / np.sqrt(shape[-1])
        weights[name] = value.astype(np.float32)
    return weights


def save(folder, weights, config):
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def openelm(tied):
    """(config, shapes) of a small one; heads and widths change from layer to layer."""
    config = {
        "model_type": "openelm", "vocab_size": 37, "model_dim": D_MODEL,
        "num_transformer_layers": 2, "head_dim": 6, "num_query_heads": [4, 6],
        "num_kv_heads": [2, 3], "ffn_multipliers": [0.5, 1.7], "ffn_dim_divisor": 8,
        "ffn_with_glu": True, "normalize_qk_projections": tied,
        "rope_freq_constant": 10000, "activation_fn_name": "swish",
        "normalization_layer_name": "rms_norm", "share_input_output_layers": tied,
    }  # fmt: skip
    widths = [16, 40]  # 12 and 40.8 to multiples of 8
    shapes = {"transformer.token_embeddings.weight": (37, D_MODEL)}
    norms = {"transformer.norm": D_MODEL}
    for i, (q, kv, width) in enumerate(zip([4, 6], [2, 3], widths, strict=True)):
        prefix = f"transformer.layers.{i}."
        shapes[f"{prefix}attn.qkv_proj.weight"] = ((q + 2 * kv) * 6, D_MODEL)
        shapes[f"{prefix}attn.out_proj.weight"] = (D_MODEL, q * 6)
        shapes[f"{prefix}ffn.proj_1.weight"] = (2 * width, D_MODEL)
        shapes[f"{prefix}ffn.proj_2.weight"] = (D_MODEL, width)
        norms |= {f"{prefix}attn_norm": D_MODEL, f"{prefix}ffn_norm": D_MODEL}
        if tied:
            norms |= {f"{prefix}attn.q_norm": 6, f"{prefix}attn.k_norm": 6}
    shapes |= {f"{name}.weight": (width,) for name, width in norms.items()}
    if not tied:
        shapes["lm_head.weight"] = (37, D_MODEL)
    return config, shapes
