"""One forward pass of several sequences, packed one behind another, as vLLM plans it.

After `_compute_chunk_metadata` and `compute_causal_conv1d_metadata` of vLLM 0.33.0
(`v1/attention/backends/mamba_attn.py`, `utils.py`).
"""

from collections.abc import Sequence
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, NamedTuple

from ._schedule import Part, Turn
from ._stand_in import NULL_SLOT, PADDING


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
    turns: Any = None
    """(sequences) int32: steps of each before this one since its last prefill; None
    where no ring asks."""
    accepted: Any = None
    """(sequences) int32, of windows of drafts: tokens of the window before that were
    kept, 1 behind a prefill; None: a token a sequence."""
    blocks: tuple[int, ...] = ()
    """Behind how many tokens of each sequence its state is kept, 0: not; none: of
    none."""
    block_slots: Any = None
    """(sequences) int32: where."""

    @property
    def resumes(self) -> bool:
        """Whether any sequence has tokens before these."""
        return any(self.done)


def packed_pass(
    lengths: Sequence[int],
    done: Sequence[int],
    steps: bool,
    slots: Any,
    turns: Any = None,
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
        turns,
        accepted,
    )


class Planned:
    """Plan forward passes one after another, and keep what goes on from one to the
    next.

    **Arguments:**

    - `device`: torch's.
    """

    def __init__(self, device: Any):
        self._device = device
        self._turns: dict[int, int] = {}
        self._accepted: dict[int, int] = {}
        self._slots: dict[tuple[tuple[int, int], ...], Any] = {}

    def plans(self, turn: Turn) -> tuple[Pass, ...]:
        """What the kernels are told of a pass: steps, then prefills, as far as it has
        any."""
        steps = [part for part in turn.parts if part.steps]
        prefills = [part for part in turn.parts if not part.steps]
        assert list(turn.parts) == steps + prefills, "steps stand in front"
        return tuple(self._plan(parts) for parts in (steps, prefills) if parts)

    def _plan(self, parts: Sequence[Part]) -> Pass:
        import torch

        whole = lambda numbers: torch.tensor(
            numbers, dtype=torch.int32, device=self._device
        )
        steps, own = parts[0].steps, [part.slot for part in parts]
        windows = steps and len(parts[0].ids) > 1
        plan = packed_pass(
            [len(part.ids) for part in parts],
            [part.begin for part in parts],
            steps,
            self._slots_of(parts, windows),
            whole([self._turns.get(slot, 0) for slot in own]),
            whole([self._accepted.get(slot, 1) for slot in own]) if windows else None,
        )
        for part in parts:
            self._turns[part.slot] = self._turns.get(part.slot, 0) + 1 if steps else 0
            self._accepted[part.slot] = part.kept
        if any(part.block for part in parts):
            kept = [part.block or (0, NULL_SLOT) for part in parts]
            plan = plan._replace(
                blocks=tuple(behind for behind, _ in kept),
                block_slots=whole([slot for _, slot in kept]),
            )
        return plan

    def _slots_of(self, parts: Sequence[Part], windows: bool) -> Any:
        """Sent once: long decodes have the same ones at every step."""
        import torch

        key = tuple((part.slot, len(part.ids) if windows else 1) for part in parts)
        if key not in self._slots:
            own = [list(range(slot, slot + width)) for slot, width in key]
            found = torch.tensor(own, dtype=torch.int32, device=self._device)
            self._slots[key] = found if windows else found[:, 0].contiguous()
        return self._slots[key]


class Chunks(NamedTuple):
    """Where the scan's chunks lie in the packed tokens; all int32."""

    ends: Any
    """(chunks + 1): where each begins, and the end of the last."""
    sequence: Any
    """(chunks): whose it is."""
    last: Any
    """(sequences): the last one of each."""
    block: Any
    """(sequences): the one at whose end the state of each is kept, 0 where it is not;
    None: it is kept of none."""


def chunks_of(plan: Pass, size: int) -> Chunks:
    """Cut the sequences into chunks, at multiples of `size` of their own positions, and
    where a state is kept."""
    import torch

    ends, owner, last, kept = [0], [], [], []
    blocks = plan.blocks or (0,) * len(plan.lengths)
    for i, (length, done) in enumerate(zip(plan.lengths, plan.done, strict=True)):
        begin = ends[-1]
        own = {*chunk_ends(done, length, size), blocks[i]} - {0}
        ends += [begin + end for end in sorted(own)]
        kept.append(ends.index(begin + blocks[i]) - 1 if blocks[i] else 0)
        owner += [i] * (len(ends) - 1 - len(owner))
        last.append(len(owner) - 1)
    whole = lambda x: torch.tensor(x, dtype=torch.int32, device=plan.slots.device)
    block = whole(kept) if any(blocks) else None
    return Chunks(whole(ends), whole(owner), whole(last), block)


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
