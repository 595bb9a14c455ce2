"""Which findings count, and what they add up to."""

from collections.abc import Iterable

from lyapunov._catalogue import CATALOGUE, ERROR, WARNING
from lyapunov._errors import UsageError
from lyapunov._results import Finding


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
    """The findings that count: those selected (all, where nothing is) less those
    ignored. Codes match by their beginning; where both match, the longer one wins.
    """
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


def verdict(
    findings: Iterable[Finding],
    *,
    fail_on: str = ERROR,
    checked: int,
    skipped: int = 0,
    allow_partial: bool = False,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    exit_zero: bool = False,
) -> tuple[str, int]:
    """What the findings add up to.

    **Arguments:**

    - `findings`: as `find` gave them.
    - `fail_on`: `error` or `warning`, the lowest severity that fails the check.
    - `checked`, `skipped`: sublayers that were, and that could not be, checked.
    - `allow_partial`: skipped sublayers do not make the verdict incomplete.
    - `select`, `ignore`: codes that count, and that do not.
    - `exit_zero`: exit code 0 in spite of findings; an incomplete check stays 2.

    **Returns:**

    The verdict (`held`, `findings` or `incomplete`) and the exit code (0, 1 or 2).
    """
    if fail_on not in (ERROR, WARNING):
        raise UsageError(
            f"fail_on is 'error' or 'warning', not {fail_on!r}",
            hint="the default is 'error'",
        )
    failing = [
        finding
        for finding in select_findings(findings, select, ignore)
        if fail_on == WARNING or finding.severity == ERROR
    ]
    if checked == 0:
        return "incomplete", 2
    if failing:
        if exit_zero and skipped and not allow_partial:
            return "findings", 2
        return "findings", 0 if exit_zero else 1
    if skipped and not allow_partial:
        return "incomplete", 2
    return "held", 0
