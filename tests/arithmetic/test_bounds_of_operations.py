"""Every operation with errors against 256-bit balls: never exceeded, not vacuous.

The model of an execution is that of `moved`; on the worst of the executions a bound
must come close. Sums of many terms are held in `test_bounds_of_sums`.
"""

import flint
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import Weight
from lyapunov.formats import FORMATS

from ..helpers import gamma
from .balls import BITS, above, arb, choices, silu, softplus
from .moved import (
    MODELS,
    OWN,
    SIZE,
    as_bounded,
    hold,
    inputs,
    interpreter,
    linear,
    together,
    unary,
)


@pytest.mark.parametrize("model", MODELS)
def test_exp(rng, model):
    """Assert the bound of exp, and within 1.1 of attained for errors up to 1."""
    m = MODELS[model]
    v, e = inputs(rng)
    relative = linear(m.exp_relative, m.exp_argument)
    reached = unary(
        rng,
        lambda at, x: at.exp(x),
        lambda x: x.exp(),
        v,
        e,
        relative,
        m.underflow,
        model,
    )
    # exp' is increasing: the upper end attains expm1(e), rounding adds its own sign
    small = (e > 0) & (e < 1)
    assert (reached[small] >= 1 / 1.1).all()


@pytest.mark.parametrize("model", MODELS)
def test_softplus(rng, model):
    """Assert the bound of softplus, and within 2.1 of attained for errors up to 1."""
    m = MODELS[model]
    v, e = inputs(rng, -30, 30)
    argument = arb(m.softplus_argument)

    def relative(x):
        # the declared |x| sigmoid(x) as a share of the result
        slope = 1 / (1 + (-x).exp())
        return arb(m.softplus_relative) + argument * abs(x) * slope / softplus(x)

    reached = unary(
        rng,
        lambda at, x: at.softplus(x),
        softplus,
        v,
        e,
        relative,
        float(m.underflow + m.softplus_absolute),
        model,
    )
    # sigmoid(v + e) e over softplus(v + e) - softplus(v) <= e / (1 - exp(-e)) < 1.6
    small = (e > 0) & (e < 1)
    assert (reached[small] >= 1 / 2.1).all()


@pytest.mark.parametrize("model", MODELS)
def test_silu(rng, model):
    """Assert the bound of silu, and within 3 of attained for errors up to 0.1."""
    m = MODELS[model]
    v, e = inputs(rng, -12, 12)
    relative = linear(m.silu_relative, m.silu_argument)
    reached = unary(
        rng, lambda at, x: at.silu(x), silu, v, e, relative, m.underflow, model
    )
    # where silu' passes 0 the curvature counts: 1/2 declared, 0.155 there and then
    # both ends move the same way; far out |silu''| is far below 1/2
    small = (e > 0) & (e < 0.1) & (v > -1) & (v < 6)
    assert (reached[small] >= 1 / 3).all()


@pytest.mark.parametrize("model", MODELS)
def test_square_root(rng, model):
    """Assert the bound of sqrt(x), x >= 0 in every execution, and within 1.1 of
    attained; and that the slope at the value alone is exceeded."""
    m = MODELS[model]
    v, e = np.abs(inputs(rng))
    reached = unary(
        rng,
        lambda at, x: at.square_root(x),
        lambda x: max(x, flint.arb(0)).sqrt(),
        v,
        e,
        linear(m.unit, 0.0),
        m.underflow,
        model,
    )
    bound = interpreter(model).square_root(as_bounded(v, e))
    error = np.asarray(bound.error)
    assert (reached[error > 1e-9] >= 1 / 1.1).all()
    with np.errstate(divide="ignore", invalid="ignore"):
        by_slope = e / (2 * np.sqrt(v)) + float(m.unit) * (np.sqrt(v) + error)
    assert (reached * error > by_slope * 1.01).any()


@pytest.mark.parametrize("model", MODELS)
def test_add_and_multiply(rng, model):
    """Assert both bounds, and within 1.05 of attained (same signs add up)."""
    m = MODELS[model]
    v, e = inputs(rng)
    w, d = inputs(np.random.default_rng(7), -3, 3)
    for name in ("add", "multiply"):
        bound = getattr(interpreter(model), name)(as_bounded(v, e), as_bounded(w, d))
        reached = np.zeros(SIZE)
        with flint.ctx.workprec(BITS):
            combine = {
                "add": lambda x, y: x + y,
                "multiply": lambda x, y: x * y,
            }[name]
            toward = np.where(v < 0, -1.0, 1.0), np.where(w < 0, -1.0, 1.0)
            moves = [toward, (-toward[0], -toward[1])]
            moves += [
                (a, b) for a in choices(rng, SIZE, 1) for b in choices(rng, SIZE, 1)
            ]
            for left, right in moves:
                distances = []
                for x, dx, s, y, dy, t in together(v, e, left, w, d, right):
                    moved = combine(
                        arb(x) + arb(s) * arb(dx), arb(y) + arb(t) * arb(dy)
                    )
                    exact = combine(arb(x), arb(y))
                    side = 1 if moved > exact else -1
                    side = side if moved > 0 else -side
                    wrong = moved * (1 + side * arb(m.unit))
                    wrong += arb(m.underflow) * (1 if wrong > exact else -1)
                    distances.append(above(abs(wrong - exact)))
                reached = np.maximum(reached, hold(bound, distances))
        sensible = np.asarray(bound.error) > 1e-30
        if name == "add":  # opposite signs cancel in the value, not in the error
            sensible &= v * w >= 0
        assert (reached[sensible] >= 1 / 1.05).all()


@pytest.mark.parametrize("model", MODELS)
def test_decay(rng, model):
    """Assert the bound of exp(dt A), each execution's own result being in [0, 1]."""
    m = MODELS[model]
    dt, e = np.abs(inputs(rng, 0, 3))
    e = np.minimum(e, dt)
    A, d = inputs(np.random.default_rng(8), -5, 0)
    A, d = -np.abs(A), np.minimum(d, np.abs(A)) * 0.2
    bound = interpreter(model).decay(as_bounded(dt, e), as_bounded(A, d))
    reached = np.zeros(SIZE)
    with flint.ctx.workprec(BITS):
        for s in choices(rng, SIZE, 1):
            for t in (s, -s):
                for r in (-1, 1):
                    distances = []
                    for x, dx, sx, y, dy, sy in together(dt, e, s, A, d, t):
                        # dt and |A| both up or both down is the worst of all
                        product = (arb(x) + arb(sx * dx)) * (arb(y) + arb(sy * dy))
                        product *= 1 - r * (arb(m.unit) + arb(m.exp_argument))
                        got = product.exp() * (1 + r * arb(m.exp_relative))
                        got = min(got, arb(1))
                        exact = (arb(x) * arb(y)).exp()
                        distances.append(above(abs(got - exact)))
                    reached = np.maximum(reached, hold(bound, distances))
    # e (1 + e) stands for expm1(e), and only one side of exp is that steep
    change = dt * d + e * np.abs(A) + dt * np.abs(A) * float(m.unit + m.exp_argument)
    assert (reached[(change > 1e-5) & (change < 0.3)] >= 1 / 1.7).all()


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp8_e4m3", "fp8_e5m2"])
def test_store(rng, name):
    """Assert the bound of a store, and that it is attained at ties within 1.001."""
    fmt = FORMATS[name]
    u = fmt.unit_roundoff
    v = rng.uniform(-6, 6, SIZE) * 2.0 ** rng.integers(-40, 3, SIZE)
    v[:6] = [1 + u, -(1 + 3 * u), fmt.smallest / 2, 2.5 * fmt.smallest, 0.0, 2 + 2 * u]
    e = np.abs(v) * 10.0 ** rng.uniform(-8, 0.2, SIZE)
    e[::7] = e[:6] = 0.0
    at = interpreter(sites={"x": fmt.numbers()})
    bound = at.store("x", as_bounded(v, e))
    reached = np.zeros(SIZE)
    for move in choices(rng, SIZE, 4):
        moved = v + move * e * (1 - 2.0**-50)
        place = np.maximum(np.frexp(moved)[1] - 1, fmt.min_exponent)
        step = np.ldexp(1.0, place - fmt.significand_bits + 1)
        stored = np.rint(moved / step) * step  # exact: steps are powers of two
        reached = np.maximum(reached, hold(bound, np.abs(stored - v)))
    assert (reached[[0, 1, 2, 3, 5]] >= 1 / 1.001).all()


def test_store_beyond_the_largest_is_unbounded():
    """Assert an infinite bound where an execution may overflow, and no NaN."""
    fmt = FORMATS["fp16"]
    at = interpreter(sites={"x": fmt.numbers()})
    v, e = np.array([65504.0, 65000.0, 65000.0, 7e4]), np.array([0.0, 400, 600, 0])
    error = np.asarray(at.store("x", as_bounded(v, e)).error)
    assert np.isfinite(error[:2]).all()
    assert (error[2:] == np.inf).all()


def test_a_store_that_the_execution_does_not_name_changes_nothing(rng):
    """Assert that registers keep value, error and norm."""
    x = as_bounded(*inputs(rng))
    assert interpreter().store("x", x) is x


def test_negating_and_slicing_keep_bounds(rng):
    """Assert that -x is exact and that a slice is never longer than the whole."""
    x = as_bounded(*inputs(rng))
    negative = interpreter().negate(x)
    assert np.array_equal(negative.value, -x.value)
    assert np.array_equal(negative.error, x.error)
    part = x[..., 5:20]
    own = np.linalg.norm(np.asarray(x.error)[5:20])
    assert own <= float(part.norm) * OWN
    assert float(part.norm) <= float(x.norm)
    assert np.array_equal(part.error, np.asarray(x.error)[5:20])


def test_joining_keeps_bounds(rng):
    """Assert errors and norms of joined parts, along tokens and along channels."""
    parts = [as_bounded(*(z.reshape(4, 12) for z in inputs(rng))) for _ in range(2)]
    at = interpreter()
    tokens, channels = at.join(parts), at.join(parts, axis=-1)
    assert tokens.norm.shape == (8,)
    np.testing.assert_array_equal(tokens.norm[:4], parts[0].norm)
    wide = np.sqrt(np.asarray(parts[0].norm) ** 2 + np.asarray(parts[1].norm) ** 2)
    np.testing.assert_allclose(channels.norm, wide, rtol=gamma(30, 2.0**-53))


def test_without_errors_and_rounding_every_bound_is_zero(rng):
    """Assert that the bounds are not vacuous: exact in, exact arithmetic, 0 out."""
    at = interpreter("none")
    x = as_bounded(inputs(rng)[0], np.zeros(SIZE))
    negative = as_bounded(-np.abs(inputs(rng)[0]), np.zeros(SIZE))
    rows = Weight(jnp.asarray(rng.normal(size=(3, SIZE))))
    results = [
        at.add(x, x),
        at.multiply(x, x),
        at.exp(x),
        at.softplus(x),
        at.silu(x),
        at.decay(at.softplus(x), negative),
        at.rms_normalise(x, 1e-5),
        at.matmul(x, rows),
        at.store("nowhere", x),
        at.contract(at.join([x[None], x[None]]), np.ones(2)),
    ]
    for result in results:
        assert not np.asarray(result.error).any()
        assert not np.asarray(result.norm).any()


def test_infinite_errors_stay_infinite_or_unknown(rng):
    """Assert that no operation turns an unbounded input into a finite bound."""
    at = interpreter(sites={"x": FORMATS["bf16"].numbers()})
    v = jnp.asarray(rng.normal(size=SIZE)).at[0].set(0.0)
    lost = as_bounded(v, np.full(SIZE, np.inf))
    W = Weight(jnp.asarray(rng.normal(size=(3, SIZE))), 20.0)
    for result in [
        at.add(lost, v),
        at.multiply(lost, v),
        at.exp(lost),
        at.softplus(lost),
        at.silu(lost),
        at.rms_normalise(lost, 1e-5),
        at.matmul(lost, W),
        at.store("x", lost),
        at.store("elsewhere", lost),
    ]:
        assert not np.isfinite(np.asarray(result.error)).any()
        assert not np.isfinite(np.asarray(result.norm)).any()
    decay = at.decay(at.softplus(lost), -jnp.abs(v))
    assert (np.asarray(decay.error) == np.inf).all()


def test_multiply_covers_flushed_inputs():
    """Assert the declared flushing: a subnormal factor counts as 0 anywhere."""
    tiny, large = 2.0**-127, 1e6
    bound = interpreter().multiply(jnp.asarray([tiny]), jnp.asarray([large]))
    assert tiny * large <= float(bound.error[0])


def test_sums_cover_flushed_inputs():
    """Assert the same for products inside matmul, conv and read-out."""
    tiny, large = 2.0**-127, 1e6
    at = interpreter()
    bounds = [
        at.matmul(jnp.asarray([tiny]), Weight(jnp.asarray([[large]]))),
        at.causal_conv(jnp.asarray([[tiny]]), jnp.asarray([[large]]), jnp.zeros(1)),
        at.contract(jnp.asarray([[tiny]]), jnp.asarray([large])),
    ]
    for bound in bounds:
        assert tiny * large <= float(jnp.ravel(bound.error)[0])


def test_a_strong_decay_is_known_to_be_near_zero():
    """Assert that exp(dt A) at dt A = -1e8 is not given the trivial bound of 1."""
    bound = interpreter().decay(jnp.asarray([1.0]), jnp.asarray([-1e8]))
    assert float(bound.value[0]) == 0
    assert float(bound.error[0]) <= 2.0**-120


def test_no_rule_is_looser_under_jit(rng):
    """Assert that compiled and eager bounds agree to the bound's own rounding."""
    v, e = inputs(rng)
    W = Weight(jnp.asarray(rng.normal(size=(SIZE, SIZE))))

    def chain(v, e):
        at = interpreter(sites={"x": FORMATS["bf16"].numbers()})
        x = at.silu(at.matmul(at.rms_normalise(as_bounded(v, e), 1e-5), W))
        x = at.softplus(at.store("x", x))
        return at.multiply(x, x)

    plain, fused = chain(v, e), jax.jit(chain)(v, e)
    own = gamma(400, 2.0**-53)
    for name in ("error", "norm"):
        left, right = np.asarray(getattr(plain, name)), np.asarray(getattr(fused, name))
        np.testing.assert_allclose(left, right, rtol=own)
