"""Which findings count, and what they add up to."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lyapunov._errors import UsageError
from lyapunov.findings._catalogue import CATALOGUE, ERROR, WARNING
from lyapunov.results._audit import UNBOUNDED, AuditReport
from lyapunov.results._check import (
    OUTPUT,
    Finding,
    ParameterChangeReport,
    PrecisionReport,
    Report,
)


BOUNDED_SHARE = 0.5
"""Share of elements with a finite bound, of all and of the sublayers' outputs, below
which a check is not called held: most of what it would hold was held to nothing."""


def check_codes(codes: Iterable[str]) -> tuple[str, ...]:
    """Codes or their beginnings (`LYA`, `LYA00`), in capitals.

    **Raises:** `UsageError` for one that matches nothing in the catalogue.
    """
    checked = tuple(code.strip().upper() for code in codes)
    for given, code in zip(codes, checked, strict=True):
        if not code or not any(known.startswith(code) for known in CATALOGUE):
            raise UsageError(
                f"no finding has the code {given!r}",
                hint=f"codes run from {min(CATALOGUE)} to {max(CATALOGUE)}; "
                "`lyapunov-check --explain all` lists them",
            )
    return checked


def select_findings(
    findings: Iterable[Finding],
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> list[Finding]:
    """Select the findings that count: those asked for (all, where nothing is) less
    those ignored. Codes match by their beginning; where both match, the longer one
    wins."""
    select, ignore = tuple(select or ()), tuple(ignore or ())

    def length(code: str, given: tuple[str, ...]) -> int:
        return max((len(g) for g in given if code.startswith(g.upper())), default=-1)

    kept = []
    for finding in findings:
        wanted = length(finding.code, select) if select else 0
        unwanted = length(finding.code, ignore)
        if wanted >= 0 and wanted > unwanted:
            kept.append(finding)
    return kept


@dataclass(frozen=True)
class Verdict:
    """Say what counts, and what is a failure.

    **Arguments:**

    - `fail_on`: `error` or `warning`, the lowest severity that fails.
    - `select`, `ignore`: codes, or their beginnings, that count and that do not.
    - `allow_partial`: sublayers that were skipped, and few bounds, are no failure.
    - `exit_zero`: findings leave the exit code at 0.

    **Raises:** `UsageError` for another severity.
    """

    fail_on: str = ERROR
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    allow_partial: bool = False
    exit_zero: bool = False

    def __post_init__(self):
        if self.fail_on not in (ERROR, WARNING):
            raise UsageError(
                f"fail_on is 'error' or 'warning', not {self.fail_on!r}",
                hint="the default is 'error'",
            )

    @classmethod
    def among(cls, settings: Mapping[str, Any]) -> "Verdict":
        """What settings say of it; what they leave out is the default."""
        said = [rule.name for rule in fields(cls) if rule.name in settings]
        found: dict[str, Any] = {name: settings[name] for name in said}
        for codes in {"select", "ignore"} & set(said):
            found[codes] = tuple(found[codes])
        return cls(**found)

    def kept(self, found: Iterable[Finding]) -> list[Finding]:
        """The findings that count."""
        return select_findings(found, self.select, self.ignore)

    def fails(self, found: Iterable[Finding]) -> bool:
        """Whether some finding is of a severity that fails."""
        return any(f.severity == ERROR or self.fail_on == WARNING for f in found)

    def settings(self) -> dict[str, Any]:
        """The same as a report repeats it."""
        codes = {"select": list(self.select), "ignore": list(self.ignore)}
        return asdict(self) | codes


def bounded_share(
    precisions: Iterable[PrecisionReport],
    changes: Iterable[ParameterChangeReport] = (),
) -> float | None:
    """Share of elements with a finite bound: of all that were compared, or of the
    sublayers' outputs alone, whichever is less; None where none were.

    Outputs are few beside all stored tensors, and their bounds (T1) the ones that say
    something of a sublayer; each sublayer's share counts once.
    """
    precisions = list(precisions)
    rows = [row for one in precisions for row in one.layers]
    every = [*rows, *(row for change in changes for row in change.layers)]
    total = sum(row.elements_total or 0 for row in every)
    if not total:
        return None
    shares = [sum(row.elements_bounded or 0 for row in every) / total]
    outputs = [1 - (row.unbounded or {}).get(OUTPUT, 0.0) for row in rows]
    if outputs:
        shares.append(sum(outputs) / len(outputs))
    return min(shares)


def unchecked(
    precisions: Iterable[PrecisionReport],
    changes: Iterable[ParameterChangeReport] = (),
) -> set[int]:
    """Find the layers that could not be checked: some run or changed weight set was to
    be held against a bound of theirs, and in none has an element of the sublayer's
    output a finite one."""
    seen, held = set(), set()
    for one in precisions:
        for row in one.layers:
            seen.add(row.layer)
            if (row.unbounded or {}).get(OUTPUT, 0.0) < 1:
                held.add(row.layer)
    for change in changes:
        for row in change.layers:
            seen.add(row.layer)
            if row.elements_bounded or not row.elements_total:
                held.add(row.layer)
    return seen - held


def verdict(
    findings: Iterable[Finding],
    *,
    checked: int,
    skipped: int = 0,
    bounded: float | None = None,
    bounds: bool = True,
    **rules: Any,
) -> tuple[str, int]:
    """Add findings up to a word and an exit code.

    **Arguments:**

    - `findings`: as `find` gave them.
    - `checked`, `skipped`: sublayers that were, and that could not be, checked.
    - `bounded`: share of elements with a finite bound, as `bounded_share` gives it.
    - `bounds`: whether any were looked for; without, nothing can have held.
    - `rules`: the fields of `Verdict`. An incomplete check stays 2 whatever they say.

    **Returns:**

    The verdict (`held`, `findings`, `incomplete`, `unbounded` where fewer than
    `BOUNDED_SHARE` of the elements have a finite bound, or `measured` where no bounds
    were looked for) and the exit code (0, 1, 2).
    """
    counts = Verdict(**rules)
    incomplete = checked == 0 or bool(skipped and not counts.allow_partial)
    if counts.fails(counts.kept(findings)):
        # what was found counts, also where nothing has a bound
        code = 0 if counts.exit_zero else 1
        return "findings", 2 if counts.exit_zero and incomplete else code
    if incomplete:
        return "incomplete", 2
    if bounded is not None and bounded < BOUNDED_SHARE and not counts.allow_partial:
        return "unbounded", 2
    return "held" if bounds else "measured", 0


def judged(report: Report | AuditReport, counts: Verdict) -> tuple[str, int]:
    """Judge a finished report by other rules, as `verdict` does; what its baseline has
    as well counts against nothing."""
    if isinstance(report, AuditReport):
        word = report.summary.verdict
        return word, audit_exit_code(word, report.findings, counts)
    return verdict(
        [finding for finding in report.findings if not finding.known],
        checked=report.summary.checked,
        skipped=report.summary.skipped,
        bounded=report.summary.bounded_share,
        bounds=report.settings.get("bounds", True),
        **vars(counts),
    )


def audit_exit_code(word: str, findings: Iterable[Finding], counts: Verdict) -> int:
    """Turn an audit's verdict, and its findings that count, into an exit code."""
    if counts.fails(findings) and not counts.exit_zero:
        return 1
    return 2 * (word == UNBOUNDED)
