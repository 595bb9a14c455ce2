"""Constants in the rules, proved by interval arithmetic on grids that cover all x."""

import flint
import numpy as np

from lyapunov.arithmetic import SAFETY
from lyapunov.arithmetic.rules.functions import SILU_CURVATURE, SILU_SLOPE

from .balls import arb


def proved(claim, low: float, high: float, depth: int = 30) -> bool:
    """Whether the claim holds on balls that cover [low, high], halved where needed."""
    middle, radius = (low + high) / 2, (high - low) / 2
    if claim(flint.arb(middle, radius * (1 + 1e-12))):
        return True
    if depth == 0:
        return False
    return proved(claim, low, middle, depth - 1) and proved(
        claim, middle, high, depth - 1
    )


def slope(x):
    s = 1 / (1 + (-x).exp())
    return s * (1 + x * (1 - s))


def curvature(x):
    s = 1 / (1 + (-x).exp())
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def test_silu_slope_and_curvature_are_certified():
    """Assert |silu'| <= 1.0999 and |silu''| <= 1/2 on every interval of a cover.

    Beyond 40: |silu' - 1 or 0| <= (1 + |x|) e^-|x| < 1e-15, and |silu''| <= (2 + |x|)
    e^-|x| < 1e-15.
    """
    with flint.ctx.workprec(128):
        assert proved(lambda x: abs(slope(x)) <= SILU_SLOPE, -40, 40)
        # silu'' is even. Near 0, s (1 - s) <= 1/4 and 2 - x tanh(x/2) <= 2 make 1/2
        # the product of two suprema that are attained there, so no grid is needed.
        small = 2.0**-8
        assert proved(lambda x: abs(curvature(x)) <= SILU_CURVATURE, small, 40)
        assert proved(lambda x: 2 - x * (x / 2).tanh() >= 0, 0, small)
        assert (1 + arb(40)) * arb(-40).exp() < 1e-15
        assert (2 + arb(40)) * arb(-40).exp() < 1e-15


def test_silu_constants_are_nearly_attained():
    """Assert that neither constant could be lowered by more than 1e-4."""
    x = np.linspace(-6, 6, 100_001)
    s = 1 / (1 + np.exp(-x))
    assert SILU_SLOPE - np.max(s * (1 + x * (1 - s))) < 1e-4
    curve = np.abs(s * (1 - s) * (2 + x * (1 - 2 * s)))
    assert SILU_CURVATURE - np.max(curve) < 1e-4


def test_spread_of_a_decay_covers_expm1():
    """Assert expm1(e) <= e (1 + e) on [0, 1]: the quotient by e, on a cover.

    Below 2^-10: expm1(e) / e <= 1 + e/2 + e^2/4 < 1 + e.
    """
    with flint.ctx.workprec(128):
        assert proved(lambda e: e.expm1() / e <= 1 + e, 2.0**-10, 1.0)


def test_safety_covers_eight_million_roundings():
    """Assert (1 + 2^-53)^8e6 < SAFETY."""
    with flint.ctx.workprec(128):
        assert (1 + arb(2.0**-53)) ** 8_000_000 < arb(SAFETY)
