"""Rules of angles, tanh, serial sums, uncertain stores; vectors of length sqrt(n)."""

import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import BoundedArithmetic, Exact, Rounded
from lyapunov.formats import BF16, TF32_OPERAND

from .balls import arb
from .moved import (
    MODELS,
    as_bounded,
    inputs,
    interpreter,
    linear,
    unary,
)


TURN = 2 * np.pi
# fp64's own share in what these tests compute themselves
OWN = 1e-12


@pytest.mark.parametrize("model", MODELS)
def test_tanh(rng, model):
    """Assert the bound, and within 1.5 of attained where nothing saturates."""
    m = MODELS[model]
    v, e = inputs(rng, -4, 4)
    relative = linear(max(m.tanh_relative, m.exp_relative), 0.0)
    reached = unary(
        rng,
        lambda at, x: at.tanh(x),
        lambda x: x.tanh() if x != 0 else arb(0),
        v,
        e,
        relative,
        m.underflow,
        model,
    )
    small = (e > 0) & (e < 0.1)
    assert (reached[small] >= 1 / 1.5).all()


def near(x):
    """Its distance from the next whole turn."""
    return np.abs(x - TURN * np.round(x / TURN))


@pytest.mark.parametrize("reach", [1.0, 40.0, 3e4])
def test_wrapped_angles_in_fp32_stay_within_their_bound(rng, reach):
    """Assert it of fp32's own wrap, and what the sum behind it adds; not vacuous."""
    angles = rng.uniform(-reach, reach, 4000).astype(np.float32)
    angles[:3] = 0.0, np.float32(TURN), np.nextafter(np.float32(TURN), np.float32(0))
    at = interpreter()
    bound = at.wrap(as_bounded(angles.astype(np.float64), np.zeros(angles.size)))
    turn = np.float32(TURN)
    wrapped = angles - turn * np.floor(angles / turn)
    assert wrapped.dtype == np.float32
    off = near(wrapped.astype(np.float64) - angles)
    assert (off <= np.asarray(bound.error) + OWN).all()
    assert off.max() >= np.asarray(bound.error).max() / 16
    # twice in a row, with a step between
    steps = rng.uniform(0, 1, angles.size).astype(np.float32)
    total = wrapped + steps
    again = total - turn * np.floor(total / turn)
    twice = at.wrap(at.add(bound, steps.astype(np.float64)))
    off = near(again.astype(np.float64) - angles - steps.astype(np.float64))
    assert (off <= np.asarray(twice.error) + OWN).all()
    assert (np.asarray(twice.value) >= 0).all()
    assert (np.asarray(twice.value) < TURN).all()


def test_emulated_and_exact_wraps_are_the_angle():
    """Assert that both give angles in [0, 2 pi], the same but for whole turns."""
    angles = np.linspace(-50, 50, 997)
    for at, off in ((Exact(), 1e-13), (Rounded({}), 50 * 4 * 2.0**-24 + 1e-6)):
        found = np.asarray(at.wrap(jnp.asarray(angles)), np.float64)
        assert (near(found - angles) <= off).all()
        assert found.min() >= -off
        assert found.max() <= TURN + off


def test_cosines_are_off_by_what_is_declared(rng):
    """Assert that an absolute error of the instruction is in both bounds."""
    v, e = inputs(rng)
    plain = interpreter().turns(as_bounded(v, e), 0)
    model = MODELS["kernel"]._replace(turn_absolute=jnp.asarray(2.0**-20))
    at = BoundedArithmetic({}, model)
    for one, other in zip(plain, at.turns(as_bounded(v, e), 0), strict=True):
        more = np.asarray(other.error) - np.asarray(one.error)
        np.testing.assert_allclose(more, 2.0**-20, rtol=1e-6)


def test_serial_sums_are_as_deep_as_they_are_long(rng):
    """Assert the bound of fp32 sums one after another, which a flat depth is below."""
    x = np.ones((4096, 3)) * np.asarray([1.0, 0.7, 1 / 3])
    x = x.astype(np.float32)
    at = interpreter(scan_depth=1)
    found = np.cumsum(x, axis=0, dtype=np.float32).astype(np.float64)
    exact = np.cumsum(x.astype(np.float64), axis=0)
    wide = as_bounded(x.astype(np.float64), np.zeros(x.shape))
    serial = np.asarray(at.cumsum(wide, serial=True).error)
    flat = np.asarray(at.cumsum(wide).error)
    assert (np.abs(found - exact) <= serial + OWN * exact).all()
    assert (np.abs(found - exact) > flat).any()


@pytest.mark.parametrize("fmt", [BF16, TF32_OPERAND])
def test_what_may_be_stored_is_bounded_either_way(rng, fmt):
    """Assert it rounded and not rounded, and that the emulator does round."""
    v = rng.normal(size=500)
    numbers = fmt.numbers()
    at = interpreter(sites={"here": numbers})
    x = as_bounded(v, 1e-4 * np.abs(v))
    bound = at.may_store("here", x)
    assert not at.records
    rounded = np.asarray(
        Rounded({"here": numbers}).may_store("here", jnp.asarray(v)), np.float64
    )
    assert (rounded != v.astype(np.float32)).any()
    for sign in (-1, 1):
        for got in (v, rounded):
            moved = np.abs(got + sign * 1e-4 * np.abs(v) - v)
            assert (moved <= np.asarray(bound.error) + 2.0**-24).all()
    assert at.may_store("elsewhere", x) is x


def test_no_normalised_vector_is_longer_than_sqrt_n(rng):
    """Assert it where errors dwarf the vector: never exceeded, nor beyond 2 sqrt(n)."""
    n = 8
    v = 1e-3 * rng.normal(size=(50, n))
    e = 10.0 ** rng.uniform(-3, 3, (50, n))
    bound = interpreter().rms_normalise(as_bounded(v, e), 1e-5)
    norm, error = np.asarray(bound.norm), np.asarray(bound.error)
    assert (norm <= 2.001 * np.sqrt(n)).all()
    exact = np.asarray(bound.value)
    nearly = 0.0
    for _ in range(200):
        x = v + e * rng.choice([-1.0, 0.0, 1.0], v.shape)
        y = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5)
        off = np.abs(y - exact)
        assert (off <= error).all()
        assert (np.linalg.norm(off, axis=-1) <= norm).all()
        nearly = max(nearly, (np.linalg.norm(off, axis=-1) / norm).max())
    assert nearly > 0.5


def test_an_unbounded_vector_stays_unbounded():
    """Assert that an error of inf is not made small by the length of what it gives."""
    v, e = np.ones((1, 4)), np.array([[1.0, np.inf, 1.0, 1.0]])
    bound = interpreter().rms_normalise(as_bounded(v, e), 1e-5)
    assert not np.isfinite(np.asarray(bound.error)).all()


def test_stored_angles_stay_within_their_bound_next_to_whole_turns(rng):
    """An execution that stands a turn away rounds a number of that magnitude."""
    at = interpreter(sites={"angle": BF16.numbers()})
    value = np.concatenate(
        [rng.uniform(0, 1e-3, 2000), TURN - rng.uniform(0, 1e-3, 2000)]
    )
    value = np.concatenate([value, rng.uniform(0, TURN, 2000)])
    error = np.full(value.size, 5e-4)
    bound = at.store("angle", as_bounded(value, error), angle=True)
    held = np.mod(value + error * rng.uniform(-1, 1, value.size), TURN)
    stored = np.asarray(
        Rounded({"angle": BF16.numbers()}).store("angle", held, angle=True)
    )
    # in units of 2^-8: as far as bf16 is apart below 1
    assert near(stored - held).max() > 2.0**-7
    off = near(stored - np.asarray(bound.value))
    assert (off <= np.asarray(bound.error) + OWN).all()
    inner = (value > 5e-4) & (value < TURN - 5e-4)
    # what came in, and bf16's spacing there
    spacing = 2.0 ** (np.floor(np.log2(value[inner] + 5e-4)) - 7)
    assert (np.asarray(bound.error)[inner] <= (5e-4 + spacing) * (1 + 1e-6)).all()


def test_a_stored_angle_is_held_to_the_turn_it_stands_on(rng):
    """T0: bf16's own angle never leaves the interval, one between does."""
    value = np.concatenate(
        [rng.uniform(0, 1e-3, 2000), TURN - rng.uniform(0, 1e-3, 2000)]
    )
    error = np.full(value.size, 5e-4)
    held = np.mod(value + error * rng.uniform(-1, 1, value.size), TURN)
    stored = Rounded({"angle": BF16.numbers()}).store("angle", held, angle=True)
    stored = np.asarray(stored, np.float64)
    # some stand on the other side of the turn
    astray = np.abs(stored - value) > np.pi
    assert 100 < astray.sum() < astray.size - 100
    at = interpreter(
        sites={"angle": BF16.numbers()}, anchors={"angle": jnp.asarray(stored)}
    )
    kept = at.store("angle", as_bounded(value, error), angle=True)
    np.testing.assert_array_equal(kept.value, stored)
    bound, limit = at.records["angle"].value, np.asarray(at.records["angle"].error)
    assert (np.abs(stored - np.asarray(bound)) <= limit).all()
    # the farthest is the end of the interval, and half of bf16's spacing at 2 pi
    assert (limit <= (5e-4 + 2.0**-6) * (1 + 1e-6)).all()
    wrong = np.abs(np.mod(stored + 0.04, TURN) - np.asarray(bound))
    assert (wrong > limit).all()


def test_with_an_error_above_pi_the_nearest_turn_counts(rng):
    """Both turns may be, next to the value as well: the farther accuses nobody."""
    value = rng.uniform(0, TURN, 4000)
    error = np.full(value.size, 3.3)
    share = rng.uniform(-1, 1, value.size) * rng.choice([1.0, 1e-3], value.size)
    held = np.mod(value + error * share, TURN)
    stored = Rounded({"angle": BF16.numbers()}).store("angle", held, angle=True)
    stored = np.asarray(stored, np.float64)
    at = interpreter(
        sites={"angle": BF16.numbers()}, anchors={"angle": jnp.asarray(stored)}
    )
    at.store("angle", as_bounded(value, error), angle=True)
    bound, limit = at.records["angle"].value, np.asarray(at.records["angle"].error)
    assert (np.abs(stored - np.asarray(bound)) <= limit).all()
