"""Every operation with errors against 256-bit balls: never exceeded, not vacuous.

An operation is given values v with errors e. An execution may start anywhere within
v +- e and return any result within the declared relative error and underflow. The
true distance of that result from the exact one must not exceed the bound, elementwise
and in L2; on the worst of the executions it must come close.
"""

from functools import partial

import flint
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import Bounded, BoundedArithmetic, RoundingModel, Weight
from lyapunov.formats import FORMATS
from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL

from ..helpers import gamma
from .balls import BITS, above, arb, choices, silu, softplus


together = partial(zip, strict=True)
SIZE = 48
MODELS = {
    # as declared for the kernels
    "kernel": KERNEL.model(),
    # far coarser, so that products of errors matter
    "coarse": RoundingModel(*(jnp.asarray(2.0**-8) for _ in KERNEL.model()))._replace(
        underflow=jnp.asarray(2.0**-126), softplus_absolute=jnp.asarray(2.0**-20)
    ),
    "none": RoundingModel.none(),
}
# The bound's own fp64 arithmetic: at most 32 operations of nonnegative numbers. What
# ends in SAFETY must hold as it stands; `compare` adds 2^-26 and more to all.
OWN = 1 + gamma(32, 2.0**-53)
# 256 bits of numbers up to 1e6, a hundred operations
ARB_ROUNDING = 2.0**-220


def interpreter(model="kernel", sites=None, **depths):
    return BoundedArithmetic(sites or {}, MODELS[model], **depths)


def inputs(rng, low=-6.0, high=6.0):
    """Values and errors of every relation: none, tiny, moderate, larger than v."""
    v = rng.uniform(low, high, SIZE)
    v[:6] = [0.0, low, high, low / 1e6, high / 1e6, 1.0]
    e = np.abs(v) * 10.0 ** rng.uniform(-8, 0.5, SIZE)
    e[::7] = 0.0
    e[5::7] = 3.0
    return v, e


def as_bounded(v, e):
    return Bounded(jnp.asarray(v), jnp.asarray(e))


def hold(bound: Bounded, distances, strict=False) -> float:
    """Assert the bound for an execution; the largest share of it that was reached."""
    distances = np.asarray(distances)
    error = np.asarray(bound.error) * (1.0 if strict else OWN)
    over = distances > error + ARB_ROUNDING
    assert not over.any(), (
        f"element {np.argmax(over)}: {distances[over][0]!r} over {error[over][0]!r}"
    )
    norm = np.linalg.norm(distances)
    assert norm <= float(bound.norm) * OWN + SIZE * ARB_ROUNDING, (
        norm,
        float(bound.norm),
    )
    return distances / np.where(error > 0, error, np.inf)


def unary(rng, operation, function, v, e, relative, absolute=0.0, model="kernel"):
    """Draw executions of a function of one variable; the best share reached."""
    bound = operation(interpreter(model), as_bounded(v, e))
    reached = np.zeros(SIZE)
    absolute = float(absolute)
    with flint.ctx.workprec(BITS):
        exact = [function(arb(x)) for x in v]
        for move in choices(rng, SIZE, 1):
            moved = [arb(x) + arb(s) * arb(d) for x, s, d in together(v, move, e)]
            results = [function(x) for x in moved]
            for sign in choices(rng, SIZE, 0):
                distances = []
                for x, y, y0, s in together(moved, results, exact, sign):
                    wrong = y * (1 + arb(s) * relative(x)) + arb(s) * absolute
                    distances.append(above(abs(wrong - y0)))
                reached = np.maximum(reached, hold(bound, distances))
    return reached


def linear(constant, argument):
    return lambda x: arb(constant) + arb(argument) * abs(x)


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


@pytest.mark.parametrize("model", MODELS)
def test_rms_normalise(rng, model):
    """Assert the bound of the norm for rows moved along and across themselves."""
    m, epsilon = MODELS[model], 1e-5
    depth = 5
    at = interpreter(model, reduction_depth=lambda n: depth)
    for scale, share in [(1.0, 1e-3), (1.0, 0.5), (1e-3, 1e-4), (1e4, 1e-7), (0.0, 1)]:
        v = scale * rng.normal(size=SIZE)
        v[3] *= 100  # an outlier channel
        e = share * np.maximum(np.abs(v), 1e-6)
        bound = at.rms_normalise(as_bounded(v, e), epsilon)
        best = 0.0
        with flint.ctx.workprec(BITS):

            def normalised(row):
                mean = sum((x * x for x in row), arb(0)) / SIZE
                return mean + arb(epsilon)

            exact = [arb(x) for x in v]
            by = normalised(exact).sqrt()
            directions = [*choices(rng, SIZE, 1), np.sign(v), -np.sign(v)]
            for move in directions:
                row = [arb(x) + arb(s * d) for x, s, d in together(v, move, e)]
                for r in (-1, 0, 1):
                    # square, sum, division and epsilon, then root and product
                    mean = normalised(row) * (1 + r * arb(m.unit)) ** (depth + 3)
                    root = (1 / mean.sqrt()) * (1 - r * arb(m.rsqrt_relative))
                    wrong = [x * root * (1 - r * arb(m.unit)) for x in row]
                    reached = hold(
                        bound,
                        [above(abs(y - x / by)) for y, x in together(wrong, exact)],
                    )
                    best = max(best, reached.max())
        assert best >= 1 / 3 or (model == "none" and scale == 0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("terms", [1, 2, 33])
def test_matmul(rng, model, terms):
    """Assert the bound of a product for errors of all signs and any summing order."""
    m, rows = MODELS[model], 6
    W = rng.normal(size=(rows, terms))
    W[0] = 0.0
    W[1] = np.abs(W[1])
    v = rng.normal(size=terms)
    v[0] = -40.0
    from lyapunov.bounds.operator_norm import operator_norm_bound

    norm = operator_norm_bound(W)
    for share in (0.0, 1e-4, 1.0):
        e = share * np.abs(rng.normal(size=terms))
        for weight in (Weight(jnp.asarray(W)), Weight(jnp.asarray(W), norm)):
            bound = interpreter(model).matmul(as_bounded(v, e), weight)
            best = np.zeros(rows)
            with flint.ctx.workprec(BITS):
                exact = [
                    sum((arb(w) * arb(x) for w, x in together(r, v)), arb(0)) for r in W
                ]
                moves = [*choices(rng, terms, 1), *np.sign(W)]
                for move in moves:
                    distances = []
                    for row, y0 in together(W, exact):
                        y = arb(0)
                        for j, w in enumerate(row):
                            # a term of the sequential sum goes through so many sums
                            sums = min(terms, terms - j + 1)
                            factor = (1 + arb(m.accumulator_unit)) ** sums
                            x = arb(v[j]) + arb(move[j] * e[j])
                            y += arb(w) * x * (factor if w * v[j] > 0 else 1 / factor)
                        y *= 1 + (1 if y > 0 else -1) * arb(m.unit)
                        distances.append(above(abs(y - y0)))
                    best = np.maximum(best, hold(bound, distances, strict=True))
            # The signs of a row attain its elementwise sum. Roundings are bounded by
            # Cauchy-Schwarz and all at full depth: 12 times too much at 33 terms.
            if share == 1 and model != "coarse":
                assert best[1:].max() >= 1 / 1.1
            elif share or model != "none":
                assert best[1:].max() >= 1 / 12


def test_norm_of_a_product_is_the_smaller_of_three(rng):
    """Assert that the L2 bound beats elementwise sums where the operator norm does."""
    W = rng.normal(size=(64, 64))
    from lyapunov.bounds.operator_norm import operator_norm_bound

    weight = Weight(jnp.asarray(W), operator_norm_bound(W))
    x = as_bounded(np.zeros(64), np.full(64, 1e-3))
    bound = interpreter("none").matmul(x, weight)
    elementwise = np.linalg.norm(np.abs(W) @ np.full(64, 1e-3))
    attained = np.linalg.norm(W, 2) * np.linalg.norm(np.full(64, 1e-3))
    assert attained <= float(bound.norm) <= 1.03 * attained < elementwise / 2


@pytest.mark.parametrize("model", MODELS)
def test_causal_conv(rng, model):
    """Assert the bound of the conv, inputs, taps and bias all being moved."""
    m, taps, seq, channels = MODELS[model], 4, 5, 3
    shapes = [(taps - 1 + seq, channels), (channels, taps), (channels,)]
    values = [rng.normal(size=s) for s in shapes]
    errors = [10.0 ** rng.uniform(-6, -1) * np.abs(v) for v in values]
    bound = interpreter(model).causal_conv(*map(as_bounded, values, errors))
    u, best = arb(m.unit), 0.0
    with flint.ctx.workprec(BITS):

        def conv(x, w, b, grow):
            out = np.empty((seq, channels), object)
            for t, c in np.ndindex(seq, channels):
                total = b[c] * (1 + grow * u) ** taps
                for k in range(taps):
                    term = x[t + k, c] * w[c, k]
                    total += term * (1 + grow * u) ** (taps - k + 1)
                out[t, c] = total
            return out

        def moved(signs):
            return [
                np.vectorize(lambda v, e, s: arb(v) + arb(s * e), otypes=[object])(
                    v, e, s
                )
                for v, e, s in together(values, errors, signs)
            ]

        exact = conv(*moved([0 * v for v in values]), 0)
        outward = [np.sign(v) for v in values]
        for signs in [
            outward,
            [-s for s in outward],
            *[[rng.choice([-1.0, 1.0], s) for s in shapes] for _ in range(4)],
        ]:
            for grow in (-1, 1):
                got = conv(*moved(signs), grow)
                distance = np.vectorize(lambda a, b: above(abs(a - b)))(got, exact)
                error = np.asarray(bound.error)
                assert (distance <= error).all()
                assert (
                    np.linalg.norm(distance, axis=-1) <= np.asarray(bound.norm) * OWN
                ).all()
                best = max(best, (distance / error).max())
    assert best >= 1 / 2  # where all terms of an output have one sign


@pytest.mark.parametrize("model", MODELS)
def test_contract(rng, model):
    """Assert the bound of start + C h, every operand being moved."""
    m, terms, channels = MODELS[model], 5, 4
    shapes = [(terms, channels), (terms,), (channels,)]
    values = [np.abs(rng.normal(size=s)) for s in shapes]
    values[0][:, 1:] *= rng.choice([-1, 1], (terms, channels - 1))
    errors = [10.0 ** rng.uniform(-6, -1) * np.abs(v) for v in values]
    h, c, start = map(as_bounded, values, errors)
    bound = interpreter(model).contract(h, c, start=start)
    u, best = arb(m.unit), 0.0
    with flint.ctx.workprec(BITS):
        for sign in [1, -1, None, None]:
            signs = [
                np.sign(v) * sign if sign else rng.choice([-1.0, 1.0], v.shape)
                for v in values
            ]
            for grow in (-1, 0, 1):
                distances = []
                for i in range(channels):
                    exact = arb(values[2][i])
                    got = arb(values[2][i]) + arb(signs[2][i] * errors[2][i])
                    got *= (1 + grow * u) ** terms
                    for n in range(terms):
                        exact += arb(values[0][n, i]) * arb(values[1][n])
                        left = arb(values[0][n, i]) + arb(
                            signs[0][n, i] * errors[0][n, i]
                        )
                        right = arb(values[1][n]) + arb(signs[1][n] * errors[1][n])
                        got += left * right * (1 + grow * u) ** (terms - n + 1)
                    distances.append(above(abs(got - exact)))
                best = max(best, hold(bound, distances, strict=True).max())
    assert best >= 1 / 1.5


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
