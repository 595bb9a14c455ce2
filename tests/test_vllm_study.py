"""The study of vLLM's operators: its cases, its faults, its shares, its page."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from analysis import _vllm_faults as faults, vllm_kernels as study
from analysis._vllm_shares import _inputs_equal
from lyapunov.implementations._ways import parse_variant
from lyapunov.implementations.vllm import _operators


CASES = [*study.cases(), *study.smoke()]


def test_cases_have_names_of_their_own():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        if case.way not in ("prefill", "decode", "rounding"):
            parse_variant(case.way).check(case.length)


@pytest.mark.parametrize("asked", [study.cases, study.smoke])
def test_every_fault_is_run(asked):
    assert {case.fault for case in asked()} - {None} == set(faults.FAULTS)


def broken(monkeypatch, name: str, original) -> Any:
    """The operator with the fault around it."""
    field = faults.FAULTS[name].operator
    nothing: dict[str, Any] = dict.fromkeys(_operators.Operators._fields)
    found = _operators.Operators(**nothing | {field: original})
    monkeypatch.setattr(_operators, "find_operators", lambda: found)
    with faults.patched(name, every=2):
        changed = getattr(_operators.operators(), field)
    assert _operators.operators() is found
    return changed


@pytest.fixture
def steps():
    """An operator that keeps the slots that it is given."""
    seen = []

    def step(state, **named):
        read, written = (named[f"{end}state_batch_indices"] for end in ("", "dst_"))
        seen.append((read.tolist(), written.tolist()))

    return step, seen


def stepped(step, state) -> None:
    slots = torch.tensor([1, 2], dtype=torch.int32)
    step(state, state_batch_indices=slots, dst_state_batch_indices=slots)


def test_a_lost_store_goes_where_nobody_reads(monkeypatch, steps):
    original, seen = steps
    step = broken(monkeypatch, "a stale block of states", original)
    one, other = torch.zeros(1), torch.zeros(1)  # of two layers
    for state in (one, other, one, other, one):
        stepped(step, state)
    right, lost = ([1, 2], [1, 2]), ([1, 2], [0, 0])
    assert seen == [right, right, lost, lost, right]


def test_shared_rows_read_and_write_one_slot(monkeypatch, steps):
    original, seen = steps
    stepped(broken(monkeypatch, "two rows share a state", original), torch.zeros(1))
    assert seen == [([1, 1], [1, 1])]


def test_a_window_goes_on_from_its_last_token(monkeypatch):
    seen = []
    step = broken(
        monkeypatch,
        "a rejected draft's state is kept",
        lambda state, **named: seen.append(named["num_accepted_tokens"].tolist()),
    )
    slots = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=torch.int32)
    accepted = torch.tensor([3, 1], dtype=torch.int32)
    step(None, state_batch_indices=slots, num_accepted_tokens=accepted)
    assert seen == [[4, 4]]


def test_a_lost_state_is_handed_as_none(monkeypatch):
    seen = []
    scan = broken(
        monkeypatch,
        "a prefill's initial state is lost",
        lambda *given, **named: seen.append((given, named)),
    )
    scan(1, initial_states=2, out=3)
    assert seen == [((1,), {"initial_states": None, "out": 3})]


@pytest.mark.parametrize(
    ("name", "kept"),
    [("the window in fp8 e4m3", 1.125), ("the window in bf16", 1.109375)],
)
def test_a_window_in_another_format(monkeypatch, name, kept):
    window = torch.full((2, 3, 3), 1.1103515625, dtype=torch.float16)
    step = broken(monkeypatch, name, lambda u, window, *given: u + 1)
    assert step(1, window, None) == 2
    assert set(window.flatten().tolist()) == {kept}
    assert window.dtype == torch.float16


def test_a_convolution_is_compared_where_all_it_reads_is_equal():
    """Assert it of one input that differs: it reaches as many tokens as there are
    taps."""
    sizes = SimpleNamespace(kind="mamba2", d_inner=2, groups=1, d_state=1, d_conv=3)
    equal = np.ones((1, 6, 2 + 4 + 1), bool)
    equal[0, 1, 3] = False  # the second channel behind z
    equal[0, 2, 0] = equal[0, 2, 6] = False  # z and dt, which it does not read
    found = _inputs_equal(sizes, equal)
    assert found.shape == (1, 6, 4)
    expected = np.ones((6, 4), bool)
    expected[1:4, 1] = False
    np.testing.assert_array_equal(found[0], expected)


def test_a_page_has_every_row():
    empty = {
        name: None
        for name in ("t0_ratio", "t1_ratio", "rel_l2", "sigma_t3", "calibration_z")
    }
    empty |= dict.fromkeys(("kl_mean", "flips", "violations", "elements", "unbounded"))
    rows = [{"case": c.name, **c._asdict(), **empty, "tokens": c.length} for c in CASES]
    for one in rows:
        one["differ"] = (
            {"conv": {"differ": 1, "elements": 2}} if one["shares"] else None
        )
        if one["way"] == "rounding":
            one["rounding"] = {"seeds": 1000, "z of the mean error": -0.5}
    text = study.page({"rows": rows[::-1], "failed": {"a case": "why"}})
    assert "- z of the mean error: -0.5" in text
    for case in CASES:
        if case.way == "rounding":
            continue
        start = f"- {case.name}: conv 1 of 2" if case.shares else f"| {case.name} |"
        assert sum(line.startswith(start) for line in text.splitlines()) == 1
    assert "- not there: a case: why" in text
