"""One forward pass of several sequences, packed one behind another, as vLLM plans it.

After `_compute_chunk_metadata` and `compute_causal_conv1d_metadata` of vLLM 0.33.0
(`v1/attention/backends/mamba_attn.py`, `utils.py`).
"""

from collections.abc import Sequence
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, NamedTuple

from ._stand_in import PADDING


CONV_TOKENS = 8
"""Of a sequence that a program of the convolution takes (`BLOCK_M`)."""


class Pass(NamedTuple):
    """Tokens of each sequence in one forward pass: all prefill, or a step each."""

    lengths: tuple[int, ...]
    done: tuple[int, ...]
    """Tokens of each sequence before these."""
    steps: bool
    """Whether the kernels of steps run it."""
    slots: Any
    """(sequences) int32: where a cache holds each sequence; of windows of drafts
    (sequences, tokens): where it holds what each token leaves."""
    starts: Any
    """(sequences + 1) int32: where the tokens of each begin, and the end."""
    resumed: Any
    """(sequences) bool: whether a cache holds what came before."""
    turn: int = 0
    """Steps before this one since the last prefill."""
    accepted: Any = None
    """(sequences) int32, of windows of drafts: tokens of the window before that were
    kept, 1 behind a prefill; None: a token a sequence."""

    @property
    def resumes(self) -> bool:
        """Whether any sequence has tokens before these."""
        return any(self.done)


def packed_pass(
    lengths: Sequence[int],
    done: Sequence[int],
    steps: bool,
    slots: Any,
    turn: int = 0,
    accepted: Any = None,
) -> Pass:
    """Plan a forward pass.

    **Arguments:** as the fields of `Pass`.
    """
    import torch

    device = slots.device
    return Pass(
        tuple(lengths),
        tuple(done),
        steps,
        slots,
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
        torch.tensor([n > 0 for n in done], device=device),
        turn,
        accepted,
    )


class Chunks(NamedTuple):
    """Where the scan's chunks lie in the packed tokens; all int32."""

    ends: Any
    """(chunks + 1): where each begins, and the end of the last."""
    sequence: Any
    """(chunks): whose it is."""
    last: Any
    """(sequences): the last one of each."""


def chunks_of(plan: Pass, size: int) -> Chunks:
    """Cut the sequences into chunks, at multiples of `size` of their own positions."""
    import torch

    ends, owner, last = [0], [], []
    for i, (length, done) in enumerate(zip(plan.lengths, plan.done, strict=True)):
        begin = ends[-1]
        ends += [begin + end for end in chunk_ends(done, length, size)]
        owner += [i] * (len(ends) - 1 - len(owner))
        last.append(len(owner) - 1)
    whole = lambda x: torch.tensor(x, dtype=torch.int32, device=plan.slots.device)
    return Chunks(whole(ends), whole(owner), whole(last))


def chunk_ends(done: int, length: int, size: int) -> list[int]:
    """Where chunks of a sequence's next tokens end, from the first of them.

    **Arguments:**

    - `done`: tokens before them. `length`: of them. `size`: tokens of a chunk.
    """
    return [*range(size - done % size, length, size), length]


def conv_programs(plan: Pass) -> SimpleNamespace:
    """Which program of the convolution takes which tokens, as its caller hands it."""
    import torch

    owner, block = [], []
    for i, length in enumerate(plan.lengths):
        count = -(-length // CONV_TOKENS)
        owner += [i] * count
        block += range(count)
    room = 2 * max(1024, len(owner))

    def filled(numbers: list[int]):
        found = torch.full((room,), PADDING, dtype=torch.int32)
        found[: len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
        return found.to(plan.slots.device)

    pointers = {"batch_ptr": filled(owner), "token_chunk_offset_ptr": filled(block)}
    known = {"tot": len(owner), "mlist_len": len(owner), **pointers}
    known |= {"mlist": owner, "offsetlist": block}
    return SimpleNamespace(nums_dict={CONV_TOKENS: known}, **pointers)
