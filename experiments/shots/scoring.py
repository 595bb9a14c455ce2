"""How likely a network finds an answer, and which of the choices it takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from experiments.finetuning.networks import Tuned

from .documents import Document


_MULTIPLE = 64  # lengths are rounded up to it: Triton compiles for few of them
_TOKENS = 2**16  # read at a time, padding included; fewer for large vocabularies
_SMALL = 1024  # entries of a vocabulary

Pair = tuple[Sequence[int], Sequence[int]]  # ids read, ids told


@torch.no_grad()
def log_likelihoods(
    network: Tuned, pairs: Sequence[Pair], device: torch.device, progress: Any = None
) -> list[tuple[float, bool]]:
    """Of each pair: log probability of what is told, and whether it's the likeliest.

    Nats, fp64 sums of an fp32 forward's log-softmax. Longest pairs come first.
    """
    order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
    found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    # a CPU's caches hold the states of few texts
    tokens = _TOKENS if device.type == "cuda" else _TOKENS // 16
    at, most = 0, tokens
    while at < len(order):
        length = sum(map(len, pairs[order[at]]))
        length += -length % _MULTIPLE
        group = order[at : at + max(1, most // length)]
        at += len(group)
        ids = torch.zeros(len(group), length, dtype=torch.long)
        for row, i in enumerate(group):
            both = [*pairs[i][0], *pairs[i][1]]
            ids[row, : len(both)] = torch.tensor(both)
        logits = network(ids.to(device))
        most = tokens if logits.shape[-1] <= _SMALL else tokens // 8
        for row, i in enumerate(group):
            read, told = pairs[i]
            of = logits[row, len(read) - 1 : len(read) + len(told) - 1]
            wanted = torch.tensor(list(told), device=device)
            nats = of.double().log_softmax(-1).gather(-1, wanted[:, None])
            likeliest = bool((of.argmax(-1) == wanted).all())
            found[i] = (nats.sum().item(), likeliest)
        if progress is not None:
            progress(at, len(order))
    return found


def answered(
    network: Tuned,
    asked: Sequence[Document],
    device: torch.device,
    progress: Any = None,
) -> np.ndarray:
    """Whether the likeliest choice is the right one, for each question.

    As lm-eval's `acc`: sums of log probabilities, not divided by length; of equal ones
    the first.
    """
    pairs = []
    for one in asked:
        read = network.encode(one.before + one.prompt)
        pairs += [(read, network.encode(choice)) for choice in one.choices]
    scores = log_likelihoods(network, pairs, device, progress)
    right, at = [], 0
    for one in asked:
        own = [nats for nats, _ in scores[at : at + len(one.choices)]]
        right.append(int(np.argmax(own)) == one.right)
        at += len(one.choices)
    return np.array(right)
