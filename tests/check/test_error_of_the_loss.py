"""The standard error of the reference's loss, against series of known spread."""

import math

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from lyapunov.exponents._cosines import ALL, EXTRAPOLATED, LEVEL, RISE, USED
from lyapunov.questions._reference_loss import stderr_of_loss

from ..helpers import not_none


def _correlated(rng, shape, correlation):
    """A stationary series of variance 1 along the last axis."""
    white = rng.normal(size=shape)
    series = np.empty(shape)
    series[:, 0] = white[:, 0]
    for t in range(1, shape[1]):
        fresh = math.sqrt(1 - correlation**2) * white[:, t]
        series[:, t] = correlation * series[:, t - 1] + fresh
    return series


def _range_of_three(power, above=0.0):
    """Mean of a power of the range of three normals where that is above, else 0."""
    x, r = np.linspace(-9, 9, 361), np.linspace(above, above + 18, 361)[:, None]
    inner = stats.norm.pdf(x) * stats.norm.pdf(x + r)
    inner *= stats.norm.cdf(x + r) - stats.norm.cdf(x)
    density = 6 * integrate.simpson(inner, x=x)
    return float(integrate.simpson(density * r[:, 0] ** power, x=r[:, 0]))


def _most_of_one_sequence(runs):
    r"""Root mean square of errors from cosines or ranges over the mean's spread: most.

    Of n correlated tokens whose spectrum is flat up to the cosines' frequencies, in
    units of the mean's variance. A bar from cosines has the mean square $1 + 2.65 \, E
    \max(R - H, 0)$, R and H weighted means of 12 and of 28 squares of standard normals,
    which are normal to a good part; with a share q = `LEVEL` the range r of 3 parts
    stands in, each of variance 4. Which runs these are is not independent of their
    ranges; at most they are those of the largest: $4 E[r^2; r > r_q]$. That gives 1.96.
    The spread of so many means is known to $1 / \sqrt{2 \, runs}$, of which 3 are
    allowed; the scatter of the errors' squares is left to what the worst case gives
    away.
    """
    rise = math.sqrt(2 * np.sum(RISE**2) + 2 / (ALL - USED)) / math.sqrt(2 * math.pi)
    largest = optimize.root_scalar(
        lambda r: _range_of_three(0, r) - LEVEL, bracket=(1, 8)
    ).root
    square = 1 + EXTRAPOLATED * rise + 4 * _range_of_three(2, largest)
    return math.sqrt(square) * (1 + 3 / math.sqrt(2 * runs))


def test_the_range_of_three_has_the_moments_that_are_known():
    """Assert d_2 = 3 / sqrt(pi) and d_2^2 + d_3^2 of quality control's tables."""
    assert _range_of_three(0) == pytest.approx(1, rel=1e-6)
    assert _range_of_three(1) == pytest.approx(3 / math.sqrt(math.pi), rel=1e-9)
    assert _range_of_three(2) == pytest.approx(1.69257**2 + 0.88837**2, rel=1e-5)


def test_the_standard_error_is_that_of_the_mean_of_correlated_tokens():
    """Assert the root mean square of the errors over the spread of 400 means: of 12
    sequence means within 15 % of 1 (4 standard errors of the two spreads); of one or
    two sequences, whose bars from 12 cosines are wider and whose withheld bars are
    ranges, not below 0.85 and not above what these may be (2.17)."""
    most_of_one = _most_of_one_sequence(400)
    assert most_of_one < 2.2
    rng = np.random.default_rng(7)
    for correlation, shape, most in (
        (0, (1, 400), most_of_one),
        (0, (12, 40), 1.15),
        (0.5, (2, 400), most_of_one),
    ):
        means, errors = [], []
        for _ in range(400):
            series = _correlated(rng, shape, correlation)
            means.append(series.mean())
            errors.append(stderr_of_loss(series)[0])
        ratio = math.sqrt(np.mean(np.square(errors))) / np.std(means)
        assert 0.85 < ratio < most, (correlation, shape, ratio)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.8])
def test_a_slow_drift_does_not_pass_for_a_loss_above_its_mean(share):
    """Assert that of 400 means under a drift over a quarter of the text no more exceed
    the truth by more than the error than are due of a Gaussian: 64, and 3 standard
    deviations of 7.3; blocks of the root of the length had 132 to 180."""
    rng = np.random.default_rng(11)
    tokens, drift = 511, math.exp(-4 / 511)
    above, ranges = 0, 0
    for _ in range(400):
        slow = _correlated(rng, (1, tokens), drift)
        white = rng.normal(size=(1, tokens))
        series = math.sqrt(share) * slow + math.sqrt(1 - share) * white
        error, method = stderr_of_loss(series)
        above += series.mean() > error
        if method.startswith("largest less smallest"):
            ranges += 1
            parts = [part.mean() for part in np.array_split(series[0], 4)[1:]]
            assert error == pytest.approx(max(parts) - min(parts), rel=1e-12)
            assert not_none(error) >= math.sqrt(3) * np.std(parts, ddof=1) * (1 - 1e-12)
    assert ranges > 100
    assert above <= 85
