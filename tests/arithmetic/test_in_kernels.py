"""The exponential of kernels, held to mpmath."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from lyapunov.arithmetic._in_kernels import LEAST_EXPONENT, exponential


found_by = partial(exponential, compiled=False)


@pytest.mark.parametrize("run", [found_by, jax.jit(found_by)])
def test_exponentials_are_within_four_units(rng, run):
    """Assert 2^-51 of the exact one, also where XLA may reorder what is added."""
    x = np.concatenate(
        [
            rng.uniform(LEAST_EXPONENT, 0, 1000),
            -(10.0 ** rng.uniform(-300, 2.8, 1000)),
            -np.log(2) * (np.arange(1000) + 0.5),
            [0.0, -0.0, LEAST_EXPONENT],
        ]
    )
    x = x[x >= LEAST_EXPONENT]
    with mpmath.workprec(200):
        for found, argument in zip(np.asarray(run(jnp.asarray(x))), x, strict=True):
            exact = mpmath.exp(float(argument))
            assert abs(float(found) - exact) <= exact * 2.0**-51


def test_beyond_fp64_it_is_next_to_nothing():
    """Assert no more than 3.4e-308 for what is smaller, -inf too, and NaN for NaN."""
    far = found_by(jnp.asarray([-709.0, -1e4, -1e300, -jnp.inf]))
    assert np.all((np.asarray(far) > 0) & (np.asarray(far) <= 3.4e-308))
    # bits that a GPU's NaN may have
    bits = [0x7FF8000000000000, 0x7FFFFFFFFFFFFFFF, 0xFFF8000000000001]
    every = jnp.asarray(np.asarray(bits, np.uint64).view(np.float64))
    assert np.all(np.isnan(found_by(every)))
