"""Experts that a bias chooses and no token asks for: sums of next to nothing."""

import importlib
import inspect

import numpy as np
import pytest

import lyapunov
from oracles.checkpoints.configurations import NEMOTRON
from oracles.checkpoints.transformers import logits, make, save, tolerance


TOKENS = np.arange(12)


def test_nemotron_s_shares_have_its_floor(tmp_path, monkeypatch):
    """Assert transformers' logits where the chosen sigmoids add up to less than the
    1e-20 beside their sum."""
    import torch

    kinds = ["linear_attention", "moe"]
    network = make("nemotron_h", **NEMOTRON, layers_block_type=kinds)
    (router,) = [m for m in network.modules() if hasattr(m, "e_score_correction_bias")]
    asked = []
    with torch.no_grad():
        router.weight.mul_(60.0)
        router.e_score_correction_bias.copy_(1e3 * torch.arange(4.0))
    router.register_forward_hook(lambda _, __, out: asked.append(out))
    model = lyapunov.load(save(network, tmp_path / "model"))
    expected, allowed = logits(network, TOKENS), tolerance(network, TOKENS)
    scores = torch.sigmoid(asked[-1][0]).reshape(len(TOKENS), 4)
    sums = scores[:, -2:].sum(1)
    assert (sums < 1e-20).any()
    found = np.asarray(model.logits(TOKENS))
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed)
    monkeypatch.setattr("lyapunov.checkpoints.families._nemotron_h.SHARE_FLOOR", 0.0)
    without = np.asarray(lyapunov.load(tmp_path / "model").logits(TOKENS))
    assert np.abs(without - expected).max() > 10 * allowed


@pytest.mark.parametrize(
    "family", ["nemotron_h", "granitemoehybrid", "jamba", "mixtral"]
)
def test_a_floor_is_declared_where_the_library_has_one(family):
    """Assert it from the modeling file, so that another family's is noticed."""
    name = f"transformers.models.{family}.modeling_{family}"
    source = inspect.getsource(importlib.import_module(name))
    assert ("1e-20" in source) == (family == "nemotron_h")
