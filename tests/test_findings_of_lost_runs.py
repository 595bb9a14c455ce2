"""Findings of executions that are lost, and of elements without a bound."""

import math
from typing import Any

import pytest

from lyapunov.findings import _rules as findings
from lyapunov.results._check import (
    Finding,
    LayerChange,
    LayerDivergence,
    OutputDivergence,
    ParameterChangeReport,
    PrecisionReport,
)
from tests.test_findings import _execution, _exponents

from .helpers import not_none


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ({"constant_tokens": 256}, "all logits are equal at 256 of 512 tokens"),
        ({"constant_tokens": 255}, None),
        ({"measured_rel_l2": 0.9}, "the error is 0.9 times as large as the logits"),
        ({"measured_rel_l2": 0.89}, None),
        ({"kl_mean": 1.0}, "the mean KL is 1 nats"),
        ({"kl_mean": 0.99}, None),
        # what is not finite has a code of its own, what is not defined none
        ({"measured_rel_l2": math.inf, "kl_mean": math.inf}, None),
        ({"measured_rel_l2": math.nan, "kl_mean": 0.0}, None),
    ],
)
def test_a_lost_execution_is_an_error_by_any_of_three_limits(output, said):
    found = findings.find(_exponents(), [_execution(output=output)])
    lost = [f for f in found if f.code == "LYA015"]
    assert len(lost) == (said is not None)
    for one in lost:
        assert said in one.message
        assert one.severity == "error"
        assert not_none(one.value) >= not_none(one.limit)


def test_a_lost_execution_names_all_its_reasons_and_gets_no_flags():
    """Assert it for what a lost scale of a tensor did: zeros at 192 of 192 tokens."""
    output = {"argmax_total": 192, "constant_tokens": 192, "argmax_flips": 191}
    output |= {"measured_rel_l2": 1.0, "kl_mean": 1.2}
    lost = _execution(output=output)
    found = findings.find(_exponents(), [lost])
    (message,) = (f.message for f in found if f.code == "LYA015")
    for part in ("192 of 192 tokens", "1 times as large", "1.2 nats"):
        assert part in message
    advice = findings.advice(_exponents(), [lost], found)
    assert advice["flags"] == []
    assert advice["recommendation"].startswith("Do not run in bf16")
    assert findings.verdict(found, checked=1) == ("findings", 1)


def test_a_reference_that_is_not_finite_is_the_checkpoints_and_not_the_executions():
    output = {"reference_non_finite": 3, "non_finite": 5, "kl_max": math.inf}
    (finding,) = findings.find(_exponents(), [_execution(output=output)])
    assert (finding.code, finding.precision) == ("LYA002", None)
    assert "3 logits are not finite in the reference" in finding.message
    line = findings.recommendation(_exponents(), [], [finding])
    assert "checkpoint itself is damaged" in line


# --- Elements without a bound ----------------------------------------------------


def _rows(*shares: tuple[float, float]) -> PrecisionReport:
    """Sublayers of 1000 elements each: shares without a bound, of all, of outputs."""
    rows = [
        LayerDivergence(
            i,
            "mamba1",
            elements_total=1000,
            elements_unbounded=round(1000 * every),
            unbounded={"sublayer output": output} if output else {},
        )
        for i, (every, output) in enumerate(shares)
    ]
    return PrecisionReport(
        "bf16", "fp32", "flow", "prefill", "x", rows, OutputDivergence()
    )


@pytest.mark.parametrize(
    ("shares", "bounded", "word"),
    [
        ([(0.0, 0.0)] * 3, 1.0, "held"),
        ([(0.1, 0.0), (0.0, 0.0)], 0.95, "held"),
        # outputs are few of all elements, and what a bound of a sublayer is about
        ([(0.1, 1.0), (0.1, 1.0), (0.0, 0.0)], 1 / 3, "unbounded"),
        ([(0.6, 0.0), (0.6, 0.0)], 0.4, "unbounded"),
        ([(1.0, 1.0)], 0.0, "unbounded"),
    ],
)
def test_held_is_not_said_where_few_elements_have_a_bound(shares, bounded, word):
    one = _rows(*shares)
    for row in one.layers:
        assert (
            not_none(row.elements_bounded) + not_none(row.elements_unbounded)
            == row.elements_total
        )
    found = findings.bounded_share([one])
    assert found == pytest.approx(bounded, rel=1e-12)
    assert findings.verdict([], checked=1, bounded=found)[0] == word


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], set()),
        ([[(0.0, 0.0), (0.9, 0.99)]], set()),
        # stored tensors have bounds and the output has none
        ([[(0.0, 0.0), (0.1, 1.0)]], {1}),
        # another precision's output has some
        ([[(0.0, 0.0), (0.1, 1.0)], [(0.0, 0.0), (0.1, 0.5)]], set()),
        ([[(1.0, 1.0), (0.1, 1.0)], [(1.0, 1.0), (0.1, 1.0)]], {0, 1}),
    ],
)
def test_a_sublayer_without_any_bound_of_its_output_was_not_checked(runs, expected):
    """Assert which are counted, and that they are never a 0 unless that is accepted."""
    reports = [_rows(*shares) for shares in runs]
    skipped = findings.unchecked(reports)
    assert skipped == expected
    counts: Any = {"checked": 2 - len(skipped), "skipped": len(skipped)}
    found = findings.verdict([], **counts)
    assert found == (("incomplete", 2) if expected else ("held", 0))
    error = Finding("LYA003", "error", 0, "x")
    assert findings.verdict([error], **counts) == ("findings", 1)
    accepted = findings.verdict([], **counts, allow_partial=True)
    assert accepted == (("incomplete", 2) if len(expected) == 2 else ("held", 0))


@pytest.mark.parametrize(("unbounded", "expected"), [(99, set()), (100, {0})])
def test_a_change_without_any_bound_was_not_checked_either(unbounded, expected):
    row = LayerChange(
        0, "mamba1", {}, 1.0, 1.0, 1.0, 1.0, None, 0, 100, 1.0, 1.0, unbounded
    )
    change = ParameterChangeReport(
        "bf16", "rounding", [row], OutputDivergence(), 0.1, None, {}
    )
    assert findings.unchecked([], [change]) == expected
    # a run beside it, whose bounds are finite, checks the sublayer
    assert findings.unchecked([_rows((0.0, 0.0))], [change]) == set()


def test_the_share_with_a_bound_is_null_where_nothing_was_bounded():
    assert findings.bounded_share([]) is None
    assert findings.verdict([], checked=1, bounded=None) == ("held", 0)


def test_few_bounds_fail_like_what_could_not_be_checked():
    """Assert exit code 2, also in spite of `exit_zero`, unless partial is accepted; a
    finding comes first."""
    cases: Any = (
        ({}, ("unbounded", 2)),
        ({"exit_zero": True}, ("unbounded", 2)),
        ({"allow_partial": True}, ("held", 0)),
        ({"skipped": 1}, ("incomplete", 2)),
    )
    for settings, expected in cases:
        assert findings.verdict([], checked=1, bounded=0.2, **settings) == expected
    error = Finding("LYA003", "error", 3, "x")
    assert findings.verdict([error], checked=1, bounded=0.2) == ("findings", 1)


def test_changed_weights_count_their_elements_as_well():
    row = LayerChange(0, "mamba1", {}, 1.0, 1.0, 1.0, 1.0, None, 0, 100, 1.0, 1.0, 60)
    change = ParameterChangeReport(
        "bf16", "rounding", [row], OutputDivergence(), 0.1, None, {}
    )
    assert row.elements_bounded == 40
    assert findings.bounded_share([], [change]) == 0.4
    assert findings.bounded_share([_rows((0.0, 0.0))], [change]) == 1040 / 1100
