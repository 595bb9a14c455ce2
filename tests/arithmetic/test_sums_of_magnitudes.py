"""|W| e in fp32: never below what it stands for, and little above it."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import Bounded, BoundedArithmetic, RoundingModel, Weight


ROWS = 5


def errors(rng, terms: int, kind: str):
    """Errors and weights (terms) and (ROWS, terms)."""
    e, W = rng.exponential(size=terms), rng.normal(size=(ROWS, terms))
    if kind == "wide":
        e *= 10.0 ** rng.uniform(-20, 10, terms)
        W *= 10.0 ** rng.uniform(-10, 5, W.shape)
    elif kind == "sparse":
        e[rng.random(terms) < 0.9] = 0.0
    elif kind == "subnormal":
        e *= 2.0 ** rng.uniform(-150, -120, terms)
        W *= 2.0 ** rng.uniform(-30, 0, W.shape)
    elif kind == "awkward":
        # every cast is as far off as it can be, and downwards
        e[:], W[:] = 1 + 2.0**-24 * 0.999, 1 + 2.0**-24 * 0.999
    W[0] = 0.0
    return e, W


@pytest.mark.parametrize("kind", ["plain", "wide", "sparse", "subnormal", "awkward"])
@pytest.mark.parametrize("terms", [1, 7, 300, 2000])
def test_it_covers_the_exact_sum_and_is_near_it(rng, terms, kind):
    """Assert the error of a product against rational arithmetic, below by nothing."""
    e, W = errors(rng, terms, kind)
    at = BoundedArithmetic({}, RoundingModel.none())
    x = Bounded(jnp.zeros(terms), jnp.asarray(e))
    error = np.asarray(at.matmul(x, Weight(jnp.asarray(W))).error)
    length = Fraction(float(np.linalg.norm(e)))
    for row, found in zip(W, error, strict=True):
        exact = sum(
            (
                Fraction(abs(float(w))) * Fraction(float(d))
                for w, d in zip(row, e, strict=True)
            ),
            Fraction(0),
        )
        assert Fraction(float(found)) >= exact
        # (1 + 2^-23)^(terms + 9), SAFETY, and what fp32 may flush
        above = exact * (1 + Fraction(2 * (terms + 9), 2**23) + Fraction(2, 10**9))
        l1 = Fraction(float(np.abs(row).sum() + e.sum() + terms))
        flushed = Fraction(2) ** -124 * l1 if e.any() else 0
        by_norm = Fraction(float(np.linalg.norm(row))) * length
        assert (
            Fraction(float(found))
            <= min(above + flushed, by_norm * (1 + Fraction(1, 10**8)))
            or found == 0
        )


def test_no_error_is_no_error(rng):
    """Assert that nothing is added for fp32 where nothing comes in."""
    at = BoundedArithmetic({}, RoundingModel.none())
    W = rng.normal(size=(ROWS, 40))
    product = at.matmul(jnp.asarray(rng.normal(size=40)), Weight(jnp.asarray(W)))
    assert (np.asarray(product.error) == 0).all()
