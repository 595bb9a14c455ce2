"""Tokens of a sublayer a block at a time, where all at once would take much memory."""

from collections.abc import Callable
from typing import Any

from .._devices import device_memory, in_batch
from ..arithmetic import AbstractArithmetic


ENTRIES_AT_ONCE = 2**23
"""Entries of a sublayer's widest tensor, of all sequences, that are held at once: 64
MiB in fp64. Of more, tokens go through in blocks; on a GPU of more than it has room for
TENSORS of, since there a block costs launches and the ends of its kernels."""
TENSORS = 200
"""Twice what four passes side by side hold, one for each worker of a check."""


def in_token_blocks(
    at: AbstractArithmetic,
    flow: Callable,
    x: Any,
    p: Any,
    start: Any,
    *,
    widest: int,
    multiple: int = 1,
) -> tuple[Any, Any]:
    """Run a flow whose tokens meet in nothing but the state that it hands on.

    **Arguments:**

    - `flow`: `(at, x, p, start) -> (output, after)`, as of a sublayer.
    - `widest`, `multiple`: as for `tokens_at_once`.
    """

    def block(at, state, x):
        output, after = flow(at, x, p, state)
        return after, output

    after, output = at.in_row_blocks(block, start, x, tokens_at_once(widest, multiple))
    return output, after


def tokens_at_once(widest: int, multiple: int = 1, sequences: int | None = None) -> int:
    """Count the tokens of a sequence that are held at once; two at least.

    A power of two, so that most texts fall into equal blocks, which are one program.

    **Arguments:**

    - `widest`: entries a token of the sublayer's widest tensor.
    - `multiple`: tokens that stay together, such as a chunk's.
    - `sequences`: of the batch; None: those that `over_batch` runs side by side.
    """
    side_by_side = in_batch() if sequences is None else sequences
    entries = max(ENTRIES_AT_ONCE, device_memory() // (8 * TENSORS))
    tokens = max(2, entries // (widest * side_by_side))
    tokens = 2 ** (tokens.bit_length() - 1)
    return max(tokens // multiple, 1) * multiple
