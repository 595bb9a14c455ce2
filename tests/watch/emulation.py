"""A Mamba-1 block of a network in bf16, by NumPy, inside the network's own forward."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import torch

from oracles.kernels.mamba1 import Kernel, cast, held

from .networks import SequenceFirst


class StateIn8Bits(Kernel):
    """The state goes from token to token in e4m3; what a token reads is not rounded."""

    def scan(self, a, b):
        kept = np.zeros_like(b[0])
        states = []
        for decay, drive in zip(a, b, strict=True):
            states.append(self.fma(drive, decay, kept))
            narrow = states[-1].astype(ml_dtypes.float8_e4m3fn)
            kept = narrow.astype(np.float32)
        return np.stack(states)


def in_bf16(block: Any, read: np.ndarray, kernel: type[Kernel] = Kernel) -> np.ndarray:
    """What mamba_ssm's kernels store of the block, (batch, seq, width)."""
    stored = {n: p.detach().float().numpy() for n, p in block.named_parameters()}
    stored["conv1d.weight"] = stored["conv1d.weight"][:, 0]
    run = kernel(held(stored, "bf16"), "bf16")
    outputs = []
    for row in read:
        xz = run.xz(cast(row.astype(np.float32), "bf16"))
        conv = run.conv(xz)
        low = run.x_proj(conv)
        outputs.append(run.out(run.gated(xz, conv, low, run.dt(low))))
    return np.stack(outputs)


@contextmanager
def emulated_in_place(
    network: Any, names: list[str], kernel: type[Kernel] = Kernel
) -> Iterator[None]:
    """The blocks of these names give what the kernel stores."""
    blocks = [network.get_submodule(name) for name in names]
    try:
        for block in blocks:

            def forward(x: torch.Tensor, block: Any = block) -> torch.Tensor:
                swapped = isinstance(block, SequenceFirst)
                read = x.transpose(0, 1) if swapped else x
                made = in_bf16(block, read.detach().numpy(), kernel)
                made = made.swapaxes(0, 1) if swapped else made
                return torch.from_numpy(made).to(x.dtype)

            block.forward = forward
        yield
    finally:
        for block in blocks:
            del block.forward
