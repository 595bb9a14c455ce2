"""Formulas read off the running code, against the code running."""

import sys
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest


sympy = pytest.importorskip("sympy")


def entry(expression, dt, A, i, n, j=0, m=0):
    """The expression at numbers: indices, then what the symbols hold."""
    names = {symbol.name: symbol for symbol in expression.atoms(sympy.Symbol)}
    places = dict(zip("injm", (i, n, j, m), strict=True))
    places |= {"t": 0}
    at = expression.subs({names[k]: v for k, v in places.items() if k in names})
    values = {x: x.base.name for x in at.atoms(sympy.Indexed)}
    function = sympy.lambdify(list(values), at.doit(), "numpy")
    held = {"dt": dt[None], "A": A}
    return float(
        function(
            *(held[name][tuple(map(int, x.indices))] for x, name in values.items())
        )
    )


def test_symbolic_step_jacobian_is_the_jax_jacobian():
    """Assert that the lambdified entry is the JAX Jacobian's, for every pair."""
    from lyapunov.recurrences import Mamba1Inputs, Mamba1Recurrence
    from lyapunov.symbolic import step_jacobian

    rng = np.random.default_rng(0)
    A, dt = -np.exp(rng.normal(size=(2, 3))), rng.exponential(size=2)
    inputs = Mamba1Inputs(jnp.asarray(dt), jnp.ones(2), jnp.ones(3))
    numbers = np.asarray(
        Mamba1Recurrence(jnp.asarray(A)).step_jacobian(jnp.ones((2, 3)), inputs)
    ).reshape(2, 3, 2, 3)
    formula = step_jacobian("mamba1")
    for i, n, j, m in np.ndindex(numbers.shape):
        got = entry(formula, dt, A, i, n, j, m)
        # exp from two libraries, each within 2 ulp, of a product rounded once
        error = 8 * 2**-53 * (1 + abs(dt[i] * A[i, n]))
        assert got == pytest.approx(numbers[i, n, j, m], rel=error, abs=0)


def test_symbolic_step_jacobian_is_kronecker_deltas_times_the_decay():
    """Assert the formula itself: exp(dt A) on the diagonal, nothing else."""
    from lyapunov.symbolic import step_jacobian

    formula = step_jacobian("mamba1")
    names = {symbol.name: symbol for symbol in formula.atoms(sympy.Symbol)}
    i, n, j, m, t = (names[k] for k in "injmt")
    dt = sympy.IndexedBase("dt", positive=True)
    A = sympy.IndexedBase("A", negative=True)
    delta = sympy.KroneckerDelta
    wanted = sympy.exp(dt[t, i] * A[i, n]) * delta(i, j) * delta(n, m)
    assert sympy.simplify(formula - wanted) == 0


def test_symbolic_exponent_is_the_mean_log_decay_and_negative():
    """Assert that every term of the exponent's sum is dt A, which SymPy knows < 0."""
    from lyapunov.symbolic import exponent

    formula = exponent("mamba1")
    (total,) = formula.atoms(sympy.Sum)
    assert total.function.is_negative
    T = total.limits[0][2]
    assert formula == total / T
    names = {x.base.name: x for x in total.function.atoms(sympy.Indexed)}
    assert total.function == names["dt"] * names["A"]


def test_symbolic_flow_is_the_flow():
    """Assert that the whole layer read as formulas gives the numbers of the flow."""
    from lyapunov.arithmetic import Exact
    from lyapunov.arithmetic.symbolic import Symbolic
    from lyapunov.recurrences.mamba1 import selective_scan

    rng = np.random.default_rng(1)
    shapes = {"dt": (3, 2), "u": (3, 2), "B": (3, 2), "C": (3, 2)}
    arrays = {name: rng.uniform(0.1, 1, shape) for name, shape in shapes.items()}
    A, D, state = -rng.exponential(size=(2, 2)), rng.normal(size=2), np.ones((2, 2))
    numbers = [*map(jnp.asarray, arrays.values()), A, D, jnp.asarray(state)]
    wanted, _ = selective_scan(*[Exact(), *numbers])
    symbols = {
        name: np.vectorize(sympy.Float, otypes=[object])(array, 30)
        for name, array in arrays.items()
    }
    got, _ = selective_scan(*[Symbolic(), *symbols.values(), A, D, state])
    # five operations a token, three tokens, two states
    np.testing.assert_allclose(
        got.astype(float), wanted, rtol=0, atol=40 * 2**-53 * np.abs(wanted).max()
    )


@pytest.mark.parametrize(
    ("method", "arguments", "formula"),
    [
        ("softplus", ["x"], lambda x: np.log1p(np.exp(x))),
        ("silu", ["x"], lambda x: x / (1 + np.exp(-x))),
        ("negate", ["x"], lambda x: -x),
        ("add", ["x", "y"], lambda x, y: x + y),
    ],
)
def test_symbolic_operations_are_their_formulas(method, arguments, formula):
    """Assert that an operation on a symbol lambdifies to its definition."""
    from lyapunov.arithmetic.symbolic import Symbolic

    symbols = sympy.symbols(arguments, real=True)
    expression = getattr(Symbolic(), method)(*([s] for s in symbols))[0]
    numbers = [0.3, -1.7][: len(symbols)]
    got = sympy.lambdify(symbols, expression, "math")(*numbers)
    assert got == pytest.approx(formula(*numbers), rel=8 * 2**-53)


def test_symbolic_norm_and_conv_are_the_exact_interpreters():
    """Assert that norm, conv and matmul agree with fp64 on numbers."""
    from lyapunov.arithmetic import Exact, Weight
    from lyapunov.arithmetic.symbolic import Symbolic

    rng = np.random.default_rng(3)
    x, w, bias = rng.normal(size=(5, 2)), rng.normal(size=(2, 3)), rng.normal(size=2)
    mine, theirs, matrix = Symbolic(), Exact(), cast(Any, w.T)
    pairs = [
        (mine.rms_normalise(x, 1e-5), theirs.rms_normalise(x, 1e-5)),
        (mine.causal_conv(x, w, bias), theirs.causal_conv(jnp.asarray(x), w, bias)),
        (mine.matmul(x, matrix), theirs.matmul(x, Weight(jnp.asarray(w.T)))),
        (mine.join([x, x]), theirs.join([x, x])),
    ]
    for got, wanted in pairs:
        error = 16 * 2**-53 * np.abs(wanted).max() * 3
        np.testing.assert_allclose(got.astype(float), wanted, rtol=0, atol=error)


def test_unknown_architecture_is_refused_with_the_known_ones():
    """Assert that the error names what there is."""
    from lyapunov._errors import UsageError
    from lyapunov.symbolic import step_jacobian

    with pytest.raises(UsageError) as caught:
        step_jacobian("mamba7")
    assert "mamba1" in caught.value.hint


def test_without_sympy_the_hint_says_what_to_install(monkeypatch):
    """Assert that a missing SymPy is an error with a command to type."""
    from lyapunov._errors import MissingExtraError
    from lyapunov.symbolic import exponent

    monkeypatch.setitem(sys.modules, "sympy", None)
    with pytest.raises(MissingExtraError) as caught:
        exponent("mamba1")
    assert caught.value.hint == "pip install 'lyapunov-check[symbolic]'"
