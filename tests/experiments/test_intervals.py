"""Intervals over seeds, and what chance makes of the published metric."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from experiments.finetuning import intervals

from ..helpers import not_none


def test_a_mean_has_students_interval():
    values = [1.0, 2.0, 4.0, 3.0, 7.0]
    found = not_none(intervals.mean(values))
    theirs = stats.ttest_1samp(values, 0).confidence_interval()
    assert found.n == 5
    assert found.value == pytest.approx(3.4)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_a_difference_has_welchs_interval():
    one, other = [1.0, 2.0, 4.0, 3.0, 7.0], [0.5, 0.7, 0.1, 0.4]
    found = not_none(intervals.difference(one, other))
    theirs = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.verdict == ("more" if theirs.low > 0 else "not told apart")


def test_a_ratio_is_of_geometric_means():
    found = not_none(intervals.ratio([2.0, 8.0], [1.0, 1.0]))
    assert found.value == pytest.approx(4.0)
    assert not_none(found.low) < 4.0 < not_none(found.high)
    assert not_none(found.low) * not_none(found.high) == pytest.approx(16.0)
    assert intervals.ratio([2.0], [0.0]) is None


def test_one_seed_has_no_interval():
    for found in (intervals.mean([3.0]), intervals.difference([3.0], [1.0])):
        assert not_none(found).low is None
        assert not_none(found).high is None
        assert not_none(found).verdict == "not told apart"
    assert intervals.mean([]) is None
    assert intervals.difference([], [1.0]) is None


def test_intervals_of_five_seeds_hold_the_value_and_cover():
    rng = np.random.default_rng(0)
    hits = 0
    for sample in rng.exponential(1.0, size=(400, 5)):
        found = not_none(intervals.mean(sample, least=0))
        assert 0 <= not_none(found.low) <= found.value <= not_none(found.high)
        hits += not_none(found.low) <= 1 <= not_none(found.high)
    # Student's t of five exponentials covers in 88 %; three sigma of 400 below that.
    # Resampling five values covers in 77 %, which this refuses.
    assert hits / 400 > 0.88 - 3 * (0.88 * 0.12 / 400) ** 0.5


@pytest.mark.parametrize("changed", range(9))
def test_chance_is_the_mean_over_all_signs(changed):
    mean = np.mean([abs(sum(signs)) for signs in product((-1, 1), repeat=changed)])
    found = intervals.by_chance(np.array([changed]), 50)
    assert found == pytest.approx(100 * mean / 50)


def test_chance_of_many_questions_is_the_limit_of_chance_of_few():
    found = intervals.by_chance(np.array([0.1 * 14_000]), 14_000)
    assert intervals.by_chance_of(0.1, 14_000) == pytest.approx(found, rel=1e-3)


def test_more_questions_make_less_by_chance():
    few, many = (intervals.by_chance_of(0.1, n) for n in (128, 14_042))
    assert few / many == pytest.approx((14_042 / 128) ** 0.5)
