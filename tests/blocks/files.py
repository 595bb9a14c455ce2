"""Files of weights for the tests: three blocks of three kinds, saved as people do."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.watch.networks import (
    LENGTH,
    WIDTH,
    Mamba1Block,
    Mamba3Block,
    mamba2_block,
)


OPTIONS = {
    "first": {"activation": "silu", "weightless_norm_epsilon": None},
    "second": {
        "activation": "silu",
        "groups": 2,
        "chunk": 16,
        "dt_limit": [0.0, float("inf")],
        "gate_norm_epsilon": 1e-5,
        "norm_groups": 2,
        "norm_before_gate": False,
    },
    "third": {"chunk": 16, "least_rate": 1e-4, "mixer_norm_epsilon": 1e-5},
}
"""What the tensors of each block do not say."""
BLOCKS = {"first": Mamba1Block, "second": mamba2_block, "third": Mamba3Block}


class Network(nn.Module):
    """Blocks without a configuration, between an embedding and a head."""

    def __init__(self, names: tuple[str, ...] = tuple(BLOCKS)):
        super().__init__()
        self.embed = nn.Embedding(5, WIDTH)
        for name in names:
            self.add_module(name, BLOCKS[name]())
        self.head = nn.Linear(WIDTH, 5)


def network(*names: str) -> Network:
    """The same weights every time."""
    torch.manual_seed(3)
    return Network(names or tuple(BLOCKS))


def drawn(length: int = LENGTH, width: int = WIDTH) -> torch.Tensor:
    """What a block reads, (2, length, width)."""
    values = np.random.default_rng(4).standard_normal((2, length, width))
    return torch.from_numpy(values.astype(np.float32))


def saved(path: Path, what: Any) -> Path:
    """`what` as `torch.save` writes it."""
    torch.save(what, path)
    return path
