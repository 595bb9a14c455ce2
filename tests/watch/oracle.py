"""Exponents of blocks in NumPy, from what hooks of the test saw."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from oracles.networks.mamba_ssm import convolved, silu


@contextmanager
def seen_by_hooks(network: Any, names: list[str]) -> Iterator[list[np.ndarray]]:
    """What the modules of these names read, (batch, seq, width) a call, in fp64."""
    seen: list[np.ndarray] = []
    hook = lambda module, given: seen.append(given[0].detach().double().numpy())
    modules = dict(network.named_modules())
    handles = [modules[name].register_forward_pre_hook(hook) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def weights_of(block: torch.nn.Module) -> dict[str, np.ndarray]:
    """The block's parameters in fp64."""
    return {n: p.detach().double().numpy() for n, p in block.named_parameters()}


def softplus(x):
    return np.logaddexp(0.0, x)


def of_mamba1(read: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """Exponents (channels, states): the mean of dt A over all tokens."""
    inner = len(w["A_log"])
    rank = w["dt_proj.weight"].shape[1]
    steps = []
    for row in read:
        u = (row @ w["in_proj.weight"].T)[:, :inner]
        u = silu(convolved(u, w["conv1d.weight"], w["conv1d.bias"]))
        low = (u @ w["x_proj.weight"].T)[:, :rank]
        steps.append(softplus(low @ w["dt_proj.weight"].T + w["dt_proj.bias"]))
    return -np.exp(w["A_log"]) * np.mean(steps, axis=(0, 1))[:, None]


def of_mamba2(read: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """Exponents (heads)."""
    heads = len(w["A_log"])
    rows = w["in_proj.weight"][-heads:]
    dt = softplus(read @ rows.T + w["dt_bias"])
    return -np.exp(w["A_log"]) * dt.mean(axis=(0, 1))


def of_mamba3(read: np.ndarray, w: dict[str, np.ndarray], angles: int) -> np.ndarray:
    """Exponents (heads), of a rate that depends on the token."""
    heads = len(w["D"])
    first = len(w["in_proj.weight"]) - angles - 3 * heads
    dt, rate = (
        read @ w["in_proj.weight"][first + i * heads : first + (i + 1) * heads].T
        for i in range(2)
    )
    log_decay = -np.maximum(softplus(rate), 1e-4) * softplus(dt + w["dt_bias"])
    return log_decay.mean(axis=(0, 1))
