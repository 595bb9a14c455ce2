"""The study of vLLM's operators: its cases, its faults, its shares, its page."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from analysis import (
    _vllm_delta as delta,
    _vllm_faults as faults,
    vllm_kernels as study,
)
from analysis._vllm_shares import _inputs_equal
from lyapunov.implementations._ways import parse_variant
from lyapunov.implementations.vllm import _delta_operators, _operators


CASES = [*study.cases(), *study.smoke()]


def test_cases_have_names_of_their_own():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        if case.way not in ("prefill", "decode", "rounding"):
            parse_variant(case.way).check(case.length)


@pytest.mark.parametrize("asked", [study.mamba_cases, study.smoke])
def test_every_fault_is_run(asked):
    assert {case.fault for case in asked()} - {None} == set(faults.FAULTS)


def test_every_fault_of_a_delta_rule_is_run():
    found = {case.fault for case in delta.delta_cases()} - {None}
    assert found == set(delta.FAULTS)
    assert not found & set(faults.FAULTS)


def test_delta_rules_are_run_as_they_are_declared():
    """Assert that each case has an execution, which its runner is given."""
    import lyapunov

    for name in delta.MODELS:
        model = study.loaded(name, "")
        own = [case for case in delta.delta_cases() if case.model == name]
        for case in own:
            mode = "decode" if case.way == "decode" else "prefill"
            (found,) = lyapunov.implementations.executions_for(
                model.config,
                [case.precision],
                architecture=model.layout.architecture,
                mode=mode,
                measure=case.measure,
                state_precision=case.state,
            )
            assert found.mode == mode


def delta_broken(monkeypatch, name: str, original) -> Any:
    """The operator of a delta rule with the fault around it."""
    field = delta.FAULTS[name][1].operator
    nothing: dict[str, Any] = dict.fromkeys(_delta_operators.DeltaOperators._fields)
    found = _delta_operators.DeltaOperators(**nothing | {field: original})
    monkeypatch.setattr(_delta_operators, "_found", lambda: found)
    with faults.patched(name, every=2):
        changed = getattr(_delta_operators.delta_operators(), field)
    assert _delta_operators.delta_operators() is found
    return changed


@pytest.mark.parametrize(
    "name",
    ["an initial state of a delta rule is lost", "an initial state of Kimi's is lost"],
)
def test_a_lost_initial_state_is_nothing(monkeypatch, name):
    seen = []
    chunks = delta_broken(monkeypatch, name, lambda **named: seen.append(named))
    chunks(initial_state=torch.ones(2), q=1)
    assert seen[0]["q"] == 1
    assert not seen[0]["initial_state"].any()


def test_a_stale_state_is_written_to_a_copy(monkeypatch):
    step = delta_broken(
        monkeypatch,
        "a stale state of a delta rule",
        lambda initial_state, **named: initial_state.add_(1),
    )
    state = torch.zeros(1)
    found = []
    for _ in range(4):
        step(initial_state=state, out=None)
        found.append(float(state))
    assert found == [1, 1, 2, 2]


def test_a_state_is_held_in_another_format(monkeypatch):
    step = delta_broken(
        monkeypatch, "a state of Kimi's in bf16", lambda **named: "put out"
    )
    state = torch.tensor([1.0 + 2.0**-9])
    assert step(initial_state=state, state_indices=None) == "put out"
    assert float(state) == 1.0


@pytest.mark.parametrize(
    ("name", "given", "changed"),
    [
        (
            "two rows share a state of a delta rule",
            {"ssm_state_indices": torch.tensor([3, 4])},
            {"ssm_state_indices": [3, 3]},
        ),
        (
            "a rejected draft's state of a delta rule is kept",
            {
                "num_accepted_tokens": torch.tensor([1, 3]),
                "ssm_state_indices": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]),
            },
            {"num_accepted_tokens": [4, 4]},
        ),
        (
            "gates of the token before",
            {"g": torch.tensor([[1, 2, 3]])},
            {"g": [[3, 1, 2]]},
        ),
        (
            "Kimi's gates of the token before",
            {"raw_g": torch.tensor([[1, 2, 3]])},
            {"raw_g": [[3, 1, 2]]},
        ),
    ],
)
def test_what_operators_of_delta_rules_are_handed_is_broken(
    monkeypatch, name, given, changed
):
    seen = []
    delta_broken(monkeypatch, name, lambda **named: seen.append(named))(**given)
    for key, value in given.items():
        assert seen[0][key].tolist() == changed.get(key, value.tolist())


def test_units_are_stored_in_another_format(monkeypatch):
    unit = torch.full((2,), 0.33, dtype=torch.float16)
    prepared = delta_broken(
        monkeypatch, "units in fp8 e4m3", lambda **named: (unit, unit, "v", "g", "beta")
    )
    q, k, *others = prepared(a=1)
    assert others == ["v", "g", "beta"]
    assert q.tolist() == k.tolist() == [0.34375] * 2


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
