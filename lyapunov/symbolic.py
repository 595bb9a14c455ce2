"""Step Jacobians and exponents as SymPy expressions, from the code that runs.

The recurrence is the one that the checker computes with, read by another interpreter
of the arithmetic; the formulas are not typed in a second time.
"""

from collections.abc import Callable
from typing import Any

from ._errors import MissingExtraError, UsageError


ARCHITECTURES = ("mamba1", "mamba2", "mamba3", "gated_delta", "kimi_delta")
NOT_DIAGONAL = ("gated_delta", "kimi_delta")


def step_jacobian(architecture: str = "mamba1") -> Any:
    r"""An entry of the step Jacobian, for any number of channels and states.

    For Mamba-1, $\partial h_t[i, n] / \partial h_{t-1}[j, m]$ with the inputs held
    fixed:

    $$e^{\Delta[t, i] A[i, n]} \delta_{ij} \delta_{nm},$$

    one expression in `Indexed` symbols (`A` negative, `dt` positive) and
    `KroneckerDelta`. `free_symbols` gives the indices t, i, n, j, m (integers).

    For Mamba-2, $\partial h_t[i, p, n] / \partial h_{t-1}[j, q, m]$ of heads i and j,
    channels p and q of a head, states n and m:
    $e^{\Delta[t, i] A[i]} \delta_{ij} \delta_{pq} \delta_{nm}$. For Mamba-3
    the same with $A[t, i]$, the last keys and values being held as inputs are.

    For the delta rules, of heads i and j, keys n and m, values p and q, with
    log gates g (of a head, or of a head and key):
    $(\delta_{nm} - \beta[t, i] k[t, i, n] k[t, i, m]) e^{g[t, i, m]} \delta_{ij}
    \delta_{pq}$. Two keys are written out; others would enter alike.

    **Raises:** `MissingExtraError` without SymPy; `UsageError` for an architecture
    that has no recurrence here.
    """
    after, before, _, own, other = _step(architecture)
    if architecture not in NOT_DIAGONAL:
        return after.diff(before[other])
    # of the two keys that are written out, one that is the other's and one that is not
    sympy, (_, _, n), (j, q, m) = _sympy(), own, other
    apart = {sympy.KroneckerDelta(n, m): 0}
    mixed = after.diff(before[j, q, m]).subs(apart).expand()
    kept = after.diff(before[j, q, n]).subs(apart).expand()
    return mixed + sympy.KroneckerDelta(n, m) * (kept - mixed).subs(n, m)


def exponent(architecture: str = "mamba1") -> Any:
    r"""The Lyapunov exponent of channel i and state n over T tokens.

    For Mamba-1 the logarithm of the diagonal entry of the step Jacobian, averaged
    over tokens: $\frac1T \sum_{t=1}^{T} \Delta[t, i] A[i, n]$, a SymPy `Sum` over
    `Indexed` symbols with symbolic T; of head i with A[i] for
    Mamba-2, with A[t, i] for Mamba-3.

    **Raises:** as `step_jacobian`; `UsageError` for a delta rule, which has none.
    """
    sympy = _sympy()
    if architecture in NOT_DIAGONAL:
        raise UsageError(
            f"the exponents of {architecture} are no closed form: its step Jacobians "
            "do not commute",
            hint="lyapunov.lyapunov_spectrum with lyapunov.recurrences.DeltaRecurrence",
        )
    after, before, t, own, _ = _step(architecture)
    growth = sympy.expand_log(sympy.log(after.diff(before[own])))
    length = sympy.Symbol("T", integer=True, positive=True)
    return sympy.Sum(growth, (t, 1, length)) / length


def _step(architecture: str) -> tuple[Any, Any, Any, tuple, tuple]:
    """h_t at its own indices, the symbol of h_{t-1}, t, its indices, and others."""
    if architecture not in ARCHITECTURES:
        raise UsageError(
            f"no symbolic recurrence for {architecture!r}",
            hint=f"one of {', '.join(ARCHITECTURES)}",
        )
    return _READERS[architecture](_sympy())


def _mamba1(sympy: Any) -> tuple[Any, Any, Any, tuple, tuple]:
    from .arithmetic.symbolic import Symbolic
    from .recurrences.mamba1 import step

    t, i, j, n, m = sympy.symbols("t i j n m", integer=True)
    h, u, B = (sympy.IndexedBase(name, real=True) for name in ("h", "u", "B"))
    dt = sympy.IndexedBase("dt", positive=True)
    A = sympy.IndexedBase("A", negative=True)

    # A second channel and state, so that a mixing of them would show.
    channels, states = (i, j), (n, m)
    after = step(
        Symbolic(),
        _table(lambda c, s: h[c, s], channels, states),
        _table(lambda c: dt[t, c], channels),
        _table(lambda c: u[t, c], channels),
        _table(lambda s: B[t, s], states),
        _table(lambda c, s: A[c, s], channels, states),
    )
    return after[0, 0], h, t, (i, n), (j, m)


def _mamba2(sympy: Any) -> tuple[Any, Any, Any, tuple, tuple]:
    from .arithmetic.symbolic import Symbolic
    from .recurrences.mamba1 import update

    t, i, j, p, q, n, m = sympy.symbols("t i j p q n m", integer=True)
    h, x, B = (sympy.IndexedBase(name, real=True) for name in ("h", "x", "B"))
    dt = sympy.IndexedBase("dt", positive=True)
    A = sympy.IndexedBase("A", negative=True)

    heads, channels, states = (i, j), (p, q), (n, m)
    at, steps = Symbolic(), _table(lambda head: dt[t, head], heads)
    after = update(
        at,
        _table(lambda head, c, s: h[head, c, s], heads, channels, states),
        steps[:, None, None],
        at.multiply(
            steps[:, None, None],
            _table(lambda head, c: x[t, head, c], heads, channels)[:, :, None],
        ),
        _table(lambda head, s: B[t, head, s], heads, states)[:, None, :],
        _table(lambda head: A[head], heads)[:, None, None],
    )
    return after[0, 0, 0], h, t, (i, p, n), (j, q, m)


def _mamba3(sympy: Any) -> tuple[Any, Any, Any, tuple, tuple]:
    from .arithmetic.symbolic import Symbolic
    from .recurrences.trapezoid import update

    t, i, j, p, q, n, m, r = sympy.symbols("t i j p q n m r", integer=True)
    h, k, v = (sympy.IndexedBase(name, real=True) for name in ("h", "k", "v"))
    dt = sympy.IndexedBase("dt", positive=True)
    part = sympy.IndexedBase("lambda", positive=True)
    A = sympy.IndexedBase("A", negative=True)

    # A second rank as well, for MIMO.
    heads, channels, states, ranks = (i, j), (p, q), (n, m), (r, r + 1)

    def product(token, weight):
        return (
            _table(weight, heads),
            _table(lambda rank, g, s: k[token, rank, g, s], ranks, heads, states),
            _table(lambda rank, g, c: v[token, rank, g, c], ranks, heads, channels),
        )

    after = update(
        Symbolic(),
        _table(lambda g, c, s: h[g, c, s], heads, channels, states),
        _table(lambda g: dt[t, g] * A[t, g], heads),
        product(t - 1, lambda g: (1 - part[t, g]) * dt[t, g]),
        product(t, lambda g: part[t, g] * dt[t, g]),
    )
    return after[0, 0, 0], h, t, (i, p, n), (j, q, m)


def _delta(sympy: Any, per_key: bool) -> tuple[Any, Any, Any, tuple, tuple]:
    from .arithmetic._delta import DeltaToken
    from .arithmetic.symbolic import Symbolic

    t, i, j, p, q, n, m = sympy.symbols("t i j p q n m", integer=True)
    S, k, v = (sympy.IndexedBase(name, real=True) for name in ("S", "k", "v"))
    beta = sympy.IndexedBase("beta", nonnegative=True)
    gate = sympy.IndexedBase("g", nonpositive=True)

    heads, values, keys = (i, j), (p, q), (n, m)
    log_gate = _table(lambda head: gate[t, head], heads)
    if per_key:
        log_gate = _table(lambda head, c: gate[t, head, c], heads, keys)
    at = Symbolic()
    after = at.delta_step(
        _table(lambda head, u, c: S[head, u, c], heads, values, keys),
        DeltaToken(
            at.fading(log_gate),
            _table(lambda head, c: k[t, head, c], heads, keys),
            _table(lambda head, u: v[t, head, u], heads, values),
            _table(lambda head: beta[t, head], heads),
        ),
    )
    return after[0, 0, 0], S, t, (i, p, n), (j, q, m)


_READERS = {
    "mamba1": _mamba1,
    "mamba2": _mamba2,
    "mamba3": _mamba3,
    "gated_delta": lambda sympy: _delta(sympy, per_key=False),
    "kimi_delta": lambda sympy: _delta(sympy, per_key=True),
}


def _table(entry: Callable, *axes: tuple) -> Any:
    """An object array of `entry(index, ...)` over all indices."""
    import numpy as np

    out = np.empty(tuple(map(len, axes)), object)
    for place in np.ndindex(out.shape):
        out[place] = entry(*(axis[k] for axis, k in zip(axes, place, strict=True)))
    return out


def _sympy() -> Any:
    try:
        import sympy
    except ImportError as missing:
        raise MissingExtraError(
            "formulas need SymPy, which is not installed",
            hint="pip install 'lyapunov-check[symbolic]'",
        ) from missing
    return sympy
