"""Small Mamba-3 checkpoints in mamba_ssm's layout, and their layers in a row."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from lyapunov.implementations import executions_for
from oracles.checkpoints.mamba_ssm import full_config
from oracles.kernels import mamba1 as kernel, mamba3
from oracles.kernels.mamba3_ranks import Mimo, Step
from oracles.networks import mamba3 as layout


class Sizes(NamedTuple):
    """Of a checkpoint; `rank` above 1 is MIMO."""

    layers: int = 2
    d_model: int = 24
    head_dim: int = 8
    d_state: int = 16
    groups: int = 1
    rank: int = 1
    gate_norm: bool = False
    turning: float = 0.5
    vocab: int = 40
    chunk: int = 8

    @property
    def shape(self) -> mamba3.Shape:
        return mamba3.Shape(self.groups, self.chunk, 1e-4, self.gate_norm)

    @property
    def config(self) -> dict:
        """As `MambaLMHeadModel` is configured."""
        return full_config(
            {
                "d_model": self.d_model,
                "n_layer": self.layers,
                "vocab_size": self.vocab,
                "ssm_cfg": {
                    "layer": "Mamba3",
                    "d_state": self.d_state,
                    "headdim": self.head_dim,
                    "ngroups": self.groups,
                    "rope_fraction": self.turning,
                    "chunk_size": self.chunk,
                    "is_outproj_norm": self.gate_norm,
                    "is_mimo": self.rank > 1,
                    "mimo_rank": self.rank,
                },
            }
        )


def drawn(sizes: Sizes, kind: str = "plain", seed: int = 0) -> dict[str, np.ndarray]:
    """fp32 weights as mamba_ssm initialises dt and biases, everything else normal."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in layout.shapes(sizes.config).items():
        last = name.rpartition("mixer.")[2]
        if (len(shape) == 1 and "weight" in name) or last in ("D", "B_bias", "C_bias"):
            value = 1 + 0.2 * rng.normal(size=shape)
        elif last == "dt_bias":
            step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), shape))
            value = step + np.log(-np.expm1(-step))
        elif last.startswith("mimo_"):
            value = (1 + 0.2 * rng.normal(size=shape)) / (
                1 if last == "mimo_z" else sizes.rank
            )
        else:
            value = rng.normal(size=shape) / np.sqrt(shape[-1])
            if "embedding" in name:
                value = rng.normal(size=shape)
        weights[name] = value.astype(np.float32)
    mixer = f"backbone.layers.{sizes.layers - 1}.mixer."
    if kind == "dt":
        weights[mixer + "dt_bias"][:2] = 8.0, -14.0
    elif kind == "turns":
        weights[mixer + "in_proj.weight"][-3:] *= 20
        weights[mixer + "dt_bias"][:3] = 3.0
    elif kind == "outliers":
        weights[mixer + "D"][1] = 1e3
        weights["backbone.layers.0.norm.weight"][2] = 20.0
    else:
        assert kind in ("plain", "repeated")
    return weights


def save(folder: Path, weights: dict[str, np.ndarray], sizes: Sizes) -> Path:
    """A folder that can be loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(sizes.config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tokens_for(kind: str, sizes: Sizes, seq: int, seed: int = 0) -> np.ndarray:
    """Random ones, or one again and again."""
    if kind == "repeated":
        return np.full(seq, 7)
    return np.random.default_rng(seed + 100).integers(0, sizes.vocab, seq)


def execution_of(model, precision: str, mode: str = "prefill", cache=None):
    """What is declared for the mixers of a loaded model."""
    (execution,) = executions_for(
        model.config,
        [precision],
        architecture="mamba3",
        mode=mode,
        state_precision=cache,
    )
    return execution.of("mamba3")


def kernel_of(sizes: Sizes, mode: str = "prefill") -> type[mamba3.Siso]:
    """NumPy's layer."""
    if mode == "decode":
        return Step
    return mamba3.Siso if sizes.rank == 1 else Mimo


def run_stack(weights, tokens, precision, sizes, make, *order):
    """(before, hidden, stored tensors) of each layer."""
    name, _, variant = precision.partition("-")
    rows = weights["backbone.embedding.weight"]
    before = (rows if variant == "amp" else kernel.cast(rows, name))[tokens]
    hidden = np.zeros_like(before)
    records = []
    for i in range(sizes.layers):
        held = mamba3.held(mamba3.layer_weights(weights, i), precision)
        stored = make(held, precision, sizes.shape, *order).run(before, hidden)
        records.append((before, hidden, stored))
        before, hidden = stored["residual"], stored["out"]
    return records
