"""Every rule of the bounds against executions that hypothesis makes up.

For each operation it chooses operands, errors, where in its interval an execution
starts, how it spends its declared budget (the signs and shares of every rounding), and
whether it flushes subnormals as it reads and as it writes. What comes out is known in
256 bits, or exactly; it is never further from the rule's value than the rule says.
"""

import math
from fractions import Fraction
from functools import partial

import flint
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from lyapunov.arithmetic import Bounded, BoundedArithmetic, RoundingModel
from lyapunov.formats import FORMATS, FP32
from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL, STEP
from lyapunov.implementations.transformers.mamba1 import TORCH

from ..formats.exact import round_exactly
from .balls import BITS, arb, silu, softplus
from .made_up import (
    FLUSH,
    LIBRARY,
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


CONSTANTS = {"kernel": KERNEL, "step": STEP, "torch": TORCH}


@pytest.fixture(autouse=True)
def wide():
    """256 bits for everything here."""
    with flint.ctx.workprec(BITS):
        yield


# ---- functions of one number

FUNCTIONS = {
    "exp": (flint.arb.exp, "exp_relative", "exp_argument", 80.0),
    "softplus": (softplus, "softplus_relative", "softplus_argument", 1e4),
    "silu": (silu, "silu_relative", "silu_argument", 1e4),
}


@partial(jax.jit, static_argnames="name")
def bound_function(name, model, v, e):
    return getattr(BoundedArithmetic({}, model), name)(Bounded(v, e))


@pytest.mark.parametrize("name", FUNCTIONS)
@hard
@given(
    constants=st.sampled_from(sorted(CONSTANTS)),
    v=several(narrow),
    e=several(relative),
    at=several(share),
    off=several(share),
    flushes=st.tuples(flag, flag),
)
def test_functions(name, constants, v, e, at, off, flushes):
    """Assert the bound where the budget is spent up to its edge, and flushed."""
    function, budget, by_argument, largest = FUNCTIONS[name]
    declared = CONSTANTS[constants]
    v = np.clip(v, -largest, largest)
    e = np.minimum(e * np.maximum(np.abs(v), 2.0**-30), largest)
    bound = bound_function(name, declared.model(), v, e)
    results = []
    for x, d, s, r in together(v, e, at, off):
        moved = read(arb(x) + arb(s) * arb(d), flushes[0])
        y = function(moved)
        wrong = arb(getattr(declared, budget)) * y
        # a rounded product by log2(e) inside an exponential
        slope = 1 / (1 + (-moved).exp()) if name == "softplus" else abs(y)
        wrong += arb(getattr(declared, by_argument)) * abs(moved) * slope
        if name == "softplus":
            wrong += arb(declared.softplus_absolute)
        results.append(read(y + arb(r) * wrong, flushes[1]))
    hold(bound.value, bound.error, results, LIBRARY)


@hard
@given(
    dt=several(st.one_of(st.sampled_from([0.0, 1e-5, 20.0, 2.0**-140]), narrow)),
    A=several(st.one_of(st.sampled_from([1e-6, 1.0, 16.0, 8e3, 2.0**-130]), narrow)),
    e=several(st.tuples(relative, relative)),
    at=several(st.tuples(share, share)),
    off=several(st.tuples(share, share)),
    flushes=st.tuples(flag, flag),
)
def test_decays(dt, A, e, at, off, flushes):
    """Assert the bound of exp(dt A): dt >= 0 and A <= 0 in every execution."""
    dt, A = np.abs(dt), np.abs(A)
    error_dt, error_A = e[:, 0] * dt, e[:, 1] * A
    bound = _decay(KERNEL.model(), dt, error_dt, -A, error_A)
    results = []
    for i in range(SIZE):
        x = arb(dt[i]) + arb(at[i, 0]) * arb(error_dt[i])
        y = arb(A[i]) + arb(at[i, 1]) * arb(error_A[i])
        # a softplus and an exponential are never negative
        x, y = (max(z, flint.arb(0)) for z in (x, y))
        x, y = read(x, flushes[0]), read(y, flushes[0])
        exponent = x * y * (1 + arb(off[i, 0]) * arb(KERNEL.unit))
        wrong = arb(KERNEL.exp_relative) + arb(KERNEL.exp_argument) * exponent
        result = (-exponent).exp() * (1 + arb(off[i, 1]) * wrong)
        results.append(read(min(result, flint.arb(1)), flushes[1]))
    # the fp64 value has the rounded product in its exponent, too
    hold(bound.value, bound.error, results, LIBRARY + dt * A * 2.0**-53)


@jax.jit
def _decay(model, dt, error_dt, A, error_A):
    at = BoundedArithmetic({}, model)
    return at.decay(Bounded(dt, error_dt), Bounded(A, error_A))


# ---- one operation in fp32

OPERATIONS = {"add": np.add, "multiply": np.multiply}


@partial(jax.jit, static_argnames=("name", "alone", "centred"))
def bound_operation(name, model, x, y, ex, ey, alone, centred):
    at = BoundedArithmetic({}, model, centred=centred)
    return getattr(at, name)(Bounded(x, ex), Bounded(y, ey), alone=alone)


where = st.sampled_from(["here", "near", "anywhere"])


@pytest.mark.parametrize("name", OPERATIONS)
@hard
# three subnormal numbers counted as 0: both operands and what is left of them
@example(
    centred=False,
    alone=True,
    x=np.full(SIZE, 2.0**-126 - 2.0**-149),
    y=np.full(SIZE, 2.0**-126 - 2.0**-149),
    moved=(np.zeros(SIZE), np.zeros(SIZE)),
    where=("here", "here"),
    flushes=(True, True),
)
@given(
    centred=flag,
    alone=flag,
    x=several(narrow),
    y=several(narrow),
    moved=st.tuples(several(narrow), several(narrow)),
    where=st.tuples(where, where),
    flushes=st.tuples(flag, flag),
)
def test_one_operation_in_fp32(name, centred, alone, x, y, moved, where, flushes):
    """Assert it of NumPy's own fp32 on these operands, near by or anywhere."""
    starts = [
        np.float32({"here": v, "near": v * (1 + 2.0**-20), "anywhere": far}[w])
        for v, far, w in together((x, y), moved, where)
    ]
    errors = [distance(s.astype(float), v) for s, v in together(starts, (x, y))]
    model = KERNEL.model()
    bound = bound_operation(name, model, x, y, *errors, alone=alone, centred=centred)
    if flushes[0]:
        starts = [np.where(np.abs(s) < FLUSH, np.float32(0), s) for s in starts]
    got = OPERATIONS[name](*starts)
    assert got.dtype == np.float32
    if flushes[1]:
        got = np.where(np.abs(got) < FLUSH, np.float32(0), got)
    hold(bound.value, bound.error, [arb(g) for g in got])
    length = np.linalg.norm(got.astype(float) - np.asarray(bound.value))
    assert length <= float(bound.norm) * OWN


# ---- stores

STORED = ("fp32", "bf16", "fp16")
# numbers next to which something happens in one of the formats
EDGES = [1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 2.0**-24, 2.0]
EDGES += [65504.0, 65520.0, 3.3895313892515355e38, 3.4028234663852886e38]
EDGES += [2.0**-14, 2.0**-24, 2.0**-25, 2.0**-126, 2.0**-133, 2.0**-134, 2.0**-149]
beside = st.builds(
    lambda x, sign, steps: sign * float(np.nextafter(x, math.inf * steps)),
    st.sampled_from(EDGES),
    st.sampled_from([-1, 1]),
    st.sampled_from([-1, 1]),
)
edge = st.one_of(beside, st.sampled_from([*EDGES, 0.0, -0.0]), narrow)


@partial(jax.jit, static_argnames=("way",))
def bound_store(numbers, model, v, e, stored, way):
    anchors = {"site": stored} if way == "anchored" else None
    sites = {"site": numbers}
    at = BoundedArithmetic(sites, model, centred=way == "centred", anchors=anchors)
    after = at.store("site", Bounded(v, e))
    return at.records["site"] if way == "anchored" else after


@pytest.mark.parametrize("name", STORED)
@hard
@given(
    way=st.sampled_from(["free", "centred", "anchored"]),
    v=several(edge),
    e=several(st.one_of(relative, st.sampled_from([2.0**-53, 2.0**-50, 2.0**-30]))),
    at=several(share),
)
def test_stores(name, way, v, e, at):
    """Assert it at ties, at the largest number and among subnormals, in fractions."""
    fmt = FORMATS[name]
    e = e * np.abs(v)
    moved = [Fraction(x) + Fraction(s) * Fraction(d) for x, s, d in together(v, at, e)]
    found = [round_exactly(x, fmt) for x in moved]
    # what is beyond the largest is stored as inf
    got = np.array(
        [math.copysign(math.inf, x) if y is None else float(y)
         for x, y in together(moved, found)]
    )  # fmt: skip
    bound = bound_store(fmt.numbers(), KERNEL.model(), v, e, got, way=way)
    value, error = np.asarray(bound.value), np.asarray(bound.error)
    for x, limit, y in together(value, error, found):
        if y is None:
            assert not math.isfinite(limit)
        elif math.isfinite(limit):
            assert abs(y - Fraction(x)) <= Fraction(limit) * Fraction(OWN)


# ---- a rule that promised less would be found out


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_the_declared_budget_is_exceeded_by_functions_at_its_edge(name):
    """Assert it, so that these tests are known to reach the edge."""
    function, budget, by_argument, _ = FUNCTIONS[name]
    v = np.array([-3.0, -1.5, 0.25, 1.0, 2.0, 3.5])
    half = KERNEL.model()._replace(
        **{field: getattr(KERNEL.model(), field) / 2 for field in (budget, by_argument)}
    )
    bound = bound_function(name, half, v, np.zeros(SIZE))
    results = [function(arb(x)) * (1 + arb(getattr(KERNEL, budget))) for x in v]
    with pytest.raises(AssertionError):
        hold(bound.value, bound.error, results)


def test_without_flushing_declared_flushed_results_are_beyond_the_bound():
    """Assert it of a sum of subnormal numbers that is written as 0."""
    x = np.full(SIZE, 2.0**-127)
    keeps = RoundingModel.none()._replace(unit=jnp.asarray(FP32.unit_roundoff))
    bound = bound_operation(
        "add", keeps, x, x * 0, *(np.zeros(SIZE),) * 2, alone=True, centred=True
    )
    with pytest.raises(AssertionError):
        hold(bound.value, bound.error, [arb(0)] * SIZE)
