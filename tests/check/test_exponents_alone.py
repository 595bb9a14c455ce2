"""Exponents of a check that measures nothing, against NumPy's."""

import numpy as np
import pytest

from oracles.checkpoints.mamba1 import save_mamba_ssm, save_transformers
from oracles.networks.mamba1 import NumpyMamba, Sizes, random_weights

from ..helpers import not_none
from .conftest import SEQ, SIZES, exponents_only


def assert_exponents(rows, weights, sizes, tokens):
    """Equal to means of dt A from NumPy to 1e-9 relative, and so are the statistics."""
    numpy = NumpyMamba(weights, sizes)
    each = [numpy.exponents(sequence) for sequence in tokens]
    for i, row in enumerate(rows):
        expected = np.mean([e[i] for e in each], axis=0)
        assert row.layer == i
        assert row.kind == "mamba1"
        assert row.max == pytest.approx(expected.max(), rel=1e-9)
        assert row.min == pytest.approx(expected.min(), rel=1e-9)
        memory = -1 / expected
        assert row.memory_tokens.max == pytest.approx(memory.max(), rel=1e-9)
        assert row.memory_tokens.p50 == pytest.approx(np.median(memory), rel=1e-9)
        assert row.reason is None
    numpy.logits(tokens[0])
    return each


@pytest.mark.parametrize("layout", [save_transformers, save_mamba_ssm])
@pytest.mark.parametrize(
    "sizes",
    [SIZES, Sizes(vocab=37, d_model=7, expand=3, d_state=5, d_conv=3, dt_rank=1)],
    ids=["plain", "odd"],
)
def test_exponents_are_those_of_an_independent_computation(tmp_path, layout, sizes):
    """Assert 1e-9 relative on checkpoints in both layouts."""
    weights = random_weights(np.random.default_rng(3), sizes)
    folder = layout(tmp_path / "model", weights, sizes)
    tokens = np.random.default_rng(4).integers(0, sizes.vocab, (2, SEQ))
    found = exponents_only(folder, tokens).exponents
    assert_exponents(found.layers, weights, sizes, tokens)
    assert found.n_tokens == tokens.size
    largest = max(not_none(row.max) for row in found.layers)
    assert found.max == largest
    assert found.layers[not_none(found.max_layer)].max == largest


def test_without_measuring_there_are_exponents_alone(checkpoint):
    """Assert that measure none runs no execution and says nothing of precision."""
    folder, weights, tokens = checkpoint
    found = exponents_only(folder, tokens)
    assert found.precisions == []
    assert_exponents(found.exponents.layers, weights, SIZES, tokens)
