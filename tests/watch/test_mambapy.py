"""Assert that blocks of somebody else's package are found, verified or refused."""

from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError


pytest.importorskip("mambapy")

import torch
from mambapy import mamba, vim

from .networks import LENGTH, WIDTH, drawn, made
from .oracle import of_mamba1, weights_of


NONE: dict[str, Any] = {"measure": "none"}


def block(**settings: Any) -> torch.nn.Module:
    """A block of mambapy whose weights are not a constructor's."""
    config = mamba.MambaConfig(d_model=WIDTH, n_layers=1, d_state=4, **settings)
    made_so = mamba.MambaBlock(config)
    with torch.no_grad():
        for parameter in made_so.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made_so


@pytest.mark.parametrize("pscan", [True, False])
@pytest.mark.parametrize("bias", [pytest.param(True, marks=pytest.mark.slow), False])
def test_scans_in_either_order_are_the_same_function(pscan, bias):
    """Exponents to 1e-12 of NumPy's, whichever way it adds up."""
    network = made(lambda: block(pscan=pscan))
    x = drawn(2, LENGTH, WIDTH)
    report = lyapunov.watch(network, **NONE)(x)
    if bias:
        report = lyapunov.watch(made(lambda: block(pscan=pscan, bias=True)), **NONE)(x)
        assert "of the bound" in report.assumptions[0]
        return
    wanted = of_mamba1(x.double().numpy(), weights_of(network))
    (row,) = report.exponents.layers
    found = np.array([row.max, row.min], float)
    np.testing.assert_allclose(found, [wanted.max(), wanted.min()], rtol=1e-12)


@pytest.mark.slow
def test_norms_inside_and_the_norm_in_front():
    """`inner_layernorms`, and the RMSNorm of its residual block."""
    config = mamba.MambaConfig(
        d_model=WIDTH, n_layers=1, d_state=4, dt_rank=2, inner_layernorms=True
    )
    network = made(lambda: mamba.ResidualBlock(config))
    report = lyapunov.watch(network, precisions=["bf16"])(drawn(2, LENGTH, WIDTH))
    assert "mixer is mamba1 behind its norm" in report.assumptions[0]
    assert report.precisions[0].count("violations") == 0


def test_a_block_that_reads_both_ways_is_another_function():
    """It has all the tensors of a Mamba-1, and some more."""
    config = vim.MambaConfig(d_model=WIDTH, n_layers=1, d_state=4, bidirectional=True)
    network = made(lambda: vim.VMambaBlock(config))
    with pytest.raises(UsageError, match="another function"):
        lyapunov.watch(network, **NONE)(drawn(2, LENGTH, WIDTH))
    with pytest.raises(UsageError, match="no state-space block"):
        lyapunov.watch(network, mixers={vim.VMambaBlock: None}, **NONE)
