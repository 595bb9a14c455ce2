"""Assert that findings are lines for GitHub's runner, and no text is a command."""

import re
from dataclasses import replace

from lyapunov.report._annotations import annotations

from ..helpers import not_none
from .example import example_report
from .test_sections import example_audit


LINE = re.compile(r"::(error|warning|notice) title=([^:,\n]*)::(.*)")


def read(text):
    """Severity, title and message of every line."""
    lines = [LINE.fullmatch(line) for line in text.splitlines()]
    return [not_none(line).groups() for line in lines]


def test_each_code_is_a_line_and_the_verdict_the_last(troubled):
    told = read(annotations(troubled))
    assert {(f.severity, f.code) for f in troubled.findings} == {
        (severity, title[:6]) for severity, title, _ in told[:-1]
    }
    assert ("error", "LYA003") in {(s, t[:6]) for s, t, _ in told}
    severity, title, message = told[-1]
    assert (severity, title) == ("notice", "lyapunov-check")
    assert "FINDINGS: something did not hold" in message


def test_what_the_baseline_knows_is_a_notice(troubled):
    known = [replace(finding, known=True) for finding in troubled.findings]
    told = read(annotations(replace(troubled, findings=known)))
    assert {severity for severity, _, _ in told} == {"notice"}


def test_audits_and_failures_too():
    error = {"code": "checkpoint_not_found", "message": "no such path", "hint": ""}
    failure = {"checkpoint": {"source": "lost"}, "error": error}
    told = read(annotations([example_audit(), failure]))
    assert told[0][0] == "error"
    assert told[0][1].startswith("LYA018")
    assert told[-1] == ("error", "checkpoint_not_found", "lost: no such path")


def test_text_from_outside_is_no_command():
    hostile = example_report(1, source="50%\n::error title=x::y\r::stop-commands::z")
    told = read(annotations(hostile))
    assert all("\r" not in message for _, _, message in told)
    assert "50%25" in told[-1][2]
    assert "%0A::error" in told[-1][2]
