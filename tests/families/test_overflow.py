"""Right code that overflows in fp16 is not accused: no finite bound on what is NaN.

Weights are such that something in the network passes 65504: scores of attention, a norm
with an outlier, activations of a wide spread. transformers and the emulator then have
infinities and NaN in places where the reference has numbers.
"""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import lyapunov
from lyapunov.implementations import Emulated, Transformers
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save

from .test_executions import sublayers_held, wide  # noqa: F401


def large_scores(name, parameter):
    """Queries and keys that are 200 times as large: also B and C of a recurrence."""
    if any(part in name for part in ("q_proj", "k_proj", "qkv", "query", "x_proj")):
        parameter.mul_(200.0)


def an_outlier(name, parameter):
    """One channel of every norm weighs 1000 times as much."""
    if "norm" in name and parameter.dim() == 1:
        parameter[3 % len(parameter)] = 1000.0


def a_spread(name, parameter):
    """Every weight times exp(2.5 z)."""
    if parameter.dim() > 1:
        parameter.mul_(torch.exp(2.5 * torch.randn_like(parameter)))


def large_drives(name, parameter):
    """What goes into each sublayer's first projection is 300 times as large."""
    if any(part in name for part in ("in_proj", "gate", "up_proj", "fc", "dense_h")):
        parameter.mul_(300.0)


CHANGES = [large_scores, an_outlier, a_spread, large_drives]


def changed(family, change):
    """The family's first configuration with its parameters changed in place."""
    settings = next(iter(CONFIGURATIONS[family].values()))
    network = make(family, **settings)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            change(name, parameter)
    return lyapunov.load(save(network, Path(tempfile.mkdtemp(prefix="lyapunov-test-"))))


def not_finite(model, run, precision="fp16") -> int:
    """Assert no violation; how many elements are no numbers, all of them unbounded."""
    found = 0
    for layer, operations, whole, first in sublayers_held(model, precision, run):
        assert first is None, (layer.layer, layer.kind, first)
        for comparison in (whole, *operations.values()):
            lost = int(comparison.non_finite.sum())
            if lost:
                assert not math.isfinite(float(comparison.bound_square.sum()))
            found += lost
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGURATIONS)
@pytest.mark.parametrize("run", [Transformers, Emulated])
def test_no_family_is_accused_of_its_overflows(family, run):
    """Assert it of every change, and that one of them overflows."""
    found = [not_finite(changed(family, change), run) for change in CHANGES]
    assert np.max(found) > 0, found
