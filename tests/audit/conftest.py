"""Small checkpoints, and audits of them that several tests look at."""

import numpy as np
import pytest

import lyapunov
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.hard import SIZES
from oracles.checkpoints.transformers import make, save

from ..executions.conftest import checkpoint


__all__ = ["checkpoint"]

# One length, so that ways with the same calls are compiled once.
SEQ = 40

# Of families of several kinds of sublayers, and a short text for them.
FAMILIES = (
    *("mamba2", "jamba", "nemotron_h", "gpt_neox", "qwen3_next", "kimi_linear"),
)
SEQ_OF_FAMILIES = 8


@pytest.fixture(scope="session")
def setting(checkpoint):
    """A model of ordinary random weights, its weights, and a text."""
    folder, weights, _ = checkpoint("plain")
    tokens = np.random.default_rng(3).integers(0, SIZES.vocab, SEQ)
    return lyapunov.load(str(folder)), weights, tokens


@pytest.fixture(scope="session")
def audited(setting):
    """A function: ways, precision -> an audit of transformers, by way."""
    model, _, tokens = setting

    def run(*variants, precision="bf16", source="transformers", **options):
        report = lyapunov.audit(
            model, source, tokens, precisions=[precision], variants=variants, **options
        )
        return {v.variant: v for v in report.variants}

    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A function: family -> a small model of it, and a text."""
    kept = {}

    def one(family):
        if family not in kept:
            settings = next(iter(CONFIGURATIONS[family].values()))
            folder = tmp_path_factory.mktemp(family)
            kept[family] = lyapunov.load(save(make(family, **settings), folder))
        vocab = kept[family].config.vocab_size
        text = np.random.default_rng(3).integers(0, vocab, SEQ_OF_FAMILIES)
        return kept[family], text

    return one
