"""Assert that blocks of every family of transformers are found and verified."""

import numpy as np
import pytest

import lyapunov
from oracles.checkpoints.configurations import CASES, CONFIGURATIONS


pytest.importorskip("transformers")

import torch

from oracles.checkpoints.transformers import make


# Blocks of a recurrence that is watched, by the class in transformers.
BLOCKS = {
    "mamba": ("MambaMixer", "mamba1"),
    "falcon_mamba": ("FalconMambaMixer", "mamba1"),
    "jamba": ("JambaMambaMixer", "mamba1"),
    "zamba": ("ZambaMambaMixer", "mamba1"),
    "mamba2": ("Mamba2Mixer", "mamba2"),
    "bamba": ("BambaMixer", "mamba2"),
    "granitemoehybrid": ("GraniteMoeHybridMambaLayer", "mamba2"),
    "falcon_h1": ("FalconH1Mixer", "mamba2"),
    "nemotron_h": ("NemotronHMamba2Mixer", "mamba2"),
    "zamba2": ("Zamba2MambaMixer", "mamba2"),
    "qwen3_next": ("Qwen3NextGatedDeltaNet", "gated_delta"),
    "qwen3_5": ("Qwen3_5GatedDeltaNet", "gated_delta"),
    "olmo_hybrid": ("OlmoHybridGatedDeltaNet", "gated_delta"),
    "kimi_linear": ("KimiLinearDeltaAttention", "kimi_delta"),
    "recurrent_gemma": ("RecurrentGemmaRecurrentBlock", "rg_lru"),
    "rwkv": ("RwkvSelfAttention", "rwkv4"),
    "xlstm": ("xLSTMLayer", "mlstm"),
}


SMALL = {"vocab_size": 40, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1}


class Around(torch.nn.Module):
    """One block of a model, and a head that is nobody's."""

    def __init__(self, block: torch.nn.Module, width: int):
        super().__init__()
        self.block, self.head = block, torch.nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if type(self.block).__name__ == "RecurrentGemmaRecurrentBlock":
            places = torch.arange(x.shape[1])[None]
            out = self.block(x, places, None, False)
        else:
            out = self.block(x)
        return self.head(out[0] if isinstance(out, tuple) else out)


def block_of(family: str) -> tuple[torch.nn.Module, int]:
    """A block of a small model of this family, and its width."""
    small = [CONFIGURATIONS[one][name] for one, name in CASES if one == family]
    for settings in small or [SMALL]:
        network = make(family, **settings)
        for module in network.modules():
            if type(module).__name__ == BLOCKS[family][0]:
                return module, network.config.hidden_size
    raise AssertionError(f"no model of {family} has a {BLOCKS[family][0]}")


# One of each way in which a block is known: tensors, and its class.
QUICK = ("falcon_mamba", "zamba")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(one, marks=[] if one in QUICK else [pytest.mark.slow])
        for one in BLOCKS
    ],
)
def test_every_familys_block_is_watched(family):
    """Assert that it is verified, and has negative exponents of its kind."""
    block, width = block_of(family)
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 12, width)))
    network = Around(block, width).eval()
    report = lyapunov.watch(network, measure="none")(x.float())
    (row,) = report.exponents.layers
    assert (row.kind, row.module) == (BLOCKS[family][1], "block")
    assert row.max is not None
    assert row.max < 0
    assert "what it gave in fp32" in report.assumptions[0]


@pytest.mark.slow
@pytest.mark.parametrize("norm", [torch.nn.RMSNorm, torch.nn.LayerNorm])
def test_a_norm_that_a_kind_does_not_have_is_left_in_front(norm):
    """A delta rule behind an RMSNorm is taken with it, behind a LayerNorm alone."""
    block, width = block_of("qwen3_next")
    network = Around(torch.nn.Sequential(norm(width, eps=1e-5), block), width).eval()
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 12, width)))
    report = lyapunov.watch(network, measure="none")(x.float())
    told = " behind its norm" in report.assumptions[0]
    assert told == (norm is torch.nn.RMSNorm)
