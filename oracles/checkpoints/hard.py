"""Small Mamba-1 weights, ordinary and hard; one shape, so that compiling pays once."""

import numpy as np

from oracles.networks.mamba1 import Sizes, random_weights


SIZES = Sizes(vocab=40, d_model=16, d_state=4)


SEQ = 48


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
