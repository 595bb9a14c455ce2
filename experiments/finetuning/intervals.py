"""Means over seeds with 95 % intervals, and what chance alone makes of a metric.

A seed is one independent run, so that seeds are what intervals are over: Student's t
for a mean, Welch's for two models. The questions are the same for all runs and taken
as given: an interval is of the mean over training runs, asked these questions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from scipy import stats


_LEVEL = 0.975


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval, None for a single seed; `n`: seeds behind it."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def verdict(self) -> str:
        """Whether it is above or below nothing, as far as the interval tells."""
        if self.low is not None and self.low > 0:
            return "more"
        return "less" if self.high is not None and self.high < 0 else "not told apart"

    def described(self) -> dict[str, float | int | None]:
        """For a results file."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def mean(values: Iterable[float | None], least: float = -np.inf) -> Interval | None:
    """A mean over seeds by Student's t; None without seeds.

    `least`: what the quantity cannot be below: 0 for a share or a distance.
    """
    kept = np.array([v for v in values if v is not None], float)
    if not len(kept):
        return None
    return _around(float(kept.mean()), *_error(kept), n=len(kept), least=least)


def difference(one: Sequence[float], other: Sequence[float]) -> Interval | None:
    """The mean of `one` less that of `other`, by Welch's t; None if either is empty."""
    a, b = np.array(one, float), np.array(other, float)
    if not len(a) or not len(b):
        return None
    value = float(a.mean() - b.mean())
    return _around(value, *_welch(a, b), n=min(len(a), len(b)))


def ratio(one: Sequence[float], other: Sequence[float]) -> Interval | None:
    """The ratio of geometric means, by Welch's t of logarithms.

    None if either is empty or has a value that is not positive.
    """
    a, b = np.array(one, float), np.array(other, float)
    if not len(a) or not len(b) or min(a.min(), b.min()) <= 0:
        return None
    found = difference(np.log(a).tolist(), np.log(b).tolist())
    assert found is not None
    low, high = (
        None if end is None else float(np.exp(end)) for end in (found.low, found.high)
    )
    return Interval(float(np.exp(found.value)), low, high, found.n)


def by_chance(changed: np.ndarray, questions: int) -> float:
    """The mean absolute difference of accuracy if changed answers had no preference.

    Of `changed` answers (an array of counts) each turned from wrong to right or from
    right to wrong with equal chance: E |sum of m signs| = m C(m-1, (m-1)//2) / 2^(m-1).

    **Returns:**

    Percentage points.
    """
    expected = [
        m * comb(m - 1, (m - 1) // 2) / 2 ** (m - 1) if m else 0.0
        for m in np.asarray(changed, int).ravel().tolist()
    ]
    return 100 * float(np.mean(expected)) / questions


def by_chance_of(share: float, questions: int) -> float:
    """The same of a share of changed answers and many questions, percentage points.

    |a sum of m signs| has the mean sqrt(2 m / pi) for large m.
    """
    return 100 * float(np.sqrt(2 * share / (np.pi * questions)))


def _error(values: np.ndarray) -> tuple[float | None, float]:
    n = len(values)
    if n < 2:
        return None, 1.0
    return float(values.std(ddof=1) / np.sqrt(n)), n - 1.0


def _welch(a: np.ndarray, b: np.ndarray) -> tuple[float | None, float]:
    (one, n), (other, m) = _error(a), _error(b)
    if one is None or other is None:
        return None, 1.0
    total = one**2 + other**2
    if not total:
        return 0.0, n + m
    return float(np.sqrt(total)), total**2 / (one**4 / n + other**4 / m)


def _around(
    value: float, error: float | None, freedom: float, n: int, least: float = -np.inf
) -> Interval:
    if error is None:
        return Interval(value, None, None, n)
    half = float(stats.t.ppf(_LEVEL, freedom)) * error
    return Interval(value, max(value - half, least), value + half, n)
