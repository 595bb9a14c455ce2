"""The study of SGLang's operators: its cases, its faults, its page."""

from typing import Any

import pytest
import torch

from analysis import (
    _sglang_cases as of,
    _vllm_faults as faults,
    sglang_kernels as study,
)
from analysis.vllm_kernels import page
from lyapunov.implementations import implementation_named
from lyapunov.implementations._ways import parse_variant
from lyapunov.implementations.sglang import _operators
from lyapunov.implementations.vllm._operators import Operators


CASES = [*of.cases(), *of.smoke()]


def test_cases_have_names_of_their_own():
    """Assert that each is of this stack, and of a way and a text that it runs."""
    assert len({case.name for case in CASES}) == len(CASES)
    ways = implementation_named("sglang").ways
    for case in CASES:
        assert case.measure.split()[0] == case.stack == "sglang"
        implementation_named(case.measure)
        if case.way not in ("prefill", "decode"):
            way = parse_variant(case.way)
            way.check(case.length)
            assert way.kind in ways


@pytest.mark.parametrize("asked", [of.cases, of.smoke])
def test_every_fault_is_run(asked):
    assert {case.fault for case in asked()} - {None} == set(of.FAULTS)


def test_chunks_of_its_own(monkeypatch):
    """Assert that each text is scanned alone, and written where it was asked for."""
    seen = []

    def scan(x, dt, A, B, C, **named):
        seen.append(
            (named["cu_seqlens"].tolist(), named["final_state_indices"].tolist())
        )
        named["out"][:] = x + dt + B + C

    nothing: dict[str, Any] = dict.fromkeys(Operators._fields)
    nothing["chunk_scan"] = scan
    found = Operators(**nothing)
    monkeypatch.setattr(_operators, "find_operators", lambda: found)
    with faults.patched("a packed text has chunks of its own", stack="sglang"):
        broken = _operators.operators().chunk_scan
    assert _operators.operators() is found
    x, out = torch.arange(7.0), torch.zeros(7)
    broken(
        *(x, x, None, x, x),
        cu_seqlens=torch.tensor([0, 5, 7]),
        final_state_indices=torch.tensor([4, 9]),
        initial_states=None,
        out=out,
    )
    assert seen == [([0, 5], [4]), ([0, 2], [9])]
    assert torch.equal(out, 4 * x)


def test_a_page_has_every_row():
    """Assert the title, and rows in the order of the cases."""
    asked = of.cases()[:3]
    counts: dict[str, Any] = dict.fromkeys(
        ("t0_ratio", "t1_ratio", "rel_l2", "sigma_t3", "calibration_z", "kl_mean")
    )
    rows = [
        {
            **case._asdict(),
            **counts,
            "case": case.name,
            "violations": 0,
            "elements": 10,
            "unbounded": 0,
            "flips": None,
            "tokens": case.length,
            "first_violation": None,
        }
        for case in asked
    ]
    text = page({"rows": rows[::-1], "failed": {}}, study.ASKED)
    assert text.startswith("# Mamba-2 on SGLang's operators\n")
    places = [text.index(case.name) for case in asked]
    assert places == sorted(places)
