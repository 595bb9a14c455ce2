"""A torch module that somebody runs, and then is as it was."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def undisturbed(module: Any) -> Iterator[None]:
    """No gradients; buffers and random numbers as they were afterwards."""
    torch = sys.modules["torch"]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    devices = {b.device for b in (*module.parameters(), *module.buffers())}
    indices = [d.index or 0 for d in devices if d.type == "cuda"]
    with torch.random.fork_rng(devices=indices), torch.no_grad():
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Every submodule in `eval` mode, and in its own mode afterwards."""
    modes = [(one, one.training) for one in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for one, mode in modes:
            one.training = mode
