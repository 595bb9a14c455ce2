"""Small Mamba-2 checkpoints in mamba_ssm's layout, ordinary and hard."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from oracles.checkpoints.mamba_ssm import full_config


class Sizes(NamedTuple):
    """Of a checkpoint; `gate_norm` and the last three as `Mamba2`'s arguments."""

    layers: int = 2
    d_model: int = 24
    head_dim: int = 8
    d_state: int = 16
    groups: int = 2
    vocab: int = 40
    chunk: int = 16
    gate_norm: bool = True
    norm_before_gate: bool = False
    D_has_hdim: bool = False
    dt_limit: tuple[float, float] = (0.0, float("inf"))

    @property
    def d_inner(self) -> int:
        return 2 * self.d_model

    @property
    def heads(self) -> int:
        return self.d_inner // self.head_dim

    @property
    def conv(self) -> int:
        return self.d_inner + 2 * self.groups * self.d_state


def drawn(sizes: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    """fp32 weights as mamba_ssm initialises A and dt, everything else normal."""
    rng = np.random.default_rng(seed)
    matrix = lambda *shape: rng.normal(size=shape) / np.sqrt(shape[-1])
    around_one = lambda size: 1 + 0.2 * rng.normal(size=size)
    weights = {
        "backbone.embedding.weight": rng.normal(size=(sizes.vocab, sizes.d_model)),
        "backbone.norm_f.weight": around_one(sizes.d_model),
    }
    for i in range(sizes.layers):
        block = f"backbone.layers.{i}."
        rows = sizes.d_inner + sizes.conv + sizes.heads
        step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), sizes.heads))
        mixer = {
            "in_proj.weight": matrix(rows, sizes.d_model),
            "conv1d.weight": matrix(sizes.conv, 1, 4),
            "conv1d.bias": 0.1 * rng.normal(size=sizes.conv),
            "dt_bias": step + np.log(-np.expm1(-step)),
            "A_log": np.log(rng.uniform(1, 16, sizes.heads)),
            "D": around_one(sizes.d_inner if sizes.D_has_hdim else sizes.heads),
            "out_proj.weight": matrix(sizes.d_model, sizes.d_inner),
        }
        if sizes.gate_norm:
            mixer["norm.weight"] = around_one(sizes.d_inner)
        weights[block + "norm.weight"] = around_one(sizes.d_model)
        weights |= {f"{block}mixer.{name}": value for name, value in mixer.items()}
    return {name: value.astype(np.float32) for name, value in weights.items()}


def hard(kind: str, sizes: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of one kind of trouble."""
    weights = drawn(sizes, seed)
    last = f"backbone.layers.{sizes.layers - 1}.mixer."
    if kind == "outliers":
        weights[last + "D"][1] = 1e3
        weights[last + "out_proj.weight"][:, 9] *= 30
        weights["backbone.layers.0.norm.weight"][2] = 20.0
    elif kind == "dt":
        for i in range(sizes.layers):
            bias = weights[f"backbone.layers.{i}.mixer.dt_bias"]
            bias[:2], bias[2:4] = -12.0, 20.0
    elif kind == "A":
        weights[last + "A_log"][:2] = 9.0
        weights[last + "A_log"][2:4] = -14.0
    elif kind == "overflow":
        weights[last + "D"][1] = 1e6
        weights[last + "in_proj.weight"] *= 30
    else:
        assert kind in ("plain", "repeated")
    return weights


def tokens_for(kind: str, sizes: Sizes, seq: int, seed: int = 0) -> np.ndarray:
    """Random ones, or one again and again."""
    if kind == "repeated":
        return np.full(seq, 7)
    return np.random.default_rng(seed + 100).integers(0, sizes.vocab, seq)


def save(folder: Path, weights: dict[str, np.ndarray], sizes: Sizes) -> Path:
    """As `MambaLMHeadModel` names and configures it."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = full_config(
        {
            "d_model": sizes.d_model,
            "n_layer": sizes.layers,
            "vocab_size": sizes.vocab,
            "ssm_cfg": {
                "layer": "Mamba2",
                "d_state": sizes.d_state,
                "headdim": sizes.head_dim,
                "ngroups": sizes.groups,
                "chunk_size": sizes.chunk,
                "rmsnorm": sizes.gate_norm,
                "norm_before_gate": sizes.norm_before_gate,
                "D_has_hdim": sizes.D_has_hdim,
            },
        }
    )
    if sizes.dt_limit != (0.0, float("inf")):
        config["ssm_cfg"]["dt_limit"] = list(sizes.dt_limit)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
