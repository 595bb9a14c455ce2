"""Sums of magnitudes in TF32: from above, and by no more than is declared."""

import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic.rules import sums
from lyapunov.formats import TF32_OPERAND, round_to


def truncated(x):
    """fp64 cut to 24 bits, towards 0."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.floor(mantissa * 2.0**24) / 2.0**24, exponent)


def in_tensor_cores(x, matrix):
    """Cut operands; each sum cut to fp32 as well, one term after another."""
    cut = lambda v: np.asarray(round_to(jnp.asarray(v), TF32_OPERAND.numbers()))
    x, size = cut(x), cut(np.abs(matrix))
    total = np.zeros((len(x), len(matrix)))
    for term in range(x.shape[1]):
        total = truncated(total + x[:, term, None] * size[:, term])
    return total


@pytest.mark.parametrize("terms", [1, 16, 300, 1536])
@pytest.mark.parametrize("kind", ["plain", "just below", "decades"])
def test_tf32_with_its_inflation_is_from_above(rng, terms, kind):
    """Assert both sides: at least the sum, and within 0.4 percent of it."""
    x, matrix = rng.exponential(size=(4, terms)), rng.normal(size=(8, terms))
    if kind == "just below":
        # all that is cut off is cut off everywhere
        x[:], matrix[:] = 2 - 2.0**-23, 1 + 2.0**-10 - 2.0**-23
    elif kind == "decades":
        x = x * 10.0 ** rng.uniform(-20, 10, x.shape)
    x, matrix = (v.astype(np.float32).astype(np.float64) for v in (x, matrix))
    exact = x @ np.abs(matrix).T
    found = in_tensor_cores(x, matrix) * sums.tf32_inflation(terms)
    assert np.all(found >= exact)
    assert np.all(found <= exact * 1.004)
    in_fp32 = np.asarray(sums.sum_of_magnitudes(jnp.asarray(x), jnp.asarray(matrix)))
    assert np.all(in_fp32 >= exact)
    assert np.all(in_fp32 <= exact * (1 + (terms + 8) * 2.0**-22))


def test_without_its_inflation_it_is_not(rng):
    """Assert that the cut shows: the worst operands lose more than half of it."""
    x, matrix = (
        np.full((1, 64), 2 - 2.0**-23),
        np.full((1, 64), 1 + 2.0**-10 - 2.0**-23),
    )
    lost = 1 - in_tensor_cores(x, matrix) / (x @ matrix.T)
    assert lost > 2.0**-10
