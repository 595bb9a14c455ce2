"""Operations that a user adds: sound, close to attained, and read by every interpreter.

A pair is held to the function in 256-bit balls at operands moved by their errors, and
to the declared error of its results; the same assertion finds what is wrong with pairs
that leave something out.
"""

from typing import Any

import flint
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy

from lyapunov._errors import ArgumentError, UsageError
from lyapunov.arithmetic import (
    Bounded,
    BoundedArithmetic,
    Exact,
    Operation,
    Perturbed,
    Rounded,
    RoundingModel,
    Sampled,
)
from lyapunov.arithmetic.symbolic import Symbolic
from lyapunov.bounds.parameters import ParameterArithmetic
from lyapunov.formats import BF16

from .balls import BITS, above, arb, choices
from .moved import MODELS, SIZE, as_bounded, hold, inputs, interpreter, together


def arctan_rule(declared, x):
    """Slope at most 1 / (1 + t^2), t the smallest magnitude; 2 ulp of the result."""
    least = jnp.maximum(jnp.abs(x.value) - x.error, 0.0)
    value, error = jnp.arctan(x.value), x.error / (1.0 + least**2)
    own = 4.0 * declared.model.unit * (jnp.abs(value) + error)
    return Bounded(value, error + own + declared.model.underflow)


def steepest_at_the_value(declared, x):
    """Wrong: the slope grows on the way to 0."""
    value = jnp.arctan(x.value)
    error = x.error / (1.0 + x.value**2)
    own = 4.0 * declared.model.unit * (jnp.abs(value) + error)
    return Bounded(value, error + own + declared.model.underflow)


def no_rounding(declared, x):
    """Wrong: no execution's own function is exact."""
    least = jnp.maximum(jnp.abs(x.value) - x.error, 0.0)
    return Bounded(jnp.arctan(x.value), x.error / (1.0 + least**2))


def half_the_error(declared, x):
    """Wrong by a factor."""
    whole = arctan_rule(declared, x)
    return Bounded(whole.value, whole.error / 2)


def sum_of_exponentials(x):
    """log sum exp along the last axis: a function of a row."""
    return jax.nn.logsumexp(x, axis=-1)


def row_rule(declared, x):
    """Within the largest error of the row, as every slope is a share of 1.

    The exponentials and their sum lose a relative share, which the logarithm makes
    absolute; the shift by the largest entry is one rounding, and so is the result.
    """
    model = declared.model
    value = jax.nn.logsumexp(x.value, axis=-1)
    error = jnp.max(x.error, axis=-1)
    reach = jnp.max(x.magnitude, axis=-1)
    depth = declared.reduction_depth(x.shape[-1]) + 2
    lost = model.exp_relative + (model.unit + model.exp_argument) * 2.0 * reach
    own = lost + jnp.expm1(depth * model.unit) + 4.0 * model.unit * (reach + 4.0)
    return Bounded(value, error + own + x.shape[-1] * model.underflow)


ARCTAN = Operation(exact=jnp.arctan, bounded=arctan_rule)
ROW = Operation(exact=sum_of_exponentials, bounded=row_rule)
HOSTILE = np.array([0.0, -0.0, 2.0**-149, 2.0**-126, -(2.0**-126), 1e-30, 1.0, 1e38])


def share_reached(rng, rule, model) -> float:
    """Assert the bound for values, errors and signs; the share that was reached."""
    m, operation = MODELS[model], Operation(exact=jnp.arctan, bounded=rule)
    best = np.zeros(SIZE)
    v, e = inputs(rng, -8, 8)
    v[-HOSTILE.size :] = HOSTILE
    e[-HOSTILE.size :] = [1.0, 0.0, 1e-40, 0.0, 1e-3, 1e6, 3.0, 1e38]
    bound = interpreter(model).apply(operation, as_bounded(v, e))
    with flint.ctx.workprec(BITS):
        exact = [arb(x).atan() for x in v]
        # towards 0, where the slope grows, and away from it
        ends = [np.where(v < 0, 1.0, -1.0), np.where(v < 0, -1.0, 1.0)]
        for move in [*ends, *choices(rng, SIZE, 2)]:
            moved = [arb(x) + arb(s) * arb(d) for x, s, d in together(v, move, e)]
            for sign in (-1, 1):
                distances = []
                for x, y0 in together(moved, exact):
                    wrong = x.atan() * (1 + sign * 4 * arb(m.unit))
                    wrong += sign * arb(m.underflow)
                    distances.append(above(abs(wrong - y0)))
                best = np.maximum(best, hold(bound, distances))
    known = (e > 0) & (e < 0.05) & (np.abs(v) < 3)
    assert known.sum() > 5
    return float(np.min(best[known]))


@pytest.mark.parametrize("model", MODELS)
def test_a_pair_holds_and_is_close_to_attained(rng, model):
    """Assert no execution beyond it, and within 1.2 where the slope hardly changes."""
    assert share_reached(rng, arctan_rule, model) >= 1 / 1.2


@pytest.mark.parametrize(
    ("rule", "model"),
    [
        (steepest_at_the_value, "none"),
        (no_rounding, "kernel"),
        (half_the_error, "kernel"),
        (half_the_error, "none"),
    ],
)
def test_a_wrong_pair_is_found_by_the_same_assertion(rng, rule, model):
    """Assert that what leaves something out is exceeded."""
    with pytest.raises(AssertionError, match="element"):
        share_reached(rng, rule, model)


def test_a_function_of_a_row_holds(rng):
    """Assert log sum exp against balls, rows moved all one way and at random."""
    m, at = MODELS["kernel"], interpreter()
    v = rng.uniform(-20, 20, (6, 8))
    v[0], v[1] = 0.0, [60.0, -60.0] * 4
    e = np.abs(v) * 10.0 ** rng.uniform(-7, -1, v.shape) + 1e-9
    bound = at.apply(ROW, as_bounded(v, e))
    assert bound.shape == (6,)
    best = np.zeros(6)
    with flint.ctx.workprec(BITS):
        row = lambda r: sum((x.exp() for x in r), arb(0)).log()
        exact = [row([arb(x) for x in r]) for r in v]
        for move in choices(rng, v.shape, 2):
            rows: Any = together(v, move, e)
            moved = [
                [arb(x) + arb(s) * arb(d) for x, s, d in together(*r)] for r in rows
            ]
            for sign in (-1, 1):
                wrong = [row(r) for r in moved]
                wrong = [y + sign * arb(m.unit) * abs(y) for y in wrong]
                distances = [above(abs(y - z)) for y, z in together(wrong, exact)]
                assert (distances <= np.asarray(bound.error)).all()
                best = np.maximum(best, distances / np.asarray(bound.error))
    assert best[2:].max() > 0.5


def test_arrays_run_the_function_itself(rng):
    """Assert fp64's own function exactly, and one rounding to what is computed in."""
    x = rng.normal(size=SIZE)
    wide = np.arctan(x)
    library = 4 * 2.0**-53 * np.abs(wide)
    assert (np.abs(np.asarray(Exact().apply(ARCTAN, x)) - wide) <= library).all()
    narrow = np.float32(x)
    for at, unit in ((Rounded({}), 2.0**-24), (Rounded({}, BF16.numbers()), 2.0**-8)):
        given = narrow if unit == 2.0**-24 else x
        once = np.asarray(at.apply(ARCTAN, given), np.float64)
        own = np.arctan(np.float64(given))
        assert (np.abs(once - own) <= unit * np.abs(own) * (1 + 2.0**-40)).all()
        assert (once != own).any()


def test_what_is_rounded_stays_within_the_bound(rng):
    """Assert it of the emulator, and that draws of roundings have their size."""
    x = np.float64(np.float32(rng.normal(size=SIZE) * 4))
    bound = interpreter().apply(ARCTAN, as_bounded(x, np.zeros(SIZE)))
    key = jax.random.key(0)
    inner = Sampled({}, key, inner=BF16.numbers())
    fp32 = np.asarray(Rounded({}).apply(ARCTAN, np.float32(x)), np.float64)
    hold(bound, np.abs(fp32 - np.asarray(bound.value)))
    np.testing.assert_array_equal(Sampled({}, key).apply(ARCTAN, x), bound.value)
    off = np.abs(np.asarray(inner.apply(ARCTAN, x)) - np.arctan(x))
    assert (off <= 2.0**-8 * np.abs(np.arctan(x))).all()
    assert (off > 0).mean() > 0.9


def test_adjoints_and_tangents_are_those_of_the_function(rng):
    """Assert 1 / (1 + x^2), through an offset, forward and backward."""
    x = rng.normal(size=SIZE)

    def flow(offset):
        at = Perturbed({"given": offset})
        return at.apply(ARCTAN, at.store("given", jnp.asarray(x)))

    zero = jnp.zeros(SIZE)
    slope = 1 / (1 + x**2)
    own = 8 * 2.0**-53
    _, tangent = jax.jvp(flow, (zero,), (jnp.ones(SIZE),))
    (adjoint,) = jax.vjp(flow, zero)[1](jnp.ones(SIZE))
    np.testing.assert_allclose(tangent, slope, rtol=own)
    np.testing.assert_allclose(adjoint, slope, rtol=own)


def test_inside_a_scan_it_is_the_same(rng):
    """Assert value and error at every token, as one by one."""
    x = as_bounded(*(z.reshape(6, 8) for z in inputs(rng)))
    at = interpreter()
    body = lambda at, state, given: (state, at.apply(ARCTAN, given))
    _, found = jax.jit(lambda x: at.scan(body, at.carry(jnp.zeros(1)), x))(x)
    one = at.apply(ARCTAN, x)
    np.testing.assert_allclose(found.value, one.value, rtol=4 * 2.0**-53)
    np.testing.assert_allclose(found.error, one.error, rtol=32 * 2.0**-53)


def test_changed_parameters_are_read_through_its_rule(rng):
    """Assert the slope times the change, in exact arithmetic."""
    v, e = rng.normal(size=SIZE), np.full(SIZE, 1e-6)
    error = np.asarray(ParameterArithmetic().apply(ARCTAN, as_bounded(v, e)).error)
    worst = np.maximum(np.arctan(v + e) - np.arctan(v), np.arctan(v) - np.arctan(v - e))
    # differences of fp64 functions, each within 4 units of at most 2
    assert (error >= worst - 2.0**-49).all()
    assert (error <= worst * 1.001 + 2.0**-49).all()


def test_a_formula_is_written_down_or_refused():
    """Assert the expression where one is given, and which operation has none."""
    x = sympy.Symbol("x")
    each = np.vectorize(sympy.atan, otypes=[object])
    given = Operation(exact=jnp.arctan, bounded=arctan_rule, symbolic=each)
    (found,) = Symbolic().apply(given, np.array([x]))
    assert sympy.diff(found, x) == 1 / (1 + x**2)
    with pytest.raises(UsageError, match="'arctan' has no formula") as refused:
        Symbolic().apply(ARCTAN, np.array([x]))
    assert "symbolic=" in refused.value.hint


@pytest.mark.wrong_types
def test_a_pair_that_does_not_fit_is_refused_by_name():
    """Assert what is said of results of another kind or shape, and of no function."""
    x, at = jnp.ones((2, 3)), BoundedArithmetic({}, RoundingModel.none())
    twice: Any = lambda x: (x, x)
    pairs = {
        "returned tuple": Operation(exact=twice, bounded=arctan_rule, name="two"),
        "returned ArrayImpl": Operation(
            exact=jnp.arctan, bounded=lambda declared, x: x.error, name="bare"
        ),
        r"shape \(2, 3\) with an error of shape \(2, 3\)": Operation(
            exact=sum_of_exponentials, bounded=arctan_rule, name="row"
        ),
    }
    for said, operation in pairs.items():
        with pytest.raises(UsageError, match=f"'{operation.name}'.*{said}"):
            at.apply(operation, x)
    with pytest.raises(UsageError, match="'two'"):
        Exact().apply(pairs["returned tuple"], x)
    with pytest.raises(ArgumentError, match="bounded of an operation"):
        Operation(exact=jnp.arctan, bounded=None)  # pyright: ignore[reportArgumentType]


def test_what_a_rule_makes_of_no_number_is_no_bound():
    """Assert inf for errors that are NaN, negative, or clipped although unknown."""
    x = Bounded(jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([0.0, jnp.nan, jnp.inf]))
    at = interpreter()
    clipped = lambda declared, x: Bounded(jnp.arctan(x.value), jnp.ones(3))
    error = np.asarray(at.apply(Operation(jnp.arctan, clipped), x).error)
    assert error[0] >= 1.0
    assert (error[1:] == np.inf).all()
    for wrong in (jnp.nan, -1.0):
        rule = lambda declared, x, wrong=wrong: Bounded(x.value, jnp.full(3, wrong))
        assert (at.apply(Operation(jnp.arctan, rule), x[:]).error == np.inf).all()


def test_the_example_in_the_docstring_runs():
    """Assert what the documentation shows, in a flow with stores on either side."""
    import doctest

    from lyapunov.arithmetic import _operation

    found = doctest.testmod(_operation)
    assert found.attempted >= 5
    assert found.failed == 0
