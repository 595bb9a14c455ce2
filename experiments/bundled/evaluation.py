"""Bits per byte of documents, each byte scored once and with a long context."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from .model import Model


# A scored byte has CONTEXT bytes or more before it, but for a document's first ones.
CONTEXT = 1024
WINDOW = 2 * CONTEXT
OPENING = 2048  # bytes of heldout.txt whose score is recorded for quick checks


def _windows(text: bytes, context: int) -> Iterator[tuple[bytes, int]]:
    """Windows of a document, each with the number of leading bytes not to score."""
    yield text[: 2 * context], 1  # nothing predicts the first byte
    for start in range(context, len(text) - context, context):
        yield text[start : start + 2 * context], context


@torch.no_grad()
def bits_per_byte(
    model: Model, text: bytes, device: torch.device, batch: int, context: int = CONTEXT
) -> tuple[float, int]:
    """Total bits in fp32 for a document, and the number of bytes scored.

    Windows are twice `context` long, and the first half is scored in the first alone.
    """
    model.eval()
    windows = list(_windows(text, context))
    bits, scored = 0.0, 0
    for at in range(0, len(windows), batch):
        group = windows[at : at + batch]
        longest = max(len(window) for window, _ in group)
        # Zeros at the right do not reach what is before them: the model is causal.
        padded = b"".join(window.ljust(longest, b"\0") for window, _ in group)
        ids = torch.frombuffer(bytearray(padded), dtype=torch.uint8)
        ids = ids.reshape(len(group), longest).to(device).long()
        logits = model(ids, use_cache=False).logits
        nats = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).double(),
            ids[:, 1:].flatten(),
            reduction="none",
        ).reshape(len(group), -1)
        for row, (window, skip) in zip(nats, group, strict=True):
            bits += row[skip - 1 : len(window) - 1].sum().item() / math.log(2)
            scored += len(window) - skip
    return bits, scored


def evaluate(
    model: Model,
    texts: list[bytes],
    device: torch.device,
    batch: int,
    context: int = CONTEXT,
) -> tuple[float, list[float], int]:
    """Bits per byte over all documents and for each one, and the bytes scored."""
    pairs = [bits_per_byte(model, text, device, batch, context) for text in texts]
    total, scored = (sum(column) for column in zip(*pairs, strict=True))
    return total / scored, [bits / n for bits, n in pairs], int(scored)


def opening(model: Model, text: bytes, device: torch.device) -> float:
    """Bits per byte of a text's first `OPENING` bytes."""
    bits, scored = bits_per_byte(model, text[:OPENING], device, 1)
    return bits / scored
