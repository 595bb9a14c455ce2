"""What routers of experts compute, with errors: never exceeded, and reached.

The same model of an execution as in `moved`: it starts anywhere
within v +- e.
"""

from fractions import Fraction

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from lyapunov.arithmetic import (
    Bounded,
    BoundedArithmetic,
    Exact,
    RoundingModel,
    Weight,
)
from lyapunov.arithmetic._interface import CHOSEN
from lyapunov.sublayers.experts import ExpertsParameters, route

from ..helpers import gamma


EXACT = BoundedArithmetic({}, RoundingModel.none())
# the bound's own fp64 arithmetic
OWN = 1 + gamma(64, 2.0**-53)


def bounded(v, e):
    return Bounded(jnp.asarray(v), jnp.asarray(e))


def test_sigmoid(rng):
    """Assert both ends of the interval, and that the bound is near the farther one."""
    v = np.concatenate([rng.uniform(-30, 30, 60), [0.0, 0.0, -40.0, 40.0]])
    e = np.abs(v) * 10.0 ** rng.uniform(-6, 0, v.size) + 1e-3 * (v == 0)
    bound = EXACT.sigmoid(bounded(v, e))
    with mpmath.workdps(50):
        sigmoid = lambda x: 1 / (1 + mpmath.exp(-mpmath.mpf(float(x))))
        ends = [
            [abs(sigmoid(x + s * d) - sigmoid(x)) for s in (-1, 1)]
            for x, d in zip(v, e, strict=True)
        ]
        reached = np.array(
            [float(max(pair)) / max(float(b), 1e-300)
             for pair, b in zip(ends, bound.error, strict=True)]
        )  # fmt: skip
    assert (reached <= OWN).all()
    assert reached[e > 0].min() > 1 / OWN - 1e-8  # no more than the farther end


def test_sigmoid_is_rounded(rng):
    """Assert that a declared relative error is in the bound, and little more."""
    unit = jnp.asarray(2.0**-8)
    model = RoundingModel.none()._replace(silu_relative=unit)
    v = rng.uniform(-8, 8, 40)
    bound = BoundedArithmetic({}, model).sigmoid(bounded(v, np.zeros(40)))
    lost = np.asarray(bound.value) * 2.0**-8
    assert (lost <= np.asarray(bound.error) * OWN).all()
    assert (np.asarray(bound.error) <= lost * 1.01).all()


def test_a_choice_is_observed():
    """Assert it of the exact one, and of the bounded one, open where ends meet."""
    v = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 2.0], [1.0, 1.0, 2.0]])
    e = np.array([[0.4, 0.4, 3.0], [0.5, 0.5, 0.0], [0.9, 0.0, 0.0], [0.0, 0.0, 0.0]])
    at, exact = BoundedArithmetic({}, RoundingModel.none()), Exact()
    at.largest(bounded(v, e), 2)
    found = at.observed[CHOSEN]
    np.testing.assert_array_equal(found.error.any(-1), [True, True, False, True])
    exact.largest(jnp.asarray(v), 2)
    expected = [[0, 1, 1], [0, 1, 1], [0, 1, 1], [1, 0, 1]]
    np.testing.assert_array_equal(exact.observed[CHOSEN], expected)
    np.testing.assert_array_equal(found.value, expected)
    silent = Exact(observes=False)
    silent.largest(jnp.asarray(v), 2)
    assert not silent.observed


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_shares(rng, floor):
    """Assert extremes: one term at its upper end, the others at their lower ends."""
    best = 0.0
    for scale in (1e-9, 1e-6, 1e-3, 0.05, 0.3, 2.0):
        v = rng.uniform(0.0, 1.0, 7)
        e = scale * rng.uniform(0.2, 1.0, 7) * v
        bound = EXACT.shares(bounded(v, e), floor)
        np.testing.assert_allclose(bound.value, v / (v.sum() + floor), rtol=1e-15)
        for i in range(7):
            for sign in (1.0, -1.0):
                w = np.maximum(v - sign * e, 0.0)
                w[i] = max(v[i] + sign * e[i], 0.0)
                before = Fraction(v[i]) / sum(map(Fraction, [*v, floor]))
                after = Fraction(w[i]) / sum(map(Fraction, [*w, floor]))
                distance = abs(after - before)
                # fp64 loses something of v + e, too
                allowed = float(bound.error[i]) * OWN + 7 * 2.0**-53 * v.max()
                assert distance <= allowed
                best = max(best, float(distance) / allowed)
        for _ in range(200):
            w = np.maximum(v + e * rng.uniform(-1, 1, 7), 0.0)
            distance = np.abs(w / (w.sum() + floor) - v / (v.sum() + floor))
            assert (distance <= np.asarray(bound.error) * OWN).all()
    assert best > 0.99


@pytest.mark.parametrize("count", [1, 2, 5])
def test_largest(rng, count):
    """Assert that an entry is open exactly where both choices can be reached."""
    for scale in (0.0, 0.05, 0.3):
        v, e = rng.normal(size=8), scale * rng.uniform(0.1, 1.0, 8)
        bound = EXACT.largest(bounded(v, e), count)
        chosen = lambda w: np.isin(np.arange(8), np.argsort(-w)[:count])
        np.testing.assert_array_equal(np.asarray(bound.value) == 1.0, chosen(v))
        for i in range(8):
            up, down = v - e, v + e
            up[i], down[i] = v[i] + e[i], v[i] - e[i]
            reachable = {bool(chosen(up)[i]), bool(chosen(down)[i])}
            assert (bound.error[i] > 0) == (len(reachable) == 2)


def test_routes_are_held_to_bounds_whichever_experts_are_chosen(rng):
    """Assert weights of executions whose router is off, across changes of experts."""
    router = Weight(jnp.asarray(rng.normal(size=(6, 5))))
    for scoring, shares in (("softmax", False), ("softmax", True), ("sigmoid", True)):
        p = ExpertsParameters(
            norm=None, router=router, router_bias=jnp.asarray(rng.normal(size=6) / 9),
            up=jnp.zeros((6, 1, 5)), gate=None, down=jnp.zeros((6, 5, 1)),
            to_latent=None, to_latent_bias=None, from_latent=None,
            from_latent_bias=None, shared=None, activation="silu", chosen=2,
            scoring=scoring, shares=shares,
        )  # fmt: skip
        x, e = rng.normal(size=(400, 5)), 0.004
        bound = route(EXACT, bounded(x, np.full_like(x, e)), p)
        changed = 0
        for _ in range(30):
            off = bounded(x + e * rng.uniform(-1, 1, x.shape), np.zeros_like(x))
            moved = route(EXACT, off, p).value
            distance = np.abs(np.asarray(moved - bound.value))
            assert (distance <= np.asarray(bound.error) * OWN).all()
            changed += int(((moved > 0) != (bound.value > 0)).any(axis=-1).sum())
        assert changed > 0
        # tokens whose experts are not in doubt have bounds that say something
        assert (np.asarray(bound.error) < 0.2).all(axis=-1).mean() > 0.3
