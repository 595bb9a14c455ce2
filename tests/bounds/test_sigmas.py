"""z is told from enough draws: one rounding that decides is no suspicion.

The draws of one rounding are uniform, as `arithmetic.sampled` draws them, and so is the
rounding of the run; a right z of it is sqrt(3) at most.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lyapunov.arithmetic import Bounded
from lyapunov.bounds import segments
from lyapunov.formats import BF16
from lyapunov.implementations import executions_for
from lyapunov.implementations._segment import Segment
from lyapunov.questions._audit_verdict import Z_LIMIT
from lyapunov.sublayers import NetworkConfig

from ..model.every_kind import SIZES


TOKENS = 20_000


def of_one_rounding(size):
    """In place of a sublayer: each token's error is one rounding's, times `size`."""
    calls = []

    def drawn(plan, inputs, parameters, start, keys, inside, exact):
        calls.append(np.asarray(jax.random.key_data(keys)))
        error = size * jnp.linspace(0.0, 1.0, TOKENS)
        one = lambda key: jax.random.uniform(key, (TOKENS,), minval=-1.0) ** 2
        square = jnp.mean(jax.vmap(one)(keys), axis=0)
        own = jnp.zeros(TOKENS)
        return segments._over(error, square, own), error, square, own

    return drawn, calls


def sigmas(monkeypatch, size):
    drawn, calls = of_one_rounding(size)
    monkeypatch.setattr(segments, "_z", drawn)
    keys = jax.random.split(jax.random.key(3), 4)
    nothing: Any = None
    given = nothing, nothing, nothing, nothing, keys, False, nothing
    few = drawn(*given)[0]
    calls.clear()
    z = segments._sigmas(*given)
    return z, few, calls


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


def test_a_choice_that_roundings_decide_has_no_sigma(monkeypatch):
    """Assert it where they may, and where they do for sure; elsewhere z stays."""
    sizes = SIZES["experts"]
    config = NetworkConfig(8, 8, sizes.d_model, (sizes,))
    (execution,) = executions_for(config, ["bf16"], architecture="jamba")
    exactly = np.array([[[1, 0], [0, 1], [0, 1], [1, 0]]], np.float64)
    chosen = np.array([[[1, 0], [1, 0], [0, 1], [1, 0]]], np.float64)
    error = np.zeros_like(chosen)
    error[0, 2] = 1.0
    z = np.array([[2.0, 100.0, 50.0, 3.0]])
    bounded = Bounded(jnp.asarray(chosen), jnp.asarray(error))
    monkeypatch.setattr(segments, "_exact", lambda *_: (None, exactly))
    monkeypatch.setattr(segments, "_sigmas", lambda *_: z)
    monkeypatch.setattr(segments, "_operations", lambda *_: {})
    monkeypatch.setattr(segments, "_output", lambda *_: (None, bounded))
    record = SimpleNamespace(incoming=None, output=None, stored={})
    own = Segment(0, 4, execution.of("experts"), BF16)
    found = segments.audit_sublayer([own], sizes, record, [None], [None], None, None)
    np.testing.assert_array_equal(found.z, [[2.0, 0.0, 0.0, 3.0]])
