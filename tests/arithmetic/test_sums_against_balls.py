"""Sums and recurrences against executions that hypothesis makes up.

As in `test_rules_against_balls`: terms that each lean their own way by all roundings on
their way, operands that are moved, subnormals that are flushed or not.
"""

from functools import partial

import flint
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from lyapunov.arithmetic import Bounded, BoundedArithmetic, Weight
from lyapunov.arithmetic.rules import scans
from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL
from oracles import scan_orders

from ..helpers import gamma
from .balls import BITS, above, arb
from .made_up import (
    OWN,
    SIZE,
    distance,
    flag,
    hard,
    hold,
    narrow,
    read,
    relative,
    several,
    share,
    together,
)


@pytest.fixture(autouse=True)
def wide():
    """256 bits for everything here."""
    with flint.ctx.workprec(BITS):
        yield


@partial(jax.jit, static_argnames="epsilon")
def bound_norm(model, v, e, epsilon):
    at = BoundedArithmetic({}, model, reduction_depth=lambda terms: terms)
    return at.rms_normalise(Bounded(v, e), epsilon)


# a subnormal number that is read as 0 counts 316 times behind the norm
@example(
    v=np.array([0.0] * 5 + [2.0**-126 * (1 - 2.0**-23)]),
    e=np.zeros(SIZE),
    at=np.zeros(SIZE),
    off=np.zeros(SIZE + 3),
    flushes=(True, False),
)
@hard
@given(
    v=several(narrow),
    e=several(relative),
    at=several(share),
    off=several(share, SIZE + 3),
    flushes=st.tuples(flag, flag),
)
def test_norms(v, e, at, off, flushes):
    """Assert it for rows of zeros, of subnormals and with outliers as well."""
    e = e * np.abs(v)
    bound = bound_norm(KERNEL.model(), v[None], e[None], 1e-5)
    moved = [
        read(arb(x) + arb(s) * arb(d), flushes[0]) for x, s, d in together(v, at, e)
    ]
    unit = arb(KERNEL.unit)
    # a square is rounded and goes through SIZE - 1 sums; then 1 / SIZE and epsilon
    total = flint.arb(0)
    for x, r in together(moved, off[:SIZE]):
        total += read(x * x, flushes[1]) * (1 + arb(r) * unit) ** SIZE
    total = (total / SIZE * (1 + arb(off[SIZE]) * unit) + arb(1e-5)) * (
        1 + arb(off[SIZE]) * unit
    )
    factor = (1 + arb(off[SIZE + 1]) * arb(KERNEL.rsqrt_relative)) / total.sqrt()
    results = [
        read(x * factor * (1 + arb(off[SIZE + 2]) * unit), flushes[1]) for x in moved
    ]
    hold(bound.value, bound.error, results)
    lengths = (abs(y - arb(v)) for y, v in together(results, np.ravel(bound.value)))
    assert above(sum((d * d for d in lengths), flint.arb(0)).sqrt()) <= (
        float(bound.norm[0]) * OWN
    )


def summed(products, start, off, depth, unit, flushes):
    """Terms of a sum, each having gone through so many roundings of one sign."""
    total = read(start, flushes) * (1 + arb(off[-1]) * unit) ** depth
    for product, r in together(products, off[:-1]):
        total += read(product, flushes) * (1 + arb(r) * unit) ** depth
    return read(total, flushes)


@partial(jax.jit, static_argnames="depth")
def bound_product(model, v, e, W, bias, depth):
    at = BoundedArithmetic({}, model, accumulation_depth=lambda terms: depth)
    return at.matmul(Bounded(v, e), Weight(W), bias)


@hard
@given(
    v=several(narrow),
    e=several(relative),
    W=several(narrow, 2 * SIZE),
    bias=several(narrow, 2),
    at=several(share),
    off=several(share, SIZE + 1),
    flushes=st.tuples(flag, flag),
)
def test_products(v, e, W, bias, at, off, flushes):
    """Assert it for sums that cancel, outliers and subnormal factors."""
    e, W, depth = e * np.abs(v), W.reshape(2, SIZE), 18
    bound = bound_product(KERNEL.model(), v[None], e[None], W, bias, depth)
    moved = [
        read(arb(x) + arb(s) * arb(d), flushes[0]) for x, s, d in together(v, at, e)
    ]
    unit = arb(KERNEL.accumulator_unit)
    results = []
    for row, b in together(W, bias):
        terms = [x * read(arb(w), flushes[0]) for x, w in together(moved, row)]
        results.append(summed(terms, arb(b), off, depth, unit, flushes[1]))
    hold(bound.value, bound.error, results)


TAPS = 3


@jax.jit
def bound_conv(model, v, e, w, bias):
    at = BoundedArithmetic({}, model)
    return at.causal_conv(Bounded(v, e), w, bias)


@hard
@given(
    v=several(narrow),
    e=several(relative),
    w=several(narrow, TAPS),
    bias=narrow,
    at=several(share),
    off=several(share, TAPS + 1),
    flushes=st.tuples(flag, flag),
)
def test_convs(v, e, w, bias, at, off, flushes):
    """Assert it for one channel, every output."""
    e = e * np.abs(v)
    model = KERNEL.model()
    bound = bound_conv(model, v[:, None], e[:, None], w[None], np.array([bias]))
    moved = [
        read(arb(x) + arb(s) * arb(d), flushes[0]) for x, s, d in together(v, at, e)
    ]
    taps = [read(arb(x), flushes[0]) for x in w]
    results = []
    for t in range(SIZE - TAPS + 1):
        terms = [moved[t + k] * tap for k, tap in enumerate(taps)]
        unit = arb(KERNEL.unit)
        results.append(summed(terms, arb(bias), off, TAPS + 1, unit, flushes[1]))
    hold(bound.value, bound.error, results)


@jax.jit
def bound_contraction(model, h, e, c, ec, start, es):
    at = BoundedArithmetic({}, model)
    state = Bounded(h[:, None], e[:, None])
    return at.contract(state, Bounded(c, ec), start=Bounded(start, es))


@hard
@given(
    h=several(narrow),
    c=several(narrow),
    e=several(st.tuples(relative, relative)),
    at=several(st.tuples(share, share)),
    start=narrow,
    off=several(share, SIZE + 1),
    flushes=st.tuples(flag, flag),
)
def test_contractions(h, c, e, at, start, off, flushes):
    """Assert it for D u + C h, states, C and D u all being moved."""
    eh, ec = e[:, 0] * np.abs(h), e[:, 1] * np.abs(c)
    first, wrong = np.array([start]), np.array([abs(start) * 2.0**-20])
    bound = bound_contraction(KERNEL.model(), h, eh, c, ec, first, wrong)
    terms = []
    for i in range(SIZE):
        x = read(arb(h[i]) + arb(at[i, 0]) * arb(eh[i]), flushes[0])
        y = read(arb(c[i]) + arb(at[i, 1]) * arb(ec[i]), flushes[0])
        terms.append(x * y)
    begin = arb(start) + arb(at[0, 0]) * arb(wrong[0])
    unit = arb(KERNEL.unit)
    results = [summed(terms, begin, off, SIZE + 1, unit, flushes[1])]
    hold(bound.value, bound.error, results)


# ---- the recurrence

TOKENS = 9


@partial(jax.jit, static_argnames="depth")
def bound_scan(model, a, ea, b, eb, depth):
    at = BoundedArithmetic({}, model, scan_depth=depth)

    def token(at, state, inputs):
        a, ea, b, eb = inputs
        after = at.advance(state, Bounded(a, ea), Bounded(b, eb))
        return after, scans.finish(at, after)

    inputs = [x[:, None, None] for x in (a, ea, b, eb)]
    return at.scan(token, at.initial_state(jnp.zeros((1, 1))), inputs)[1]


decay = st.one_of(
    st.sampled_from([0.0, 1.0, 1 - 2.0**-24, 2.0**-126, 2.0**-63, 0.5]),
    st.floats(0, 1, width=32),
)
drive = st.one_of(st.sampled_from([0.0, 2.0**-126, -(2.0**-140), 1e10, -1e10]), narrow)


@hard
@given(
    order=st.sampled_from(["sequential", "tree", "chunked"]),
    rounding=st.sampled_from(sorted(scan_orders.FP32)),
    a=several(st.tuples(decay, decay), TOKENS),
    b=several(st.tuples(drive, drive), TOKENS),
    near=flag,
)
def test_scans(order, rounding, a, b, near):
    """Assert it for other decays and drives than the given, in every order."""
    (a, other_a), (b, other_b) = a.T, b.T
    if near:
        other_a = np.minimum(np.float32(a) * np.float32(1 - 2.0**-22), 1)
        other_b = np.float32(b) * np.float32(1 + 2.0**-22)
    start = [np.asarray(x, np.float32).astype(float) for x in (other_a, other_b)]
    run = getattr(scan_orders, order)
    depth = int(run(np.zeros(TOKENS), np.zeros(TOKENS), scan_orders.counting).max())
    errors = distance(start[0], a), distance(start[1], b)
    model = KERNEL.model()
    bound = bound_scan(model, a, errors[0], b, errors[1], depth=depth)
    got = run(*start, scan_orders.FP32[rounding])
    # the rule's value is the exact scan but for fp64's own roundings
    h, mass = flint.arb(0), 0.0
    for x, y, v in together(a, b, np.ravel(bound.value)):
        h, mass = arb(x) * h + arb(y), x * mass + abs(y)
        assert abs(h - arb(v)) <= gamma(2 * TOKENS, 2.0**-53) * mass
    hold(bound.value, bound.error, [arb(x) for x in got])


# ---- overflow between two stores

HUGE = 3e38


def overflowing():
    """Rules on operands whose results are small and whose way there is not."""
    at = BoundedArithmetic({}, KERNEL.model(), scan_depth=4)
    row = lambda *x: Bounded(jnp.asarray([x]), jnp.zeros((1, len(x))))
    column = lambda *x: Bounded(jnp.asarray(x)[:, None], jnp.zeros((len(x), 1)))
    one = lambda x: jnp.asarray([x])
    yield "squares", at.rms_normalise(row(1e20, 1e19), 1e-5)
    yield "product", at.matmul(row(1.0, 1.0), Weight(jnp.asarray([[HUGE, -HUGE]])))
    yield (
        "bias",
        at.matmul(row(1.0, 0.0), Weight(jnp.eye(2) * HUGE), -HUGE * np.ones(2)),
    )
    yield "conv", at.causal_conv(column(1.0, 1.0), np.array([[HUGE, -HUGE]]), one(0.0))
    yield "read-out", at.contract(column(HUGE, -HUGE), np.ones(2))
    yield "start", at.contract(column(-HUGE, 1.0), np.ones(2), start=one(HUGE))
    yield "multiply", at.multiply(one(1e30), one(1e30))
    yield "add", at.add(one(HUGE), one(HUGE))
    yield "exp", at.exp(one(90.0))
    yield "decay", at.decay(one(0.0), at.exp(one(90.0)))
    state = at.initial_state(jnp.zeros((1, 1)))
    for drive in (HUGE, -HUGE):
        state = at.advance(state, one(1.0), jnp.asarray([[drive]]))
    yield "state", at.contract(state, np.ones(1))


def test_what_may_overflow_in_fp32_has_no_finite_bound():
    """Assert it of every rule, elementwise and in L2; and not of numbers below."""
    names = [name for name, bound in overflowing() if np.isfinite(bound.error).any()]
    assert not names
    for _, bound in overflowing():
        assert not np.isfinite(np.asarray(bound.norm)).any()
    at = BoundedArithmetic({}, KERNEL.model())
    small = at.rms_normalise(Bounded(np.full((1, 2), 1e18), np.zeros((1, 2))), 1e-5)
    assert np.isfinite(small.error).all()
    assert np.isfinite(at.multiply(np.ones(1) * 1e18, np.ones(1) * 1e19).error).all()


# ---- a rule that promised less would be found out


def test_half_the_declared_depth_is_exceeded_by_sums_at_its_edge():
    """Assert it of a product whose terms all lean to one side."""
    v, W, off = np.arange(1.0, 7.0), np.ones((2, SIZE)), np.ones(SIZE + 1)
    unit = arb(KERNEL.accumulator_unit)
    terms, depth = [arb(x) for x in v], 18
    results = [summed(terms, arb(0), off, depth, unit, False)] * 2
    for declared, holds in ((depth, True), (depth // 2, False)):
        bound = bound_product(
            KERNEL.model(), v[None], np.zeros((1, SIZE)), W, np.zeros(2), declared
        )
        if holds:
            hold(bound.value, bound.error, results)
        else:
            with pytest.raises(AssertionError):
                hold(bound.value, bound.error, results)
