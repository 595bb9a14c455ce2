"""Checks that make a step: SymPy for identities, signs, limits; Arb for balls."""

from collections.abc import Callable
from typing import Any

import sympy
from flint import arb

from ._statement import Step


def is_zero(expression) -> bool:
    """Whether SymPy simplifies it to 0."""
    if isinstance(expression, sympy.MatrixBase):
        return all(is_zero(entry) for entry in expression)
    found = sympy.expand(expression)
    return found == 0 or sympy.simplify(found) == 0


def identity(text: str, left: Any, right: Any, shown: Any = None) -> Step:
    """left = right for all values of the symbols; `shown` where SymPy reorders."""
    shown = (sympy.Eq(left if shown is None else shown, right, evaluate=False),)
    return Step("identity", text, is_zero(left - right), shown)


def sign(text: str, expression: Any, relation: str, shown: Any = None) -> Step:
    """The expression is `> 0`, `>= 0`, `< 0` or `<= 0` under the symbols' assumptions.

    SymPy's answer must be True; "not known" fails.
    """
    holds = has_sign(expression, relation)
    make = {">": sympy.Gt, ">=": sympy.Ge, "<": sympy.Lt, "<=": sympy.Le}[relation]
    shown = make(expression, 0, evaluate=False) if shown is None else shown
    return Step("sign", text, holds, (shown,))


def has_sign(expression: Any, relation: str) -> bool:
    """Whether SymPy knows it, of the expression as it is or simplified."""
    name = {
        ">": "is_positive",
        ">=": "is_nonnegative",
        "<": "is_negative",
        "<=": "is_nonpositive",
    }[relation]
    expression = sympy.sympify(expression)
    forms = (lambda e: e, sympy.simplify, sympy.factor)
    return any(getattr(form(expression), name) is True for form in forms)


def rises_from_zero(text: str, f: Any, x: Any) -> Step:
    """f >= 0 for x >= 0, because f(0) = 0 and f' >= 0 where x is nonnegative."""
    slope = sympy.simplify(sympy.diff(f, x))
    holds = is_zero(f.subs(x, 0)) and has_sign(slope, ">=")
    evidence = f"0 at {x} = 0; slope {slope}"
    return Step("sign", text, holds, (sympy.Ge(f, 0, evaluate=False),), evidence)


def induction(
    text: str, *, base: bool, step: bool, formulas: tuple = (), evidence: str = ""
) -> Step:
    """Both have been checked by `is_zero` or `has_sign`; the number is symbolic."""
    found = f"base {'holds' if base else 'FAILS'}, step {'holds' if step else 'FAILS'}"
    evidence = f"{found}; {evidence}" if evidence else found
    return Step("induction", text, base and step, formulas, evidence)


def limit(text: str, expression: Any, variable: Any, wanted: Any) -> Step:
    """The limit as the variable goes to infinity."""
    found = sympy.limit(expression, variable, sympy.oo)
    shown = sympy.Eq(
        sympy.Limit(expression, variable, sympy.oo), wanted, evaluate=False
    )
    holds = found == wanted or is_zero(found - wanted)
    return Step("limit", text, holds, (shown,), f"SymPy: {found}")


def lemma(text: str, reference: str, *, applies: bool = True) -> Step:
    """A cited theorem; `applies` says whether its hypotheses are there."""
    return Step("lemma", text, applies, (), reference)


def counterexample(text: str, holds: Any, evidence: str = "") -> Step:
    """Exact numbers that show a claim to be false."""
    return Step("counterexample", text, bool(holds), (), evidence)


def ball(
    text: str,
    f: Callable[[arb], arb],
    low: float,
    high: float,
    bound: str,
    formulas: tuple = (),
    most: int = 100_000,
) -> Step:
    """f(x) <= bound for every x in [low, high], proved by covering it with balls.

    Intervals on which the enclosure is not below the bound are halved.
    """
    limit, pending, used = arb(bound), [(low, high)], 0
    while pending and used < most:
        start, stop = pending.pop()
        used += 1
        middle, radius = (start + stop) / 2, (stop - start) / 2
        # dyadic ends: middle and radius are exact in fp64 down to this width
        if f(arb(middle, radius)) <= limit:
            continue
        if radius < 2.0**-40:
            pending.append((start, stop))
            break
        pending += [(start, middle), (middle, stop)]
    evidence = f"{used} balls cover [{low}, {high}], bound {bound}"
    return Step("ball", text, not pending, formulas, evidence)
