"""Small checkpoints, ordinary and hard, of one shape so that compiling pays once."""

import pytest

from oracles.checkpoints.hard import SIZES, hard_weights, tokens_for
from oracles.checkpoints.mamba1 import save_transformers


# hard checkpoints beside the plain one, for what takes long
SLOW_KINDS = [
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ("outliers", "dt", "A", "repeated")
]


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
