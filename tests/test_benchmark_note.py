"""Assert what a benchmark of so many questions can see of a change."""

import re
from typing import Any

import pytest
from scipy import stats

from lyapunov.findings._benchmark_noise import (
    QUESTIONS,
    accuracy_half_width,
    benchmark_note,
    questions_to_see,
    unseen_share,
)

from .test_advice import _execution


@pytest.mark.parametrize("n", [1, 7, 50, 200, 1319])
@pytest.mark.parametrize("p", [0.5, 0.8, 0.97, 1.0])
def test_interval_is_the_smallest_that_holds(n, p):
    """Assert coverage of at least 95 % from scipy's binomial, and of less for the
    next smaller interval."""
    width = accuracy_half_width(n, p) * n
    law: Any = stats.binom(n, p)
    inside = [k for k in range(n + 1) if abs(k - n * p) <= width + 1e-9]
    assert sum(law.pmf(k) for k in inside) >= 0.95 - 1e-12
    smaller = [k for k in inside if abs(k - n * p) < width - 1e-9]
    assert sum(law.pmf(k) for k in smaller) < 0.95


def test_two_hundred_questions_see_seven_points():
    low, high = stats.binom.interval(0.95, 200, 0.5)
    assert (low, high) == (86, 114)
    assert accuracy_half_width(200) == 14 / 200


@pytest.mark.parametrize("n", [1, 512, 100_000])
def test_none_of_n_is_clopper_and_pearson(n):
    expected = stats.binomtest(0, n, alternative="less").proportion_ci(0.95).high
    assert unseen_share(n) == pytest.approx(expected, rel=1e-9)


def test_questions_to_see_a_change_suffice():
    """Assert that so many questions have an interval of that width, within the
    normal approximation's few percent."""
    for change in (0.03, 0.05, 0.1):
        n = questions_to_see(change)
        assert accuracy_half_width(n) == pytest.approx(change, rel=0.06)


def test_note_tells_what_is_invisible():
    note = benchmark_note(
        [_execution("fp16"), _execution("bf16", output={"argmax_flips": 7})]
    )
    assert note is not None
    assert "bf16 changes 1.37% of the top tokens" in note
    assert f"{QUESTIONS} questions knows an accuracy to ± 7.0 points" in note
    assert re.search(r"could not see it: that takes about 5,000\.", note)
    calm = benchmark_note([_execution("fp16")])
    assert calm is not None
    assert "changed no top token of 512, so at most 0.58%" in calm
    loud = benchmark_note([_execution(output={"argmax_flips": 100})])
    assert loud is not None
    assert loud.endswith("may see it.")
    assert benchmark_note([]) is None
