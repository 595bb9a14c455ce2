"""z is told from enough draws: one rounding that decides is no suspicion.

The draws of one rounding are uniform, as `arithmetic.sampled` draws them, and so is the
rounding of the run; a right z of it is sqrt(3) at most.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lyapunov.bounds import segments
from lyapunov.questions._audit_verdict import Z_LIMIT


TOKENS = 20_000


def of_one_rounding(size):
    """In place of a sublayer: each token's error is one rounding's, times `size`."""
    calls = []

    def drawn(plan, inputs, parameters, start, keys, inside):
        calls.append(np.asarray(jax.random.key_data(keys)))
        error = size * jnp.linspace(0.0, 1.0, TOKENS)
        one = lambda key: jax.random.uniform(key, (TOKENS,), minval=-1.0) ** 2
        square = jnp.mean(jax.vmap(one)(keys), axis=0)
        own = jnp.zeros(TOKENS)
        return segments._over(error, square, own), None, error, square, own

    return drawn, calls


def sigmas(monkeypatch, size):
    drawn, calls = of_one_rounding(size)
    monkeypatch.setattr(segments, "_z", drawn)
    keys = jax.random.split(jax.random.key(3), 4)
    few = drawn(None, None, None, None, keys, False)[0]
    calls.clear()
    return segments._sigmas(None, None, None, None, keys, False)[0], few, calls


def test_a_rounding_that_decides_is_no_suspicion(monkeypatch):
    """Assert that four draws would suspect it, and that all draws are other ones."""
    z, few, calls = sigmas(monkeypatch, 1.0)
    assert few.max() > Z_LIMIT
    # of 64 squares the mean is a third, less 6 of its standard errors at most
    assert z.max() < 1 / np.sqrt(1 / 3 - 6 * np.sqrt(4 / 45 / 64))
    assert len(calls) == segments.MORE_DRAWS
    assert len({key.tobytes() for keys in calls for key in keys}) == 64


def test_what_no_rounding_explains_stays(monkeypatch):
    """Assert it of errors of nine and ten times the largest rounding."""
    z, _, _ = sigmas(monkeypatch, 10.0)
    assert (z[-TOKENS // 10 :] > Z_LIMIT).all()


def test_what_is_small_is_drawn_once(monkeypatch):
    """Assert that nothing more is computed, and the z of the first draws."""
    z, few, calls = sigmas(monkeypatch, 1e-3)
    assert len(calls) == 1
    np.testing.assert_array_equal(z, few)
