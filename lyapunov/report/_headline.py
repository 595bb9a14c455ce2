"""The verdict as one line: its word, what it says of what was there, and its colour.

`Summary.verdict` and the exit code say whether something fails. The line says no more
than was looked at, and does not call a check HELD whose warnings doubt the checkpoint.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lyapunov.findings._advice import layers_text, listed
from lyapunov.findings._catalogue import CATALOGUE, DOUBTS, ERROR
from lyapunov.findings._changes import change_clause
from lyapunov.report._words import plural, seconds
from lyapunov.results._check import Finding, Report


@dataclass(frozen=True)
class Headline:
    """The verdict of a report in words."""

    word: str
    """In capitals: `HELD`, `BOUNDS HELD, BUT`, `FINDINGS`, ..."""
    style: str
    """The verdict whose mark and colour it has: held, findings or incomplete; empty
    has none."""
    meaning: str
    counts: str
    """Of findings and sublayers, and the time."""

    @property
    def sentence(self) -> str:
        """The word and what it means."""
        between = " " if self.word.endswith("BUT") else ": "
        return f"{self.word}{between}{self.meaning}"

    def __str__(self) -> str:
        return f"{self.sentence} ({self.counts})"


def headline(report: Report) -> Headline:
    """The verdict in words; the first of them says it all."""
    word, style, meaning = _verdict(report)
    meaning += change_clause(report.parameter_changes)
    return Headline(word, style, meaning, _counts(report))


def _verdict(report: Report) -> tuple[str, str, str]:
    summary, findings = report.summary, report.findings
    if summary.verdict == "incomplete":
        nothing = summary.checked == 0
        text = "no sublayer" if nothing else "not every sublayer"
        return "INCOMPLETE", "incomplete", f"{text} could be checked"
    if summary.verdict == "unbounded":
        # rounded down: half is never said of less
        share = math.floor(1000 * (summary.bounded_share or 0.0)) / 10
        text = (
            f"{share:g} % of the elements, or of the sublayers' outputs, have a finite "
            "bound, and only these held"
        )
        return "UNBOUNDED", "incomplete", text
    if summary.verdict == "findings":
        return "FINDINGS", "findings", _failing(findings)
    if any(f.severity == ERROR and not f.known for f in findings):
        return "HELD", "incomplete", "no finding that was selected counts against it"
    doubts = [f for f in findings if f.code in DOUBTS and not f.hint]
    if any(not f.known for f in doubts):
        return _word_before_doubts(report), "incomplete", _doubted(doubts)
    if doubts or any(f.severity == ERROR for f in findings):
        return "NOTHING NEW", "incomplete", "the baseline has these findings as well"
    if summary.verdict == "measured":
        return "MEASURED", "", "; ".join(["no bound was looked for", *_of_all(report)])
    held = _held(report)
    if not held:
        return (
            "NOTHING TO HOLD",
            "incomplete",
            "no recurrence, and nothing was measured",
        )
    text = [listed(held)]
    if report.exponents.max is None:
        text += _of_all(report)
    return "HELD", "held", "; ".join(text)


def _of_all(report: Report) -> list[str]:
    """What is true of the exponents, in words; no finding spoke against it."""
    known = report.exponents.max is not None
    return ["every exponent is negative" if known else "no recurrence, so no exponent"]


def _word_before_doubts(report: Report) -> str:
    if report.summary.verdict == "measured":
        return "MEASURED, BUT"
    if report.precisions:
        return "BOUNDS HELD, BUT"
    return "BUT" if report.exponents.max is None else "EXPONENTS NEGATIVE, BUT"


def _held(report: Report) -> list[str]:
    every = "every finite bound" if _unbounded(report)[0] else "every bound"
    held = [f"{every} held"] if report.precisions else []
    if report.parameter_changes and not report.precisions:
        held.append(f"{every} on what the weights changed held")
    if report.exponents.max is not None:
        held += _of_all(report)
    return held


def _unbounded(report: Report) -> tuple[int, int]:
    """Elements without a finite bound, and all that were compared."""
    compared = [*report.precisions, *report.parameter_changes]
    rows = [row for one in compared for row in one.layers]
    return (
        sum(row.elements_unbounded or 0 for row in rows),
        sum(row.elements_total or 0 for row in rows),
    )


def _failing(findings: Sequence[Finding]) -> str:
    errors = {f.code for f in findings if f.severity == ERROR and not f.known}
    if not errors:
        new = "new " if any(f.known for f in findings) else ""
        return f"{new}warnings count here (--fail-on warning)"
    if errors == {"LYA010"}:
        return "worse than the baseline"
    return "something did not hold"


def _doubted(doubts: Sequence[Finding]) -> str:
    """What the warnings say, code by code: `dynamics look lost in layer 2 (LYA008)`."""
    parts = []
    for code in dict.fromkeys(f.code for f in doubts):
        members = [f for f in doubts if f.code == code]
        where = (
            f" in {layers_text(members)}"
            if any(f.layer is not None for f in members)
            else ""
        )
        parts.append(f"{CATALOGUE[code].title}{where} ({code})")
    return listed(parts)


def _counts(report: Report) -> str:
    summary = report.summary
    errors = sum(finding.severity == ERROR for finding in report.findings)
    warnings = len(report.findings) - errors
    counts = f"{plural(errors, 'error')}, {plural(warnings, 'warning')}"
    known = sum(finding.known for finding in report.findings)
    if known:
        counts += f", {known} of them known to the baseline"
    total = summary.checked + summary.skipped + summary.left_out
    if summary.left_out:
        counts += f"; {summary.checked} of {total} sublayers checked, as asked"
    else:
        counts += f"; {plural(summary.checked, 'sublayer')} checked"
    if summary.skipped:
        counts += f", {summary.skipped} skipped"
    unbounded, elements = _unbounded(report)
    if unbounded:
        counts += f"; {unbounded:,} of {elements:,} elements without a finite bound"
    return f"{counts}, {seconds(report)}"
