"""Changed parameters move a sublayer by no more than their bound, and nearly so much.

The bound holds for a box, |W' - W| <= E elementwise. Its worst weight set is a corner;
for one element of the output it is known to first order: every sign follows the
gradient, and the effect is sum |gradient| E.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import lyapunov
from lyapunov.arithmetic import Bounded, Exact
from lyapunov.bounds import parameters
from lyapunov.bounds.local import REFERENCE_SHARE
from lyapunov.bounds.parameters import (
    ParameterArithmetic,
    change_bound,
    change_floor,
    difference,
    sublayer_change,
    within,
)
from lyapunov.sublayers.residual import sublayer
from oracles.checkpoints.hard import SIZES, hard_weights, tokens_for
from oracles.checkpoints.mamba1 import save_transformers

from ..helpers import assert_within, gamma, parted


FIELDS = (
    *("norm", "in_proj", "conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias"),
    *("A_log", "D", "out_proj"),
)
SEQ = 24

_bounding = eqx.filter_jit(change_bound)
_running = eqx.filter_jit(lambda f, i, p, s: sublayer(Exact(), f, i, p, s)[1])


def _first(stream):
    """The first sequence."""
    return jax.tree.map(lambda x: x[0], stream)


@pytest.fixture(scope="module")
def sublayers(tmp_path_factory):
    """A function: kind of trouble -> flow, stream, parameters and state of layer 1."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("changed") / "model"
            model = lyapunov.load(save_transformers(folder, hard_weights(kind), SIZES))
            record = parted(lyapunov.trace(model, tokens_for(kind)[:SEQ]))[0][1]
            p = model.parameters(1)
            stream = jax.tree.map(jnp.asarray, record.incoming)
            made[kind] = model.sublayers[1].flow, stream, p, model.start(p)
        return made[kind]

    return get


def _box(p, share, only=None):
    """Distances: a share of each parameter's own typical size, or of some alone."""
    whole = jax.tree.map(
        lambda a: share * (0.5 * jnp.abs(a) + 0.5 * jnp.sqrt(jnp.mean(a**2))), _plain(p)
    )
    if only is None:
        return whole
    none = jax.tree.map(jnp.zeros_like, whole)
    kept = [getattr(whole, name) for name in only]
    return eqx.tree_at(lambda t: [getattr(t, name) for name in only], none, kept)


def _plain(p):
    zero = jax.tree.map(jnp.zeros_like, difference(p, p))
    return difference(zero, p)


def _corner(box, signs, rng):
    """A weight set of the box: at its corners, or anywhere within."""

    def one(size):
        draw = rng.uniform(-1, 1, np.shape(size))
        return size * (np.where(draw < 0, -1.0, 1.0) if signs else draw)

    return jax.tree.map(one, box)


def _moved(p, offset):
    return jax.tree.map(jnp.add, p, offset)


def _bound(flow, stream, p, box, start):
    return _bounding(flow, _first(stream), within(p, box), start)


def _output(flow, stream, p, start):
    return np.asarray(_running(flow, _first(stream), p, start))


def _own(output):
    """What fp64 itself may lose: the share of a token's norm that bounds carry."""
    return 2 * REFERENCE_SHARE * np.linalg.norm(output, axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", ["plain", "outliers", "dt", "A", "repeated"])
@pytest.mark.parametrize("share", [1e-6, 2.0**-8, 0.3])
def test_no_weight_set_within_the_box_exceeds_the_bound(sublayers, kind, share, rng):
    flow, stream, p, start = sublayers(kind)
    box = _box(p, share)
    bound = _bound(flow, stream, p, box, start)
    before = _output(flow, stream, p, start)
    for i in range(12):
        after = _output(flow, stream, _moved(p, _corner(box, i % 2, rng)), start)
        apart = np.abs(after - before)
        assert np.all(apart <= np.asarray(bound.error) + _own(before) + _own(after))
        length = np.linalg.norm(apart, axis=-1)
        assert np.all(length <= np.asarray(bound.norm) + _own(before + after)[:, 0])


@pytest.mark.parametrize("kind", ["plain", "outliers", "dt", "A"])
def test_no_search_exceeds_the_bound(sublayers, kind, rng):
    """Signs that follow the gradient: the worst weight sets that are easily found."""
    flow, stream, p, start = sublayers(kind)
    for name in FIELDS:
        changed = _moved(p, _corner(_box(p, 1e-3, [name]), True, rng))
        found, own = change_floor(flow, stream, p, changed, start)
        change = sublayer_change(flow, stream, p, changed, start)
        bound = float(np.sqrt(np.sum(change.bound_square)))
        assert float(own) <= float(found) <= bound * (1 + 1e-9), name
        assert int(np.sum(change.violations)) == 0
        measured = float(np.sqrt(np.sum(change.measured_square)))
        assert measured == pytest.approx(float(own), rel=1e-6)


# Bound over the worst case of one element. 1 where the output is linear in the
# parameter; elsewhere the rules add up what reaches an element on several ways (decay
# and drive, dt and B and C, both halves of in_proj) and may cancel.
LIMITS = {
    "D": 1.0 + 1e-5,
    "out_proj": 1.0 + 1e-5,
    "A_log": 2.0,
    "dt_bias": 12.0,
    "dt_proj": 12.0,
    "x_proj": 15.0,
    "conv_weight": 20.0,
    "conv_bias": 30.0,
    "in_proj": 25.0,
    "norm": 90.0,
}


def test_bound_is_near_the_worst_case_of_an_element(sublayers, rng):
    flow, stream, p, start = sublayers("plain")

    def run(offset):
        moved = _moved(p, offset)
        return sublayer(Exact(), flow, _first(stream), moved, start)[1]

    out, pull = jax.vjp(run, jax.tree.map(jnp.zeros_like, _plain(p)))
    places = [(int(rng.integers(8, SEQ)), int(rng.integers(16))) for _ in range(6)]
    slopes = [pull(jnp.zeros_like(out).at[place].set(1.0))[0] for place in places]
    for name in FIELDS:
        # what is of second order in 1e-7 is beyond the comparison's digits
        box = _box(p, 1e-7, [name])
        error = np.asarray(_bound(flow, stream, p, box, start).error)
        for place, slope in zip(places, slopes, strict=True):
            terms = jax.tree.map(lambda g, e: jnp.sum(jnp.abs(g) * e), slope, box)
            worst = float(sum(jax.tree.leaves(terms)))
            assert worst * (1 - 1e-5) <= error[place] <= LIMITS[name] * worst, name


def test_linear_parameters_have_the_bound_in_closed_form(sublayers):
    """out_proj: E |gated|; D: |W_out| (dD |u silu(z)|), by NumPy from the stores."""

    class Watching(Exact):
        def store(self, site, x, *, angle=False):
            self.records[site] = x
            return x

    flow, stream, p, start = sublayers("plain")
    at = Watching()
    sublayer(at, flow, _first(stream), p, start)
    seen = jax.tree.map(np.asarray, at.records)
    box = _box(p, 0.1, ["out_proj"])
    wanted = np.abs(seen["gated"]) @ np.asarray(box.out_proj.matrix).T
    error = np.asarray(_bound(flow, stream, p, box, start).error)
    # sums of 32 positive terms, and 1e-9 of safety a rule
    assert_within(error, wanted, (gamma(40, 2.0**-53) + 4e-9) * wanted, "out_proj")

    box = _box(p, 0.1, ["D"])
    drive = np.asarray(box.D) * np.abs(seen["conv"] * seen["silu_z"])
    wanted = drive @ np.abs(np.asarray(p.out_proj.matrix)).T
    error = np.asarray(_bound(flow, stream, p, box, start).error)
    assert_within(error, wanted, (gamma(40, 2.0**-53) + 9e-9) * wanted, "D")


positive = st.floats(1e-6, 40.0)
share = st.just(0.0) | st.floats(1e-12, 0.9)


@settings(max_examples=300, deadline=None)
@given(dt=positive, A=positive, e=share, f=share)
def test_decay_is_an_interval(dt, A, e, f):
    """Against 50 digits at the corners; nearly attained where the errors are small."""
    e, f = e * dt, f * A
    one = lambda v, r: Bounded(jnp.asarray([v]), jnp.asarray([r]), jnp.asarray(r))
    found = ParameterArithmetic().decay(one(dt, e), one(-A, f))
    with mpmath.workdps(50):
        exact = lambda x, a: mpmath.exp(-mpmath.mpf(x) * mpmath.mpf(a))
        centre = exact(dt, A)
        corners = [
            abs(exact(mpmath.mpf(dt) + s * e, mpmath.mpf(A) + r * f) - centre)
            for s in (-1, 1)
            for r in (-1, 1)
        ]
        worst = max(corners)
        error = mpmath.mpf(float(found.error[0]))
        # the value's own error: exp within 2 ulp, its argument within one
        own = centre * (dt * A + 4) * mpmath.mpf(2) ** -52 + mpmath.mpf(2) ** -1021
        assert abs(mpmath.mpf(float(found.value[0])) - centre) <= own
        assert error * (1 + mpmath.mpf(2) ** -40) >= worst - mpmath.mpf(2) ** -1021
        if A * e + dt * f < 1e-3:
            assert error <= worst * (1 + 3e-3) + mpmath.mpf(2) ** -1020


@pytest.mark.parametrize("name", FIELDS)
def test_a_bound_that_forgets_a_parameter_is_caught(sublayers, name, rng, monkeypatch):
    """The change of one parameter is dropped from the box that holds all of them."""
    flow, stream, p, start = sublayers("plain")
    changed = _moved(p, _corner(_box(p, 2.0**-8, [name]), True, rng))
    whole = parameters.sublayer_change(flow, stream, p, changed, start)
    assert int(np.sum(whole.violations)) == 0
    kept = parameters.within

    def forgetful(base, change):
        dropped = jax.tree.map(jnp.zeros_like, getattr(change, name))
        return kept(base, eqx.tree_at(lambda t: getattr(t, name), change, dropped))

    monkeypatch.setattr(parameters, "within", forgetful)
    broken = parameters.sublayer_change(flow, stream, p, changed, start)
    assert int(np.sum(broken.violations)) > 0


def _half_the_change(self, x, weight, bias=None):
    halved = eqx.tree_at(lambda w: w.error, weight, weight.error * 0.5)
    return self.whole(x, halved, bias)


def _nothing_passed_on(self, x, weight, bias=None):
    return self.whole(getattr(x, "value", x), weight, bias)


def _no_norm(self, x, weight, bias=None):
    found = self.whole(x, weight, bias)
    return Bounded(found.value, found.error * 0.02, found.norm * 0.02)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(_half_the_change, marks=pytest.mark.slow),
        _nothing_passed_on,
        _no_norm,
    ],
)
def test_broken_rules_for_projections_are_caught(sublayers, broken, rng, monkeypatch):
    """Some corner of the box of out_proj, or of D, shows what the rule lost."""
    arithmetic = parameters.ParameterArithmetic
    monkeypatch.setattr(arithmetic, "whole", arithmetic.matmul, raising=False)
    monkeypatch.setattr(arithmetic, "matmul", broken)
    flow, stream, p, start = sublayers("plain")
    box = _box(p, 1e-3, ["out_proj", "D"])
    error = parameters.change_bound(
        flow, _first(stream), parameters.within(p, box), start
    ).error

    def run(offset):
        moved = _moved(p, offset)
        return sublayer(Exact(), flow, _first(stream), moved, start)[1]

    out, pull = jax.vjp(run, jax.tree.map(jnp.zeros_like, box))
    (slope,) = pull(jnp.zeros_like(out).at[SEQ - 1, 3].set(1.0))
    worst = jax.tree.map(lambda g, e: jnp.where(g < 0, -e, e), slope, box)
    apart = jnp.abs(run(worst) - out)[SEQ - 1, 3]
    assert float(apart) > float(error[SEQ - 1, 3]) + float(_own(np.asarray(out)).max())


def test_nothing_changed_leaves_what_fp64_loses_of_the_stream(sublayers):
    flow, stream, p, start = sublayers("plain")
    change = sublayer_change(flow, stream, p, p, start)
    # the residual's sum alone is off, by 2^-53 of it; sublayers amplify by < 2^13
    size = float(np.max(np.abs(stream.residual + stream.hidden)))
    assert float(np.max(change.bound_square)) <= (2.0**-40 * size) ** 2
    assert float(np.max(change.measured_square)) == 0.0


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        *(
            pytest.param(k, marks=pytest.mark.slow)
            for k in ("outliers", "dt", "A", "repeated")
        ),
    ],
)
def test_none_of_two_hundred_weight_sets_is_called_a_violation(sublayers, kind, rng):
    flow, stream, p, start = sublayers(kind)
    for i in range(200):
        box = _box(p, 10.0 ** rng.uniform(-7, -0.5), [FIELDS[i % len(FIELDS)]])
        changed = _moved(p, _corner(box, i % 3, rng))
        change = sublayer_change(flow, stream, p, changed, start)
        assert int(np.sum(change.violations)) == 0, (i, FIELDS[i % len(FIELDS)])
