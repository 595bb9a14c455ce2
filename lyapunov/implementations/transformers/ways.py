"""The calls that transformers' networks are given for each way to run a text.

They are those of its users: `attention_mask` for padding, the cache from one call to
the next, and to what sees positions the positions, as `generate` says them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from .._company import company, in_company
from .._ways import Variant


class Planned(NamedTuple):
    """One call of a network, and where in it the audited text is."""

    ids: Int[np.ndarray, "rows tokens"]
    positions: Int[np.ndarray, "rows tokens"]
    mask: Int[np.ndarray, "rows so_far"] | None = None
    """1 where a token is none of padding, of this call and of those before it."""
    rows: slice = slice(None)
    columns: slice = slice(None)


def planned(tokens: Int[np.ndarray, "batch seq"], variant: Variant) -> list[Planned]:
    """The calls of a way; those with padding or a batch run the first text, beside the
    others or shifted copies of it."""
    seq = tokens.shape[1]
    if variant.kind == "batched":
        ids, own = in_company(tokens, variant.row)
        return [Planned(ids, _counted(ids, 0), rows=own)]
    if variant.kind.startswith("padded"):
        return _padded(tokens, variant)
    calls = []
    for call in variant.calls(seq):
        size = 1 if call.decode else call.stop - call.start
        for first in range(call.start, call.stop, size):
            ids = tokens[:, first : first + size]
            calls.append(Planned(ids, _counted(ids, first)))
    return calls


def _counted(ids, first: int):
    return np.broadcast_to(first + np.arange(ids.shape[1]), ids.shape)


def _padded(tokens, variant: Variant) -> list[Planned]:
    """Row 0 is the text with padding, row 1 another text without."""
    seq, pads = tokens.shape[1], variant.numbers[0]
    prompt = variant.prompt or seq
    other = np.resize(company(tokens, 1), (1, seq + pads))
    text, filler = tokens[:1, :prompt], np.zeros((1, pads), tokens.dtype)
    shown, hidden = np.ones((1, prompt), np.int64), np.zeros((1, pads), np.int64)
    left = variant.kind == "padded_left"
    columns = slice(pads, None) if left else slice(0, prompt)
    order = slice(None, None, -1 if left else 1)
    padded = np.concatenate([text, filler][order], axis=1)
    mask = np.concatenate([shown, hidden][order], axis=1)
    mask = np.concatenate([mask, np.ones_like(mask)])
    ids = np.concatenate([padded, other[:, : prompt + pads]])
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    calls = [Planned(ids, positions, mask, slice(0, 1), columns)]
    for t in range(prompt, seq):
        beside = other[:, t + pads : t + pads + 1]
        ids = np.concatenate([tokens[:1, t : t + 1], beside])
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        calls.append(Planned(ids, np.sum(mask, 1)[:, None] - 1, mask, slice(0, 1)))
    return calls
