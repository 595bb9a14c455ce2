"""Which tokens go through in which forward pass, and which slots hold what they leave.

After vLLM 0.33.0: steps stand in front of prefills (`reorder_batch`); with prefix
caching a state is kept in a block at a block's end, within a prefill, too
(`store_prefill_checkpoint`), and is copied before a request goes on from it
(`preprocess_mamba`), as when a block is full (`v1/worker/mamba_utils.py`); who is
thrown out begins anew, in slots that others have written meanwhile.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .._company import company, in_company
from .._implementation import RefusedError
from .._segment import Segment
from .._ways import Variant


MIXED_EVERY = 8
"""Steps of a text from one that has a prefill beside it to the next."""
BESIDE = 11
"""Tokens of such a prefill."""


class Drafts(NamedTuple):
    """Steps that are made in one call, and how many of them are kept."""

    tokens: int
    kept: int


ONE = Drafts(1, 1)


class Part(NamedTuple):
    """Tokens of one request in one forward pass."""

    ids: np.ndarray
    """(tokens), of a window of drafts those that are thrown away, too."""
    begin: int
    """Tokens of the request before these."""
    slot: int
    """The first one that it has, of a window as many as it has tokens."""
    steps: bool = False
    seen: int = 0
    """How many of its first tokens are of the text that is recorded."""
    kept: int = 1
    """Tokens of a window that the next one goes on behind."""
    block: tuple[int, int] | None = None
    """Behind how many of the tokens of a prefill the state is kept, and in which
    slot."""


class Turn(NamedTuple):
    """One forward pass."""

    parts: tuple[Part, ...]
    """Steps first."""
    copies: tuple[tuple[int, int], ...] = ()
    """Slots that are copied in front of it: from, to."""


class Text(NamedTuple):
    """A request."""

    ids: np.ndarray
    """(tokens)."""
    slot: int
    recorded: bool = True
    drafts: Drafts = ONE

    def prefill(self, begin: int, end: int) -> Part:
        """Several tokens in one call."""
        own = self.ids[begin:end]
        return Part(own, begin, self.slot, seen=len(own) if self.recorded else 0)

    def step(self, begin: int, end: int, vocabulary: int) -> Part:
        """Tokens that are kept of one call of steps."""
        kept, width = end - begin, self.drafts.tokens
        window = np.resize(self.ids[begin : begin + width], width)
        # others than the text's, so that a state behind them is told
        window[kept:] = (window[kept:] + 1) % vocabulary
        seen = kept if self.recorded else 0
        return Part(window, begin, self.slot, True, seen, kept)


class Scheduler:
    """Plan the forward passes of a way to run a text.

    **Arguments:**

    - `vocabulary`: tokens there are. `drafts`: how steps are made.
    - `keeps`: behind how many tokens at least a prefill can keep a state on its way;
      None: it cannot.
    - `rest_is_step`: as of `Variant.calls`.
    """

    def __init__(
        self,
        vocabulary: int,
        drafts: Drafts = ONE,
        keeps: int | None = None,
        *,
        rest_is_step: bool = True,
    ):
        self._vocabulary = vocabulary
        self._rest_is_step = rest_is_step
        self._drafts = drafts
        self._keeps = keeps

    def turns(
        self, tokens: np.ndarray, variant: Variant, segments: Sequence[Segment]
    ) -> Iterator[Turn]:
        """The passes, one after another.

        **Arguments:**

        - `tokens`: (batch, seq). `segments`: the calls, of ways in which all rows are
          run alike.

        **Raises:** `RefusedError` for blocks that hold windows of drafts.
        """
        run = {
            "resumed": self._resumed,
            "preempted": self._preempted,
            "mixed": self._mixed,
        }.get(variant.kind)
        if run is None:
            yield from self._alike(self._rows(tokens, variant), segments)
            return
        if variant.kind != "mixed" and self._drafts.tokens > 1:
            raise RefusedError(
                "states of windows of drafts are not copied from block to block here",
                hint="leave out --speculative-config",
            )
        yield from run(tokens[0], company(tokens, 2), variant)

    def _text(self, ids: np.ndarray, place: int, *, recorded: bool = True) -> Text:
        """A request in slots of its own; slot 0 is nobody's."""
        return Text(ids, 1 + place * self._drafts.tokens, recorded, self._drafts)

    def _rows(self, tokens: np.ndarray, variant: Variant) -> list[Text]:
        """The requests that a way packs."""
        recorded = range(len(tokens))
        rows = list(tokens)
        if variant.kind == "batched":
            both, own = in_company(tokens, variant.row)
            rows, recorded = list(both), range(own.start, own.stop)
        elif variant.kind == "packed":
            other = np.resize(company(tokens, 1)[0], variant.numbers[0])
            rows, recorded = [other, tokens[0]], range(1, 2)
        return [
            self._text(row, i, recorded=i in recorded) for i, row in enumerate(rows)
        ]

    def _alike(
        self, rows: Sequence[Text], segments: Sequence[Segment]
    ) -> Iterator[Turn]:
        """All rows go through the same calls; shorter or longer ones in one call beside
        the first of them."""
        seq = segments[-1].stop
        alike, others = [], []
        for row in rows:
            same = row.recorded or len(row.ids) == seq
            (alike if same else others).append(row)
        for segment in segments:
            ends = self._ends(segment)
            for begin, end in zip((segment.start, *ends), ends, strict=False):
                own = [self._part(row, segment, begin, end) for row in alike]
                beside = [row.prefill(0, len(row.ids)) for row in others]
                others = []
                yield Turn(tuple(own + beside if own[0].steps else beside + own))

    def _ends(self, segment: Segment) -> list[int]:
        """Where the passes of a call end."""
        if segment.execution.mode != "decode":
            return [segment.stop]
        return [
            *range(segment.start + self._drafts.kept, segment.stop, self._drafts.kept),
            segment.stop,
        ]

    def _part(self, row: Text, segment: Segment, begin: int, end: int) -> Part:
        if segment.execution.mode == "decode":
            return row.step(begin, end, self._vocabulary)
        return row.prefill(begin, end)

    def _mixed(
        self, ids: np.ndarray, others: np.ndarray, variant: Variant
    ) -> Iterator[Turn]:
        """Another text's steps beside the prefill, and in front of the steps; now and
        then a piece of a third one's prefill behind them."""
        prompt, kept = variant.numbers[0], self._drafts.kept
        begin = min(5, len(ids))
        own = self._text(ids, 1)
        first = self._text(
            np.resize(others[0], begin + kept * (2 + len(ids))), 0, recorded=False
        )
        third = self._text(others[1], 2, recorded=False)
        yield Turn((first.prefill(0, begin),))

        def step(text: Text, at: int) -> Part:
            return text.step(at, at + kept, self._vocabulary)

        yield Turn((step(first, begin), own.prefill(0, prompt)))
        done = 0
        for count, at in enumerate(range(prompt, len(ids), kept)):
            begin += kept
            end = min(at + kept, len(ids))
            parts = [step(first, begin), own.step(at, end, self._vocabulary)]
            if count % MIXED_EVERY == 0:
                stop = min(done + BESIDE, len(third.ids))
                parts.append(third.prefill(done, stop))
                done = stop % len(third.ids)
            yield Turn(tuple(parts))

    def _resumed(
        self, ids: np.ndarray, others: np.ndarray, variant: Variant
    ) -> Iterator[Turn]:
        """Another text begins alike, and its state behind the block's end is kept."""
        block = variant.cached
        donor = np.concatenate([ids[:block], np.resize(others[0], len(ids))])
        begun, rest = Text(ids, 1), Text(donor, 2, recorded=False)
        if self._keeps is not None and block >= self._keeps:
            whole = rest.prefill(0, len(donor))
            yield Turn((whole._replace(seen=block, block=(block, begun.slot)),))
        else:
            yield Turn((begun.prefill(0, block),))
            yield Turn((rest.prefill(block, len(donor)),), ((begun.slot, rest.slot),))
        yield from self._blocks(ids, variant, begun.slot, 3)

    def _preempted(
        self, ids: np.ndarray, others: np.ndarray, variant: Variant
    ) -> Iterator[Turn]:
        """A text is thrown out, and another one takes the slot that it had last."""
        prompt, block = variant.numbers[0], variant.block
        if block is None:
            first = max(1, prompt // 2)
            own, slot = Text(ids, 1, recorded=False), 1
            yield Turn((own.prefill(0, first),))
            for t in range(first, prompt):
                yield Turn((own.step(t, t + 1, self._vocabulary),))
        else:
            own, slot = Text(ids, 1), 2
            yield Turn((own.prefill(0, variant.cached),))
            lost = Text(ids, slot, recorded=False)
            for t in range(variant.cached, prompt):
                copies = ((own.slot, slot),) if t == variant.cached else ()
                yield Turn((lost.step(t, t + 1, self._vocabulary),), copies)
        taken = Text(others[0], slot, recorded=False)
        yield Turn((taken.prefill(0, len(taken.ids)),))
        if block is not None:
            yield from self._blocks(ids, variant, own.slot, slot)
            return
        again = Text(ids, slot)
        yield Turn((again.prefill(0, prompt),))
        for t in range(prompt, len(ids)):
            yield Turn((again.step(t, t + 1, self._vocabulary),))

    def _blocks(
        self, ids: np.ndarray, variant: Variant, slot: int, fresh: int
    ) -> Iterator[Turn]:
        """Go on behind a state that is kept in `slot`; each block has a slot of its
        own, from `fresh` on."""
        begin, block = variant.cached, variant.block
        assert block is not None, "a way with blocks"
        for call in variant.calls(len(ids), rest_is_step=self._rest_is_step)[1:]:
            ends = range(call.start + 1, call.stop + 1) if call.decode else [call.stop]
            for end in ends:
                copies: tuple[tuple[int, int], ...] = ()
                if begin % block == 0:
                    copies = ((slot, fresh),)
                    slot, fresh = fresh, fresh + 1
                text = Text(ids, slot)
                part = (
                    text.step(begin, end, self._vocabulary)
                    if call.decode
                    else text.prefill(begin, end)
                )
                yield Turn((part,), copies)
                begin = end


def slots_of(turns: Sequence[Turn]) -> int:
    """How many slots a cache needs."""
    most = 0
    for turn in turns:
        for part in turn.parts:
            width = len(part.ids) if part.steps else 1
            most = max(most, part.slot + width - 1, part.block[1] if part.block else 0)
        most = max(most, *(max(pair) for pair in turn.copies), 0)
    return most + 1
