"""Small checkpoints, ordinary and hard, of one shape so that compiling pays once."""

import numpy as np
import pytest

from ..model.numpy_mamba import Sizes, random_weights
from ..model.saved import save_transformers


SIZES = Sizes(vocab=40, d_model=16, d_state=4)
SEQ = 48

# hard checkpoints beside the plain one, for what takes long
SLOW_KINDS = [
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ("outliers", "dt", "A", "repeated")
]


def hard_weights(kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of one kind of trouble."""
    import ml_dtypes

    weights = random_weights(np.random.default_rng(seed), SIZES)
    layer = "backbone.layers.1.mixer."
    if kind == "outliers":
        weights[layer + "D"][3] = 1e4
        weights[layer + "out_proj.weight"][:, 3] *= 30
        weights["backbone.layers.0.norm.weight"][2] = 200.0
    elif kind == "dt":
        for i in range(SIZES.layers):
            bias = weights[f"backbone.layers.{i}.mixer.dt_proj.bias"]
            bias[:8], bias[8:16] = -12.0, 20.0
    elif kind == "A":
        weights[layer + "A_log"][:8] = 9.0
        weights[layer + "A_log"][8:16] = -14.0
    elif kind == "stored in bf16":
        weights = {
            k: v.astype(ml_dtypes.bfloat16).astype(np.float32)
            for k, v in weights.items()
        }
    elif kind == "overflow":
        weights[layer + "D"][3] = 1e6
        weights[layer + "in_proj.weight"] *= 30
    else:
        assert kind in ("plain", "repeated")
    return weights


def tokens_for(kind: str, seed: int = 0) -> np.ndarray:
    if kind == "repeated":
        return np.full(SEQ, 7)
    return np.random.default_rng(seed + 100).integers(0, SIZES.vocab, SEQ)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A function: kind of trouble -> (folder, weights, tokens)."""
    made = {}

    def get(kind: str, seed: int = 0):
        if (kind, seed) not in made:
            weights = hard_weights(kind, seed)
            folder = tmp_path_factory.mktemp("checkpoint") / "model"
            dtype = "bfloat16" if kind == "stored in bf16" else "float32"
            save_transformers(folder, weights, SIZES, dtype=dtype)
            made[kind, seed] = folder, weights, tokens_for(kind, seed)
        return made[kind, seed]

    return get
