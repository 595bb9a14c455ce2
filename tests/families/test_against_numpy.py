"""Families that transformers does not have, against NumPy written from their code."""

import numpy as np
import pytest

import lyapunov
from oracles.checkpoints.mamba_ssm import (
    CONFIGS,
    drawn,
    full_config,
    mamba_ssm_shapes,
    openelm,
    save,
)
from oracles.networks.mamba_ssm import mamba_ssm_logits
from oracles.networks.openelm import openelm_logits
from oracles.tolerances import exact_logits

from ..helpers import assert_within


TOKENS = np.random.default_rng(3).integers(0, 37, 15)


def agree(folder, weights, config, forward):
    """Our logits, NumPy's, and what fp64 may put between them."""
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    run = lambda w, tokens: forward(w, config, tokens)
    theirs, allowed = exact_logits(weights, config, forward, TOKENS)
    assert allowed < 1e-9 * np.abs(theirs).max()
    ours = np.asarray(lyapunov.load(save(folder, weights, config)).logits(TOKENS))
    assert_within(ours, theirs, allowed)
    # and each tensor counts
    for name, value in exact.items():
        # not by one number for all, which a LayerNorm behind would take away
        uneven = value + 0.1 * (np.arange(value.size) % 3).reshape(value.shape)
        changed = uneven if value.ndim == 1 else np.flip(value, 0)
        moved = run(exact | {name: changed}, TOKENS)
        assert np.abs(moved - ours).max() > allowed, name


@pytest.mark.parametrize("name", CONFIGS)
def test_mamba_ssm(rng, tmp_path, name):
    """Assert networks of mamba_ssm with whatever stands between their mixers."""
    config = full_config(CONFIGS[name])
    weights = drawn(mamba_ssm_shapes(config), rng)
    agree(tmp_path / "model", weights, config, mamba_ssm_logits)


@pytest.mark.parametrize("tied", [True, False])
def test_openelm(rng, tmp_path, tied):
    """Assert OpenELM, whose heads and widths change from layer to layer."""
    config, shapes = openelm(tied)
    agree(tmp_path / "model", drawn(shapes, rng), config, openelm_logits)
