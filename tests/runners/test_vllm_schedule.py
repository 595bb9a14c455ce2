"""Which tokens go through in which forward pass of vLLM's runner, and in which slots.

A server in NumPy follows the passes: a slot holds the tokens that its state has read,
so that a part that goes on from another text's state, from a slot that nobody wrote, or
out of order, is told.
"""

from typing import Any

import numpy as np
import pytest
import torch

from lyapunov.implementations import RefusedError, implementation_named
from lyapunov.implementations._segment import Segment
from lyapunov.implementations._ways import parse_variant
from lyapunov.implementations.vllm._batch import Planned, chunks_of
from lyapunov.implementations.vllm._schedule import (
    BESIDE,
    MIXED_EVERY,
    ONE,
    Drafts,
    Part,
    Scheduler,
    Turn,
    slots_of,
)


SEQ, VOCABULARY, KEEPS = 30, 50, 3
WAYS = (
    *("whole", "steps", "chunks:7", "batched:0", "batched:2", "packed:13"),
    *("packed:30", "initial_state:4", "resumed:8", "resumed:1", "resumed:8,9"),
    *("resumed:8,13", "resumed:4,11", "preempted:1", "preempted:13", "preempted:13,8"),
    *("preempted:13,12", "preempted:9,8", "preempted:16,8", "mixed:13", "mixed:1"),
    "mixed:29",
)


class Mode:
    """As much of an execution as is asked for here."""

    def __init__(self, mode):
        self.mode = mode


def segments(way, seq=SEQ) -> Any:
    calls = way.calls(seq, first_is_step=True)
    mode = lambda call: Mode("decode" if call.decode else "prefill")
    return [Segment(call.start, call.stop, mode(call)) for call in calls]  # type: ignore


def planned(name, *, batch=1, keeps: int | None = KEEPS, drafts=ONE):
    """(tokens, passes) of a way."""
    way = parse_variant(name)
    way.check(SEQ)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (batch, SEQ))
    scheduler = Scheduler(VOCABULARY, drafts, keeps)
    return tokens, list(scheduler.turns(tokens, way, segments(way)))


def read(turns) -> list[np.ndarray]:
    """What was recorded, once every part goes on from where its slot is."""
    slots: dict[int, list[int]] = {}
    recorded: list[list[int]] = []
    for turn in turns:
        assert [p.steps for p in turn.parts] == sorted(
            (p.steps for p in turn.parts), reverse=True
        )
        for source, target in turn.copies:
            slots[target] = list(slots[source])
        rows = []
        assert len({p.slot for p in turn.parts}) == len(turn.parts)
        for part in turn.parts:
            assert part.slot > 0
            before = [] if part.begin == 0 else slots[part.slot]
            assert len(before) == part.begin
            own = part.ids[: part.kept] if part.steps else part.ids
            slots[part.slot] = [*before, *own]
            if part.block is not None:
                behind, slot = part.block
                slots[slot] = [*before, *own[:behind]]
            if part.seen:
                after = [*before, *part.ids[: part.seen]]
                rows.append((part.begin, after))
        for i, (begin, after) in enumerate(rows):
            if i == len(recorded):
                recorded.append([])
            # the state it goes on from has read what was recorded before it
            assert recorded[i] == after[:begin]
            recorded[i] = after
    assert max(slots) < slots_of(turns)
    return [np.array(row) for row in recorded]


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("keeps", [KEEPS, None])
def test_what_is_recorded_is_the_text(name, keeps):
    """Assert it of the tokens, in their order, each behind those in front of it."""
    tokens, turns = planned(name, keeps=keeps)
    (found,) = read(turns)
    np.testing.assert_array_equal(found, tokens[0])


@pytest.mark.parametrize("name", ["whole", "steps", "chunks:7", "initial_state:4"])
def test_rows_of_a_batch_go_together(name):
    tokens, turns = planned(name, batch=3)
    np.testing.assert_array_equal(np.stack(read(turns)), tokens)


@pytest.mark.parametrize("name", ["steps", "initial_state:4", "mixed:13"])
@pytest.mark.parametrize("drafts", [Drafts(4, 3), Drafts(4, 4), Drafts(3, 1)])
def test_windows_keep_what_is_the_texts(name, drafts):
    tokens, turns = planned(name, drafts=drafts)
    (found,) = read(turns)
    np.testing.assert_array_equal(found, tokens[0])
    assert {len(p.ids) for t in turns for p in t.parts if p.steps} == {drafts.tokens}


@pytest.mark.parametrize("name", ["resumed:8", "preempted:13", "preempted:13,8"])
def test_blocks_hold_no_windows(name):
    with pytest.raises(RefusedError, match="windows of drafts"):
        planned(name, drafts=Drafts(4, 3))


def test_calls_are_those_that_are_declared():
    """Assert it of every way: where a call of the text ends, and by which kernel."""
    for name in WAYS:
        way = parse_variant(name)
        _, turns = planned(name)
        own = [p for turn in turns for p in turn.parts if p.seen]
        steps = {t for p in own if p.steps for t in range(p.begin, p.begin + p.seen)}
        ends = {p.begin + p.seen for p in own if not p.steps}
        calls = way.calls(SEQ, first_is_step=True)
        assert steps == {
            t for call in calls if call.decode for t in range(call.start, call.stop)
        }, name
        assert ends == {call.stop for call in calls if not call.decode}, name


def test_a_rest_of_one_token_is_what_the_server_makes_of_it():
    """Assert a step in vLLM and a prefill in SGLang, of pieces and behind a prefix."""
    vllm, sglang = (implementation_named(n).rest_is_step for n in ("vllm", "sglang"))
    for name in (f"chunks:{SEQ - 1},rest", f"resumed:{SEQ - 1}"):
        way = parse_variant(name)
        for rest_is_step in (vllm, sglang):
            last = way.calls(SEQ, rest_is_step=rest_is_step)[-1]
            assert (last.start, last.stop) == (SEQ - 1, SEQ)
            assert last.decode == rest_is_step
    assert (vllm, sglang) == (True, False)
    tokens = np.arange(SEQ)[None]
    way = parse_variant("resumed:8,9")
    calls = way.calls(SEQ, rest_is_step=False)
    scheduler = Scheduler(VOCABULARY, rest_is_step=False)
    turns = list(scheduler.turns(tokens, way, segments(way)))
    own = [(p.begin, p.steps) for t in turns for p in t.parts if p.seen]
    assert own[:3] == [(0, False), (8, False), (9, True)]
    assert [(call.start, call.decode) for call in calls] == own[:3]
    np.testing.assert_array_equal(read(turns)[0], tokens[0])


def test_a_prefix_is_anothers():
    """Assert that a prefill that is not the text's kept the state, where one can, and
    that the text goes on from a copy."""
    tokens, turns = planned("resumed:8")
    donor, own = turns
    assert donor.parts[0].seen == 8 < len(donor.parts[0].ids)
    assert (donor.parts[0].ids[8:16] != tokens[0, 8:16]).any()
    assert donor.parts[0].block == (8, own.copies[0][0])
    assert own.copies[0][1] == own.parts[0].slot != own.copies[0][0]
    # a window of three tokens cannot be kept behind one
    first, rest, own = planned("resumed:1")[1]
    assert first.parts[0].block is None
    assert len(first.parts[0].ids) == 1
    assert rest.copies == ((first.parts[0].slot, rest.parts[0].slot),)


def test_full_blocks_are_copied():
    """Assert a slot of its own for every block that steps go through."""
    _, turns = planned("resumed:4,11")
    copies = [(turn.parts[0].begin, *turn.copies[0]) for turn in turns if turn.copies]
    assert [at for at, *_ in copies] == [4, 12, 16, 20, 24, 28]
    targets = [target for *_, target in copies]
    assert len(set(targets)) == len(targets)
    assert all(copies[i][2] == copies[i + 1][1] for i in range(len(copies) - 1))


def test_who_is_thrown_out_finds_its_slot_written():
    """Assert that another text had it meanwhile, and that it begins anew."""
    for name, begin in (("preempted:13", 0), ("preempted:13,8", 8)):
        tokens, turns = planned(name)
        at = next(
            i for i, turn in enumerate(turns)
            if not turn.parts[0].seen and len(turn.parts[0].ids) == SEQ
        )  # fmt: skip
        lost, other, again = (turns[i].parts[0] for i in (at - 1, at, at + 1))
        assert (lost.steps, lost.begin, lost.seen) == (True, 12, 0)
        assert lost.slot == other.slot == again.slot
        assert (other.ids != tokens[0]).any()
        assert (again.begin, again.begin + len(again.ids)) == (begin, 13)


def test_mixed_batches_have_both():
    _, turns = planned("mixed:13")
    prefill = next(t for t in turns if any(p.seen and not p.steps for p in t.parts))
    assert [(p.steps, p.seen) for p in prefill.parts] == [(True, 0), (False, 13)]
    steps = [t for t in turns if any(p.seen and p.steps for p in t.parts)]
    assert all(t.parts[1].seen == 1 for t in steps)
    beside = [i for i, t in enumerate(steps) if len(t.parts) == 3]
    assert beside == [*range(0, SEQ - 13, MIXED_EVERY)]
    assert {len(steps[i].parts[2].ids) for i in beside} == {BESIDE, SEQ - 2 * BESIDE}


def test_packed_texts_of_other_lengths_take_steps():
    """Assert that the other one goes in front of the first prefill, or behind steps."""
    tokens = np.arange(6)[None]
    way = parse_variant("packed:4")
    for mode, order in (("prefill", [4, 6]), ("decode", [1, 4])):
        calls: Any = [Segment(0, 6, Mode(mode))]  # type: ignore[arg-type]
        turns = list(Scheduler(9).turns(tokens, way, calls))
        assert [len(part.ids) for part in turns[0].parts] == order
        np.testing.assert_array_equal(read(turns)[0], tokens[0])


def test_kernels_are_told_of_both():
    """Assert slots, tokens before, steps since a prefill, and where a state is kept."""
    ids = lambda count: np.zeros(count, int)
    plans = Planned("cpu")
    first = Turn((Part(ids(5), 0, 1), Part(ids(20), 0, 2, block=(10, 4))))
    (prefill,) = plans.plans(first)
    assert prefill.blocks == (0, 10)
    assert prefill.block_slots.tolist() == [0, 4]
    chunks = chunks_of(prefill, 8)
    assert chunks.ends.tolist() == [0, 5, 13, 15, 21, 25]
    assert chunks.block.tolist() == [0, 2]
    assert chunks.last.tolist() == [0, 4]
    second = Turn((Part(ids(1), 5, 1, steps=True), Part(ids(3), 20, 2)))
    step, prefill = plans.plans(second)
    assert (step.steps, prefill.steps) == (True, False)
    assert step.slots.tolist() == [1]
    assert prefill.slots.tolist() == [2]
    assert prefill.done == (20,)
    assert chunks_of(prefill, 8).block is None
    assert step.turns.tolist() == [0]
    third = Turn((Part(ids(1), 6, 1, steps=True), Part(ids(1), 23, 2, steps=True)))
    (step,) = plans.plans(third)
    assert step.turns.tolist() == [1, 0]
    assert step.slots.dtype == torch.int32


def test_libraries_that_schedule_nothing_say_so():
    for name in ("emulated", "vllm_emulated", "transformers", "mamba_ssm"):
        one = implementation_named(name)
        assert all(one.refused_ways[w] for w in ("resumed", "preempted", "mixed"))
