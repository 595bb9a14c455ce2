"""Step Jacobians and exponents as SymPy expressions, from the code that runs.

The recurrence is the one that the checker computes with, read by another interpreter
of the arithmetic; the formulas are not typed in a second time.
"""

from typing import Any

from ._errors import MissingExtraError, UsageError


ARCHITECTURES = ("mamba1",)


def step_jacobian(architecture: str = "mamba1") -> Any:
    r"""An entry of the step Jacobian, for any number of channels and states.

    For Mamba-1, $\partial h_t[i, n] / \partial h_{t-1}[j, m]$ with the inputs held
    fixed:

    $$e^{\Delta[t, i] A[i, n]} \delta_{ij} \delta_{nm},$$

    one expression in `Indexed` symbols (`A` negative, `dt` positive) and
    `KroneckerDelta`. `free_symbols` gives the indices t, i, n, j, m (integers).

    **Raises:** `MissingExtraError` without SymPy; `UsageError` for an architecture
    that has no recurrence here.
    """
    after, before, (_, _, _, j, m) = _step(architecture)
    return after.diff(before[j, m])


def exponent(architecture: str = "mamba1") -> Any:
    r"""The Lyapunov exponent of channel i and state n over T tokens.

    For Mamba-1 the logarithm of the diagonal entry of the step Jacobian, averaged
    over tokens: $\frac1T \sum_{t=1}^{T} \Delta[t, i] A[i, n]$, a SymPy `Sum` over
    `Indexed` symbols with symbolic T.

    **Raises:** as `step_jacobian`.
    """
    sympy = _sympy()
    after, before, (t, i, n, _, _) = _step(architecture)
    growth = sympy.expand_log(sympy.log(after.diff(before[i, n])))
    length = sympy.Symbol("T", integer=True, positive=True)
    return sympy.Sum(growth, (t, 1, length)) / length


def _step(architecture: str) -> tuple[Any, Any, tuple]:
    """h_t[i, n], the symbol of h_{t-1}, and the indices (t, i, n, j, m)."""
    sympy = _sympy()
    if architecture not in ARCHITECTURES:
        raise UsageError(
            f"no symbolic recurrence for {architecture!r}",
            hint=f"one of {', '.join(ARCHITECTURES)}",
        )
    import numpy as np

    from .arithmetic.symbolic import Symbolic
    from .recurrences.mamba1 import step

    t, i, j, n, m = sympy.symbols("t i j n m", integer=True)
    h, u, B = (sympy.IndexedBase(name, real=True) for name in ("h", "u", "B"))
    dt = sympy.IndexedBase("dt", positive=True)
    A = sympy.IndexedBase("A", negative=True)

    # A second channel and state, so that a mixing of them would show.
    channels, states = (i, j), (n, m)

    def table(entry):
        return np.array([[entry(c, s) for s in states] for c in channels], object)

    after = step(
        Symbolic(),
        table(lambda c, s: h[c, s]),
        np.array([dt[t, c] for c in channels], object),
        np.array([u[t, c] for c in channels], object),
        np.array([B[t, s] for s in states], object),
        table(lambda c, s: A[c, s]),
    )
    return after[0, 0], h, (t, i, n, j, m)


def _sympy() -> Any:
    try:
        import sympy
    except ImportError as missing:
        raise MissingExtraError(
            "formulas need SymPy, which is not installed",
            hint="pip install 'lyapunov-check[symbolic]'",
        ) from missing
    return sympy
