"""The Kaplan-Yorke dimension: its definition, its edges, and two known attractors."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from lyapunov.exponents import kaplan_yorke_dimension, lyapunov_spectrum

from .tolerance import tolerance


@pytest.mark.parametrize(
    ("exponents", "dimension"),
    [
        ([-1.0, -2.0], 0),
        ([0.0, -1.0], 1),
        ([0.5, 0.0, -1.0], 2.5),
        ([-1.0, 0.5, 0.0], 2.5),  # in any order
        ([0.5, -0.25, -1.0], 2.25),
        ([0.5, 0.25], 2),
        ([0.5, -np.inf], 1),
        ([-np.inf, -np.inf], 0),
        ([0.0, 0.0, 0.0], 3),
        ([0.5, -0.5, -1.0], 2),
    ],
)
def test_of_hand_computed_spectra(exponents, dimension):
    """Assert values that follow from the definition without rounding."""
    assert kaplan_yorke_dimension(np.array(exponents)) == dimension


@given(st.lists(st.floats(-10, 5), min_size=1, max_size=8))
def test_is_where_the_interpolated_sum_of_exponents_crosses_zero(exponents):
    """Assert the zero of the piecewise linear sum in rationals."""
    found = kaplan_yorke_dimension(np.array(exponents))
    ordered = sorted(map(Fraction, exponents), reverse=True)
    sums = [sum(ordered[:j], Fraction(0)) for j in range(len(ordered) + 1)]
    at = max(j for j, total in enumerate(sums) if total >= 0)
    wanted = Fraction(at)
    if at < len(ordered):
        wanted += sums[at] / -ordered[at]
    # a sum, a quotient and a sum, each rounded once
    assert abs(found - float(wanted)) <= tolerance(4, float(wanted))


def test_henon_and_lorenz_have_their_known_dimensions():
    """Assert 1.2583 and 2.0620, within what the exponents' scatter moves them."""

    def henon(x, _):
        return jnp.array([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])

    steps = 20_000
    found = lyapunov_spectrum(henon, jnp.array([0.1, 0.1]), steps).exponents
    # D = 1 + l / (l + log(1 / 0.3)); l scatters by 0.003 over 20,000 steps
    slope = 1.204 / (0.419 + 1.204) ** 2
    dimension = kaplan_yorke_dimension(np.asarray(found))
    assert dimension == pytest.approx(1.2583, abs=4 * 0.003 * slope)

    def lorenz(x, _):
        def field(x):
            return jnp.array(
                [
                    10 * (x[1] - x[0]),
                    x[0] * (28 - x[2]) - x[1],
                    x[0] * x[1] - 8 / 3 * x[2],
                ]
            )

        h = 0.01
        a = field(x)
        b = field(x + h / 2 * a)
        c = field(x + h / 2 * b)
        d = field(x + h * c)
        return x + h / 6 * (a + 2 * b + 2 * c + d)

    start = jax.lax.fori_loop(0, 1000, lambda _, x: lorenz(x, None), jnp.ones(3) * 2)
    found = lyapunov_spectrum(lorenz, start, 20_000).exponents / 0.01
    # l1 scatters by 0.01 over 200 time units, l2 is below 0.005, and l3 is about -14.57
    dimension = kaplan_yorke_dimension(np.asarray(found))
    assert dimension == pytest.approx(2.0620, abs=(4 * 0.01 + 0.005) / 14.57)


@pytest.mark.parametrize(
    ("exponents", "words"),
    [([], "no exponents"), ([1.0, np.nan], "NaN"), ([np.inf, -1.0], r"\+inf")],
)
def test_what_has_no_dimension_is_refused(exponents, words):
    """Assert the reason in words."""
    with pytest.raises(ValueError, match=words):
        kaplan_yorke_dimension(np.array(exponents))
