"""The centred store: the middle of what may be stored, and no wider than that.

An execution may bring any v' within v +- e, of L2 distance n at most, to a store; it
stores round(v'). Rounding here is NumPy's: rint of a multiple of a power of two.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import Bounded, BoundedArithmetic, RoundingModel
from lyapunov.arithmetic.rules import storage
from lyapunov.formats import FORMATS
from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL

from .balls import choices


SIZE = 256
NAMES = ["bf16", "fp16", "fp8_e4m3", "fp8_e5m2"]
# the few fp64 roundings on the way of a bound and of a distance
OWN = 1 + 2.0**-48


def rounded(x, fmt):
    place = np.maximum(np.frexp(x)[1] - 1, fmt.min_exponent)
    step = np.ldexp(1.0, place - fmt.significand_bits + 1)
    return np.rint(x / step) * step


def interpreter(fmt, model=None):
    sites = {"x": fmt.numbers()}
    return BoundedArithmetic(sites, model or RoundingModel.none(), centred=True)


def store(fmt, x: Bounded) -> Bounded:
    stored = interpreter(fmt).store("x", x)
    assert isinstance(stored, Bounded)
    return stored


def values(rng, fmt):
    """Values at ties, beside ties, at powers of two, subnormal and anywhere."""
    u = fmt.unit_roundoff
    v = rng.uniform(-6, 6, SIZE) * 2.0 ** rng.integers(-12, 3, SIZE)
    special = [
        1 + u,
        -(1 + 3 * u),
        fmt.smallest / 2,
        2.5 * fmt.smallest,
        0.0,
        2 + 2 * u,
    ]
    v[:6] = special
    v[6:12] = np.asarray(special) * (1 + 1e-9)
    v[12:16] = [1.0, -2.0, 1 - u / 2, 2 - u]
    e = np.abs(v) * 10.0 ** rng.uniform(-8, 0.2, SIZE)
    e[::7] = 0.0
    return v, e


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_stored_outside_and_both_ends_are(rng, name):
    """Assert every stored number within the error, and the outermost at its rim."""
    fmt = FORMATS[name]
    v, e = values(rng, fmt)
    bound = store(fmt, Bounded(jnp.asarray(v), jnp.asarray(e)))
    value, error = np.asarray(bound.value), np.asarray(bound.error)
    for move in choices(rng, SIZE, 8):
        stored = rounded(v + move * e, fmt)
        assert (np.abs(stored - value) <= error * OWN).all()
    low, high = rounded(v - e, fmt), rounded(v + e, fmt)
    # what fp64 may have lost of v widens the interval a little
    near = rounded(v - e * 1.0002, fmt), rounded(v + e * 1.0002, fmt)
    certain = (near[0] == low) & (near[1] == high)
    assert certain.mean() > 0.9
    assert (error[certain] <= (high - low)[certain] / 2 * (1 + 2e-9)).all()
    # where one number alone can be stored it is known, and nothing is open
    single = certain & (low == high)
    assert single.any()
    np.testing.assert_array_equal(value[single], low[single])


@pytest.mark.parametrize("name", NAMES)
def test_rare_crossings_cost_no_more_than_they_bring(rng, name):
    """Assert that a store leaves small errors on average as they were.

    An error e far below the spacing s lets a share 2 e / s of all values cross, each
    by s: half of it around the middle. Around the number that v itself is rounded to
    it would be twice as much.
    """
    fmt = FORMATS[name]
    many = 40_000
    v = rng.uniform(1.0, 2.0, many)
    for share in (0.02, 0.1):
        e = share * 2 * fmt.unit_roundoff
        x = Bounded(jnp.asarray(v), jnp.full(many, e))
        mean = float(jnp.mean(store(fmt, x).error))
        # crossings are counted: a relative 1 / sqrt(many 2 share), four times that
        assert abs(mean / e - 1) <= 4 / (many * 2 * share) ** 0.5 + 2.0**-12


def adversary(rng, v, e, n):
    """Moves within e and of L2 length n: few elements, each as far as it may."""
    for _ in range(20):
        order, move, left = rng.permutation(SIZE), np.zeros(SIZE), n**2
        for i in order:
            step = min(e[i], left**0.5)
            move[i] = step * rng.choice([-1, 1]) * (1 - 2.0**-50)
            left = max(left - step**2, 0.0)
        yield v + move


def worst_in_norm(rng, fmt) -> float:
    """Largest distance over its bound, in L2, among moves of a given length."""
    worst = 0.0
    for share in (0.05, 0.5, 3.0):
        v = rng.uniform(1.0, 2.0, SIZE)
        e = np.full(SIZE, share * fmt.unit_roundoff)
        n = 0.2 * np.linalg.norm(e)
        x = Bounded(jnp.asarray(v), jnp.asarray(e), jnp.asarray(n))
        bound = store(fmt, x)
        for moved in adversary(rng, v, e, n):
            distance = np.linalg.norm(rounded(moved, fmt) - np.asarray(bound.value))
            worst = max(worst, distance / float(bound.norm))
    return float(worst)


@pytest.mark.parametrize("name", NAMES)
def test_the_norm_holds_for_moves_of_its_length(rng, name, monkeypatch):
    """Assert the L2 bound, close to attained; without crossings it is exceeded."""
    fmt = FORMATS[name]
    assert 0.5 <= worst_in_norm(rng, fmt) <= OWN
    whole = storage.middle

    def forgets(x, numbers):
        """Takes rounding to add nothing to a distance in L2."""
        value, error, crossing = whole(x, numbers)
        return value, error, 0.0 * crossing

    monkeypatch.setattr(storage, "middle", forgets)
    assert worst_in_norm(rng, fmt) > 1.0


def test_a_possible_overflow_leaves_a_number_and_no_bound():
    """Assert a finite centre and an infinite error around a possible overflow."""
    fmt = FORMATS["fp16"]
    v, e = np.array([65504.0, 65000.0, 65000.0, 7e4]), np.array([0.0, 400, 600, 0])
    x = store(fmt, Bounded(jnp.asarray(v), jnp.asarray(e)))
    assert np.isfinite(np.asarray(x.value)).all()
    assert np.isfinite(np.asarray(x.error)[:2]).all()
    assert (np.asarray(x.error)[2:] == np.inf).all()


@pytest.mark.parametrize("operation", ["add", "multiply"])
def test_a_lone_operation_is_centred_as_well(rng, operation):
    """Assert lone fp32 sums and products of moved operands within their bounds."""
    v, w = (rng.normal(size=SIZE).astype(np.float32) for _ in range(2))
    e = np.abs(v) * 10.0 ** rng.uniform(-8, -5, SIZE)
    e[::3] = 0.0
    at = interpreter(FORMATS["bf16"], model=KERNEL.model())
    x = Bounded(jnp.asarray(v, jnp.float64), jnp.asarray(e))
    bound = getattr(at, operation)(x, jnp.asarray(w, jnp.float64), alone=True)
    value, error = np.asarray(bound.value), np.asarray(bound.error)
    for move in choices(rng, SIZE, 4):
        moved = np.clip((v + move * e).astype(np.float32), v - e, v + e)
        moved = moved.astype(np.float32)
        inside = np.abs(moved.astype(np.float64) - v) <= e
        done = moved + w if operation == "add" else moved * w
        assert (np.abs(done - value) <= error * OWN)[inside].all()
    exact = v + w if operation == "add" else v * w
    np.testing.assert_array_equal(value[e == 0], exact[e == 0].astype(np.float64))
    assert (error[e == 0] == 0).all()


def test_centred_stores_are_the_same_under_jit(rng):
    """Assert that compiling changes neither centre nor error."""
    fmt = FORMATS["bf16"]
    v, e = values(rng, fmt)
    run = lambda v, e: store(fmt, Bounded(v, e))
    plain = run(jnp.asarray(v), jnp.asarray(e))
    fast = jax.jit(run)(jnp.asarray(v), jnp.asarray(e))
    np.testing.assert_array_equal(np.asarray(plain.value), np.asarray(fast.value))
    np.testing.assert_allclose(plain.error, fast.error, rtol=1e-15)
