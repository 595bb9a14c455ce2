"""Sums over a running maximum: bounds against many digits, of executions as they are.

An execution carries (sum e^-m', m') with a maximum m' that is off itself. What its
bound speaks of is sum, over the exact maximum.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import mpmath
import numpy as np
import pytest

from lyapunov.arithmetic import Exact, Rounded
from lyapunov.arithmetic._log_weights import (
    LOG_WEIGHTS,
    NORMALISED,
    QUOTIENT,
    UNDER_SCALE,
)
from lyapunov.formats import FORMATS
from lyapunov.implementations.transformers.mamba1 import TORCH
from lyapunov.sublayers.rwkv4 import NO_TOKEN

from .moved import as_bounded, interpreter


DIGITS = 60
DTYPES = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}
SIZE = 24


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True), mpmath.workdps(DIGITS):
        yield


def fp32(x):
    return np.asarray(x, np.float32)


def execution(top, log_decay, key):
    """As transformers computes it, in fp32."""
    moved = fp32(top) + fp32(log_decay)
    after = np.maximum(moved, fp32(key))
    with np.errstate(under="ignore"):
        return np.exp(moved - after), np.exp(fp32(key) - after), after


def over_the_exact(result, top, exact_top, exact_after):
    """What an execution has, times e^((M' - M) - (m' - m)), in many digits."""
    kept, new, after = ([mpmath.mpf(float(x)) for x in part] for part in result)
    shift = [a - b for a, b in zip(after, exact_after, strict=True)]
    back = [mpmath.mpf(float(a)) - b for a, b in zip(top, exact_top, strict=True)]
    return (
        [x * mpmath.exp(s - b) for x, s, b in zip(kept, shift, back, strict=True)],
        [x * mpmath.exp(s) for x, s in zip(new, shift, strict=True)],
        after,
    )


def operands(rng, size):
    """Maxima, log decays and keys: alike, and far apart either way."""
    top = fp32(rng.uniform(-size, size, SIZE)).astype(np.float64)
    log_decay = -fp32(np.exp(rng.uniform(-8, 4, SIZE))).astype(np.float64)
    key = fp32(rng.uniform(-size, size, SIZE)).astype(np.float64)
    top[0], log_decay[1] = np.float32(NO_TOKEN), 0.0
    key[2:6] = fp32(top[2:6] + log_decay[2:6])
    return top, log_decay, key


def ratios(values, bound, allowed):
    """How far each is off, over its bound, which it may not exceed."""
    found = []
    for row, part in enumerate(values):
        for i, x in enumerate(part):
            off = abs(x - mpmath.mpf(float(bound.value[row, i])))
            own = mpmath.mpf(2) ** -52 * (abs(x) + 1)  # of fp64's own value
            limit = mpmath.mpf(float(bound.error[row, i]))
            assert off <= limit + own, (row, i, off, limit)
            if limit > 0 and allowed[row][i]:
                found.append(float(off / limit))
    return np.array(found)


@pytest.mark.parametrize("size", [3.0, 60.0, 300.0])
@pytest.mark.parametrize("spread", [0.0, 1e-3])
def test_weights_are_within_their_bounds_over_any_maximum(rng, size, spread):
    """Assert it of operands moved within their errors, and the bound attained.

    The maximum's error is a thousand times that of the others, and in no weight.
    """
    exact = operands(rng, size)
    errors = [np.full(SIZE, spread * 1e3), np.full(SIZE, spread), np.full(SIZE, spread)]
    errors[0][0] = errors[1][1] = 0.0
    at = interpreter("none")
    at.model = TORCH.model()
    given = [as_bounded(v, e) for v, e in zip(exact, errors, strict=True)]
    bound = at.apply(LOG_WEIGHTS, *given)
    exact_top = [mpmath.mpf(float(x)) for x in exact[0]]
    exact_after = [
        max(mpmath.mpf(float(a)) + mpmath.mpf(float(b)), mpmath.mpf(float(c)))
        for a, b, c in zip(*exact, strict=True)
    ]
    reached = []
    for signs in np.ndindex(3, 3, 3):
        moved = [v + (s - 1) * e for v, s, e in zip(exact, signs, errors, strict=True)]
        # an fp32 number that is no farther
        moved = [
            np.where(np.abs(fp32(x) - v) <= e, fp32(x), v)
            for x, v, e in zip(moved, exact, errors, strict=True)
        ]
        result = execution(*moved)
        values = over_the_exact(result, moved[0], exact_top, exact_after)
        counts = [np.asarray(bound.value[row]) > 1e-30 for row in (0, 1)]
        reached.append(ratios(values, bound, [*counts, np.zeros(SIZE, bool)]).max())
    assert max(reached) > (0.9 if spread else 0.15)


def test_a_weight_is_no_farther_off_where_the_maximum_is(rng):
    """Assert next to the same bounds for a maximum that is thousands of roundings off,
    which its own bound has."""
    at = interpreter("none")
    at.model = TORCH.model()
    top, *rest = operands(rng, 30.0)
    near, far = (
        at.apply(
            LOG_WEIGHTS, as_bounded(top, np.full(SIZE, e)), *map(jnp.asarray, rest)
        )
        for e in (0.0, 1e-3)
    )
    np.testing.assert_allclose(far.error[:2], near.error[:2], 1e-2)
    assert np.asarray(far.error[2]).max() >= 1e-3


def test_quotients(rng):
    """Assert the bound at both ends of both operands, and within 1% attained."""
    at = interpreter("none")
    x, y = rng.normal(size=SIZE), rng.uniform(1, 9, SIZE)
    e, f = np.abs(x) * 1e-3, y * rng.uniform(0, 0.2, SIZE)
    bound = at.apply(QUOTIENT, as_bounded(x, e), as_bounded(y, f))
    worst = np.zeros(SIZE)
    for i in range(SIZE):
        for s in (-1, 1):
            for t in (-1, 1):
                end = (mpmath.mpf(x[i]) + s * mpmath.mpf(e[i])) / (
                    mpmath.mpf(y[i]) + t * mpmath.mpf(f[i])
                )
                worst[i] = max(worst[i], float(abs(end - mpmath.mpf(x[i]) / y[i])))
    assert (worst <= np.asarray(bound.error)).all()
    assert (worst >= 0.99 * np.asarray(bound.error)).all()
    unsure = at.apply(QUOTIENT, as_bounded(x, e), as_bounded(y, y))
    assert not np.isfinite(unsure.error).any()


# ---- a whole text


def text(rng, size, tokens=120):
    """Keys, values, rates and the bonus of four channels."""
    rates = fp32([1e-3, 0.05, 1.0, 20.0])
    keys = fp32(rng.normal(size=(tokens, 4)) * size)
    values = fp32(rng.normal(size=(tokens, 4)) + 1)
    return keys, values, -rates, fp32(rng.normal(size=4))


def in_many_digits(keys, values, log_decay, first):
    """What is read, without a maximum: exponents as large as they come."""
    read = np.empty(keys.shape, object)
    for c in range(keys.shape[1]):
        total = weights = mpmath.mpf(0)
        fade = mpmath.exp(mpmath.mpf(float(log_decay[c])))
        for t in range(len(keys)):
            key, value = mpmath.mpf(float(keys[t, c])), mpmath.mpf(float(values[t, c]))
            own = mpmath.exp(key + mpmath.mpf(float(first[c])))
            read[t, c] = (total + own * value) / (weights + own)
            total = fade * total + mpmath.exp(key) * value
            weights = fade * weights + mpmath.exp(key)
    return read


def in_fp32(keys, values, log_decay, first, fault=""):
    """`rwkv_linear_attention_cpu`, or a fault in it."""
    num = den = np.zeros(4, np.float32)
    top, read = np.full(4, NO_TOKEN, np.float32), []
    with np.errstate(under="ignore"):
        for key, value in zip(keys, values, strict=True):
            now, own, _ = execution(top, np.zeros(4), key + first)
            read.append((now * num + own * value) / (now * den + own))
            kept, new, after = execution(top, log_decay, key)
            if fault == "the decay is not in the maximum":
                after = np.maximum(top, key)
            if fault == "weights are not rescaled":
                kept = np.exp(log_decay)
            num, den, top = kept * num + new * value, kept * den + new, after
    return np.stack(read)


def as_it_flows(at, keys, values, log_decay, first):
    """The same operations as the flow's, one token at a time."""
    state, top = jnp.zeros((2, 4)), jnp.full(4, NO_TOKEN)
    read = []
    for key, value in zip(
        keys.astype(np.float64), values.astype(np.float64), strict=True
    ):
        drive = at.join([at.carry(value[None]), at.carry(jnp.ones((1, 4)))])
        share = at.apply(LOG_WEIGHTS, top, jnp.zeros(4), at.add(key, first))
        now = at.add(at.multiply(share[0], state), at.multiply(share[1], drive))
        now = at.apply(UNDER_SCALE, now, share[2])
        read.append(at.apply(QUOTIENT, now[0], now[1]))
        share = at.apply(LOG_WEIGHTS, top, log_decay, key)
        state = at.add(at.multiply(share[0], state), at.multiply(share[1], drive))
        top = share[2]
        state = at.apply(UNDER_SCALE, state, top)
    return read


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_a_text_is_within_its_bounds_and_faults_are_not(rng, size):
    """Assert fp32's result within the bounds of every token, bounds no larger than so
    many roundings, exact arithmetic against many digits, and faults beyond."""
    given = text(rng, size)
    truth = in_many_digits(*given)
    at = interpreter("none")
    at.model = TORCH.model()
    wide = [x.astype(np.float64) for x in given]
    bounds = as_it_flows(at, *wide)
    error = np.stack([np.asarray(b.error) for b in bounds])
    exact = np.stack([np.asarray(x) for x in as_it_flows(Exact(), *wide)])
    distance = lambda x: np.array(np.abs(x - truth), float)
    assert distance(exact).max() < 1e-12
    assert (distance(in_fp32(*given)) <= error).all()
    emulated = np.stack([np.asarray(x) for x in as_it_flows(Rounded({}), *wide)])
    assert (distance(emulated.astype(np.float64)) <= error).all()
    # of both sums, at each token an exponential of 4 units, two products, a sum, and
    # three arguments as large as the keys
    units = 2 * len(given[0]) * (8 + 3 * np.abs(given[0]).max())
    assert error.max() < units * 2.0**-24 * np.abs(given[1]).max()
    for fault in ("the decay is not in the maximum", "weights are not rescaled"):
        assert (distance(in_fp32(*given, fault)) > error).any(), fault


def test_formulas():
    """Assert SymPy's reading of the three, at numbers."""
    import sympy

    from lyapunov.arithmetic.symbolic import Symbolic

    m, w, k = sympy.symbols("m w k")
    place = {m: 0.5, w: -0.25, k: 1.0}
    array = lambda x: np.array([x], dtype=object)
    found = Symbolic().apply(LOG_WEIGHTS, array(m), array(w), array(k))
    values = [float(x.subs(place)) for x in found[:, 0]]
    assert np.allclose(values, [np.exp(0.25 - 1.0), 1.0, 1.0])
    assert Symbolic().apply(QUOTIENT, array(m), array(k))[0] == m / k
    assert Symbolic().apply(UNDER_SCALE, array(m), array(k))[0] == m


# ---- what is stored over a maximum


def stored_over(rng, form, off):
    """A state as an execution stores it, over a maximum that it has moved and rounds:
    (its bound, how far it is off over the exact maximum)."""
    numbers: Any = FORMATS[form].numbers()
    at = interpreter("none", {"state": numbers, "top": numbers})
    top = rng.uniform(-12, 12, SIZE)
    state = rng.normal(size=(SIZE, 3)) * 10.0 ** rng.uniform(-3, 3, (SIZE, 1))
    given = as_bounded(top, np.full(SIZE, off))
    wide = as_bounded(top[:, None], np.full((SIZE, 1), off))
    bound = at.store_under("state", as_bounded(state, np.zeros_like(state)), wide)
    top_bound, bound = at.store_scale("top", given, bound)
    rounded = lambda x: np.asarray(x, np.float64).astype(DTYPES[form]).astype(float)
    found = []
    for sign in (-1, -0.5, 0, 0.5, 1):
        own_top = top + sign * off
        scale = np.exp(top - own_top)[:, None]  # the state over its own maximum
        own, own_after = rounded(state * scale), rounded(own_top)
        exact = np.asarray(top_bound.value)
        over = own * np.exp(own_after - exact)[:, None]
        assert (np.abs(own_after - exact) <= np.asarray(top_bound.error) + 1e-12).all()
        found.append(np.abs(over - np.asarray(bound.value)))
    return bound, np.max(found, axis=0)


@pytest.mark.parametrize("form", ["bf16", "fp16"])
@pytest.mark.parametrize("off", [0.0, 1e-6, 1e-2, 0.3])
def test_stores_over_a_maximum(rng, form, off):
    """Assert what is read back within its bound, whatever the maximum is off by and
    wherever it is rounded to, a bound that is attained, and no smaller one: without
    what the maximum's rounding multiplies by, or with the state's in its own binade,
    executions exceed it."""
    bound, distance = stored_over(rng, form, off)
    error = np.asarray(bound.error)
    assert (distance <= error * (1 + 1e-9)).all()
    # the maximum's part: up to half a spacing of numbers up to 12, and its own error
    assert np.max(distance / error) > 0.3
    without = np.abs(np.asarray(bound.value)) * FORMATS[form].unit_roundoff
    assert (distance > 1.01 * without).any()


def test_fp32_keeps_what_is_over_a_maximum(rng):
    """Assert that nothing is added where what is stored is of that format already."""
    numbers: Any = FORMATS["fp32"].numbers()
    at = interpreter("none", {"state": numbers, "top": numbers})
    top, state = as_bounded(np.ones(3), np.ones(3)), rng.normal(size=(3, 2))
    wide = as_bounded(np.ones((3, 1)), np.ones((3, 1)))
    bound = at.store_under("state", as_bounded(state, 0 * state), wide)
    after, bound = at.store_scale("top", top, bound)
    np.testing.assert_array_equal(bound.error, 0 * state)
    np.testing.assert_array_equal(bound.value, state)
    np.testing.assert_array_equal(after.error, np.ones(3))


@pytest.mark.parametrize("share", [1e-3, 3.0])
def test_what_is_normalised(rng, share):
    """Assert the bound at the ends of all three, and that it is attained within a
    tenth somewhere: even where |x| may be 0, since e^-m is still there."""
    at = interpreter("none")
    at.model = TORCH.model()
    numerator, x = rng.normal(size=(2, SIZE))
    top, epsilon, off = rng.uniform(-3, 3, SIZE), 0.5, 0.2
    errors = np.abs(numerator) * 1e-3, np.abs(x) * share
    given = [as_bounded(v, e) for v, e in zip((numerator, x), errors, strict=True)]
    over = as_bounded(top, np.full(SIZE, off))
    bound = at.apply(NORMALISED, *given, over, epsilon)
    error, worst = np.asarray(bound.error), np.zeros(SIZE)
    assert np.isfinite(error).all()
    for r, s, t in np.ndindex(3, 5, 3):
        own_top = top + (t - 1) * off
        scale = np.exp(own_top - top)  # of what an execution has, over the exact one
        own_x = np.abs(x + (s / 2 - 1) * errors[1]) / scale
        own = (numerator + (r - 1) * errors[0]) / scale
        own = own / (np.maximum(own_x, np.exp(-own_top)) + epsilon)
        worst = np.maximum(worst, np.abs(own - np.asarray(bound.value)))
    assert (worst <= error).all()
    assert np.max(worst / error) > (0.9 if share < 1 else 0.3)
