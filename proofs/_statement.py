"""What a statement is: hypotheses, a derivation whose steps are checked, numbers."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any


KINDS = {
    "identity": "SymPy: the difference of both sides simplifies to 0",
    "induction": "base and step, each an identity or a sign, for a symbolic number",
    "sign": "SymPy knows the sign from the assumptions on the symbols",
    "ball": "python-flint: balls that enclose the function cover the stated domain",
    "limit": "SymPy: a limit",
    "lemma": "a theorem of the literature, cited; not proved again here",
    "counterexample": "exact numbers for which a claim is false",
}


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One assumption. A statement can be run as if it did not hold."""

    name: str
    text: str


class Given:
    """The hypotheses that hold in this run: `"name" in given`."""

    def __init__(self, hypotheses: Iterable[Hypothesis], broken: Iterable[str] = ()):
        names = {one.name for one in hypotheses}
        self.broken = frozenset(broken)
        unknown = self.broken - names
        if unknown:
            raise ValueError(
                f"no hypothesis named {', '.join(sorted(unknown))}; "
                f"one of {', '.join(sorted(names))}"
            )
        self._held = names - self.broken
        self._names = names

    def __contains__(self, name: str) -> bool:
        if name not in self._names:
            raise KeyError(f"no hypothesis named {name}")
        return name in self._held


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a derivation, already checked."""

    kind: str
    text: str
    holds: bool
    formulas: tuple[Any, ...] = ()
    """SymPy expressions or relations, for the reader."""
    evidence: str = ""
    """What the check found, or the reference of a lemma."""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}; one of {', '.join(KINDS)}")


@dataclasses.dataclass(frozen=True)
class Number:
    """One reproduction: how far numbers are from the statement, and what is allowed.

    For an equality the deviation is the difference in the unit that `text` names; for
    an inequality it is the largest violation, negative where there is room.
    """

    text: str
    deviation: float
    tolerance: float
    derived: str
    """Where the tolerance comes from."""

    @property
    def holds(self) -> bool:
        """False for a NaN, too."""
        return self.deviation <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Statement:
    """One row of the table."""

    name: str
    title: str
    hypotheses: tuple[Hypothesis, ...]
    whose: str
    """The paper's (2406.00209), from elsewhere (cited), or ours."""
    used: str
    """Where the library relies on it."""
    derive: Callable[[Given], Iterable[Step]]
    reproduce: Callable[[Given], Iterable[Number]]

    def run(self, broken: Iterable[str] = (), *, numbers: bool = True) -> "Row":
        """Derive and reproduce, as if the `broken` hypotheses did not hold."""
        given = Given(self.hypotheses, broken)
        found = tuple(self.reproduce(given)) if numbers else ()
        return Row(self, tuple(self.derive(given)), found)


@dataclasses.dataclass(frozen=True)
class Row:
    """A statement that was run."""

    statement: Statement
    steps: tuple[Step, ...]
    numbers: tuple[Number, ...]

    @property
    def proved(self) -> bool:
        """Whether there are steps, and all hold."""
        return bool(self.steps) and all(step.holds for step in self.steps)

    @property
    def reproduced(self) -> bool:
        """Whether there are numbers, and all hold."""
        return bool(self.numbers) and all(one.holds for one in self.numbers)

    @property
    def kinds(self) -> dict[str, int]:
        """How many steps of each kind, in the order of `KINDS`."""
        counts = {kind: 0 for kind in KINDS}
        for step in self.steps:
            counts[step.kind] += 1
        return {kind: count for kind, count in counts.items() if count}

    @property
    def worst(self) -> Number | None:
        """The reproduction that comes closest to its tolerance, or exceeds it most.

        Equalities before inequalities, whose deviation is negative.
        """
        if not self.numbers:
            return None
        failed = [one for one in self.numbers if not one.holds]
        share = lambda one: one.deviation / one.tolerance if one.tolerance else 0.0
        return failed[0] if failed else max(self.numbers, key=share)
