"""Layouts that transformers does not run: emulated, within their bounds, chunks too."""

import numpy as np
import pytest

import lyapunov
from oracles.checkpoints import megatron
from oracles.checkpoints.mamba_ssm import (
    CONFIGS,
    drawn,
    full_config,
    mamba_ssm_shapes,
    openelm,
    save,
)
from oracles.checkpoints.megatron import SIZES, tensors

from ..helpers import not_none


NAMES = [
    pytest.param("attention with a convolution", marks=pytest.mark.slow),
    pytest.param("MLPs, biases, positions everywhere", marks=pytest.mark.slow),
    pytest.param("LayerNorm, D of each channel", marks=pytest.mark.slow),
    pytest.param("no gated norm", marks=pytest.mark.slow),
    pytest.param("Mamba-1 with LayerNorm, attention and MLPs", marks=pytest.mark.slow),
]


def hold(model, rng, mode):
    """Assert no violation in bf16 and fp16, and that no bound is vacuous."""
    tokens = rng.integers(0, 37, 24)
    report = lyapunov.check(
        model,
        tokens,
        precisions=["bf16", "fp16"],
        mode=mode,
        floor=False,
        probes=0,
        readouts=0,
        ball=False,
        growth=False,
    )
    assert len(report.precisions) == 2
    for precision in report.precisions:
        assert len(precision.layers) == len(model.sublayers)
        for row in precision.layers:
            assert row.violations == 0, (precision.precision, row.layer, row.kind)
            assert not_none(row.elements_total) > 0
            assert 1.0 - 1e-4 <= not_none(row.bound_t1_ratio) < 100, (
                row.layer,
                row.kind,
            )
            assert np.isfinite(not_none(row.bound_t1_l2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "mode", ["prefill", pytest.param("decode", marks=pytest.mark.slow)]
)
def test_mamba_ssms_hybrids_stay_within_their_bounds(rng, tmp_path, name, mode):
    """Assert it of whatever stands between their mixers."""
    config = full_config(CONFIGS[name])
    weights = drawn(mamba_ssm_shapes(config), rng)
    hold(lyapunov.load(save(tmp_path / "model", weights, config)), rng, mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_openelm_stays_within_its_bounds(rng, tmp_path, mode):
    """Assert it with normalised queries and keys."""
    config, shapes = openelm(True)
    model = lyapunov.load(save(tmp_path / "model", drawn(shapes, rng), config))
    assert {layer.kind for layer in model.sublayers} == {"attention", "mlp"}
    hold(model, rng, mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_megatrons_hybrids_stay_within_their_bounds(rng, tmp_path, mode):
    """Assert it of Mamba-2, attention and MLPs put together from two shards."""
    folder = megatron.save(tmp_path / "model", tensors(), 2, **SIZES)
    model = lyapunov.load(folder)
    assert {layer.kind for layer in model.sublayers} == {"mamba2", "attention", "mlp"}
    hold(model, rng, mode)
