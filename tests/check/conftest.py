"""A small checkpoint that several files check."""

import numpy as np
import pytest

import lyapunov
from oracles.checkpoints.mamba1 import save_transformers
from oracles.networks.mamba1 import Sizes, random_weights


SIZES = Sizes(layers=3)
SEQ = 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    weights = random_weights(np.random.default_rng(11), SIZES)
    folder = save_transformers(
        tmp_path_factory.mktemp("check") / "model", weights, SIZES
    )
    tokens = np.random.default_rng(12).integers(0, SIZES.vocab, (2, SEQ))
    return folder, weights, tokens


def exponents_only(folder, tokens, **options):
    return lyapunov.check(str(folder), tokens, measure="none", **options)
