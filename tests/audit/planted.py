"""Faults planted in what transformers hands from one token to the next, or is told.

Each is a function of what a call is given, run before every step of the whole network.
The library's own cache and modules compute everything else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


LATE = 5
"""The token at whose step a fault begins that does not begin with the text."""

NARROW = torch.float8_e4m3fn
"""Three bits, where fp32 is declared of a state, and bf16 of keys and values."""


@dataclass
class Step:
    """What one step is given: of token `token`, with what was kept of those before."""

    token: int
    tensors: list[torch.Tensor]
    """What it is handed: states or windows (batch, ...), or keys and values
    (batch, heads, tokens, channels)."""
    named: dict[str, Any]
    kept: list[torch.Tensor] = field(default_factory=list)


def lost(step: Step) -> None:
    """Nothing is left of all tokens so far."""
    if step.token == LATE:
        for tensor in step.tensors:
            tensor.zero_()


def of_another_row(step: Step) -> None:
    """Rows of a batch are exchanged."""
    if step.token == LATE:
        for tensor in step.tensors:
            tensor.copy_(tensor.roll(1, 0))


def narrow(step: Step) -> None:
    """What is handed on is rounded to a worse format at each token."""
    for tensor in step.tensors:
        tensor.copy_(tensor.to(NARROW).to(tensor.dtype))


def stale_state(step: Step) -> None:
    """It is no longer updated: what the token before LATE read is read ever after."""
    if step.token == LATE - 1:
        step.kept[:] = [tensor.clone() for tensor in step.tensors]
    if step.token >= LATE:
        _give(step.tensors, step.kept)


def late_state(step: Step) -> None:
    """What a token leaves is read by the second one behind it."""
    now = [tensor.clone() for tensor in step.tensors]
    if step.token > 0:
        _give(step.tensors, step.kept)
    step.kept[:] = now


def stale_keys(step: Step) -> None:
    """New rows are those of the token before LATE's."""
    for tensor in step.tensors if step.token >= LATE else ():
        tensor[..., LATE - 1 :, :] = tensor[..., LATE - 2 : LATE - 1, :].clone()


def late_keys(step: Step) -> None:
    """A row is there one token later than it should be."""
    if step.token > 1:
        for tensor, row in zip(step.tensors, step.kept, strict=True):
            tensor[..., -2, :] = row
    if step.token > 0:
        step.kept[:] = [tensor[..., -1, :].clone() for tensor in step.tensors]
        for tensor in step.tensors:
            tensor[..., -1, :] = 0


def wrong_position(step: Step) -> None:
    """A token is said to stand where the one before it does."""
    if step.token == LATE:
        step.named["position_ids"] = step.named["position_ids"] - 1


def _give(tensors, kept):
    for tensor, before in zip(tensors, kept, strict=True):
        tensor.copy_(before)


def handed(cache: Any, what: str) -> list[torch.Tensor]:
    """States, windows, or keys and values of all layers of a cache."""
    found = []
    for layer in cache.layers:
        if what == "keys":
            arrays = [getattr(layer, name, None) for name in ("keys", "values")]
        else:
            arrays = getattr(layer, what, {}).values()
        found += [array for array in arrays if array is not None]
    return found


def plant(network: Any, fault: Callable[[Step], None], what: str, slot: str) -> None:
    """Let a fault into every step from a cache that holds no token yet.

    **Arguments:**

    - `what`: `recurrent_states`, `conv_states` or `keys`.
    - `slot`: the argument that takes the cache.
    """
    calls, kept = [], []

    def before(module, given, named):
        calls.append(1)
        # the first call makes the cache, and is of no token
        if len(calls) > 1:
            tensors = handed(named[slot], what)
            fault(Step(len(calls) - 2, tensors, named, kept))
        return given, named

    network.register_forward_pre_hook(before, with_kwargs=True)


def without_mask(network: Any) -> None:
    """Padding is as good as text.

    The mask is not left out: transformers would then take positions that begin anew for
    texts that are packed, and part the padding from the text after all.
    """

    def before(module, given, named):
        mask = torch.ones_like(named["attention_mask"])
        return given, named | {"attention_mask": mask}

    network.register_forward_pre_hook(before, with_kwargs=True)
