"""Small checkpoints, and audits of them that several tests look at."""

import numpy as np
import pytest

import lyapunov
from oracles.checkpoints.hard import SIZES

from ..executions.conftest import checkpoint


__all__ = ["checkpoint"]

# One length, so that ways with the same calls are compiled once.
SEQ = 40


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
