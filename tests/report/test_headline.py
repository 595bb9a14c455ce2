"""Assert that the verdict's line says what was looked at, and HELD of nothing else."""

from dataclasses import replace

import pytest

from lyapunov.findings._catalogue import CATALOGUE, DOUBTS
from lyapunov.report import to_html, to_markdown, to_table
from lyapunov.report._headline import headline
from lyapunov.results._check import Finding, LayerExponents

from ..helpers import not_none
from .example import (
    example_report,
    layer_exponents,
    precision_report,
    troubled_report,
)


NEITHER = [LayerExponents(i, "attention", reason="not a recurrence") for i in range(2)]
OF_ROUNDING = {
    *("LYA001", "LYA002", "LYA003", "LYA004", "LYA005", "LYA006", "LYA007"),
    *("LYA009", "LYA010", "LYA012", "LYA015", "LYA021", "LYA022", "LYA023", "LYA024"),
    "LYA025",
}


def with_findings(report, *findings, **summary):
    return replace(
        report,
        findings=list(findings),
        summary=replace(report.summary, **summary),
    )


@pytest.mark.parametrize(
    ("layers", "executions", "line", "style"),
    [
        (None, None, "HELD: every bound held and every exponent is negative", "held"),
        (None, [], "HELD: every exponent is negative", "held"),
        (
            NEITHER,
            None,
            "HELD: every bound held; no recurrence, so no exponent",
            "held",
        ),
        (
            NEITHER,
            [],
            "NOTHING TO HOLD: no recurrence, and nothing was measured",
            "incomplete",
        ),
    ],
)
def test_held_names_what_was_there(layers, executions, line, style):
    report = example_report(2, layers=layers, executions=executions)
    found = headline(with_findings(report))
    assert (found.sentence, found.style) == (line, style)


def test_every_code_is_of_rounding_or_a_doubt():
    """A new code has to say which of the two it is."""
    assert not OF_ROUNDING & DOUBTS
    assert set(CATALOGUE) <= OF_ROUNDING | DOUBTS


@pytest.mark.parametrize("code", sorted(DOUBTS & set(CATALOGUE)))
@pytest.mark.parametrize("executions", [None, []])
def test_nothing_reads_held_above_a_doubt(code, executions, monkeypatch):
    """Assert another word and another colour in every form, verdict and code apart."""
    # figures say nothing of the verdict, and take most of the time
    monkeypatch.setattr("lyapunov.report.plots.pictures", lambda *_: [])
    doubt = Finding(code, "warning", 1, "m")
    report = with_findings(example_report(2, executions=executions), doubt)
    assert (report.summary.verdict, report.summary.exit_code) == ("held", 0)
    found = headline(report)
    word = "BOUNDS HELD, BUT" if executions is None else "EXPONENTS NEGATIVE, BUT"
    assert found.word == word
    assert found.meaning == f"{CATALOGUE[code].title} in layer 1 ({code})"
    page, table = to_html(report), to_table(report, color=True)
    assert 'class="verdict incomplete"' in page
    assert 'class="verdict held"' not in page
    assert "✓" not in page + table
    assert "! " + word in to_table(report)
    assert word in to_markdown(report)
    line = next(line for line in table.splitlines() if word in line)
    assert "\x1b[1;33m" in line
    assert "\x1b[1;32m" not in table


def test_doubts_are_told_code_by_code():
    doubts = [Finding("LYA008", "warning", i, "m") for i in (0, 1, 2)]
    doubts.append(Finding("LYA013", "warning", None, "m"))
    assert headline(with_findings(example_report(3), *doubts)).meaning == (
        "dynamics look lost in layers 0-2 (LYA008) and longer than the kernels' "
        "offsets reach (LYA013)"
    )


def test_flips_and_range_leave_it_held():
    report = example_report(2)
    assert {finding.code for finding in report.findings} == {"LYA004"}
    assert headline(report).word == "HELD"


@pytest.mark.parametrize(
    ("findings", "meaning"),
    [
        ([("LYA003", "error", False)], "something did not hold"),
        ([("LYA010", "error", False)], "worse than the baseline"),
        (
            [("LYA010", "error", False), ("LYA003", "error", False)],
            "something did not hold",
        ),
        (
            [("LYA010", "error", False), ("LYA003", "error", True)],
            "worse than the baseline",
        ),
        (
            [("LYA004", "warning", False)],
            "warnings count here (--fail-on warning)",
        ),
        (
            [("LYA004", "warning", False), ("LYA005", "warning", True)],
            "new warnings count here (--fail-on warning)",
        ),
    ],
)
def test_findings_say_why_they_count(findings, meaning):
    made = [Finding(c, s, 0, "m", known=known) for c, s, known in findings]
    report = with_findings(example_report(1), *made, verdict="findings", exit_code=1)
    assert (headline(report).style, headline(report).meaning) == ("findings", meaning)


@pytest.mark.parametrize("code", ["LYA003", "LYA008"])
def test_what_the_baseline_knows_is_not_called_held(code):
    known = Finding(code, CATALOGUE[code].severity, 0, "m", known=True)
    report = with_findings(example_report(1), known, baseline="nothing grew, equal")
    found = headline(report)
    assert found.sentence == "NOTHING NEW: the baseline has these findings as well"
    assert found.style == "incomplete"
    assert "1 of them known to the baseline" in found.counts
    for form in (to_table(report), to_markdown(report), to_html(report)):
        assert "nothing grew, equal" in form
    assert "nothing grew, equal" in to_table(report, quiet=True)


def test_a_choice_of_layers_is_told_and_is_not_incomplete():
    report = with_findings(example_report(6), checked=2, left_out=4)
    assert headline(report).counts.startswith(
        "no errors, no warnings; 2 of 6 sublayers checked, as asked"
    )
    assert headline(report).style == "held"
    part = headline(troubled_report())
    assert "23 sublayers checked, 1 skipped" in part.counts


def test_incomplete_says_how_much():
    some = with_findings(example_report(2), verdict="incomplete", skipped=1)
    none = with_findings(example_report(2), verdict="incomplete", checked=0)
    assert headline(some).sentence == "INCOMPLETE: not every sublayer could be checked"
    assert headline(none).sentence == "INCOMPLETE: no sublayer could be checked"


def test_layer_exponents_of_a_lost_network_are_doubted():
    """The report of the rules themselves, not one with findings put in."""
    lost = [layer_exponents(i, suspicions=["dt_bias is zero"]) for i in range(3)]
    line = headline(example_report(3, layers=lost))
    assert line.sentence == (
        "BOUNDS HELD, BUT dynamics look lost in layers 0-2 (LYA008)"
    )


def without_bounds(share: float, n_layers: int = 2):
    """A report of which so large a share of every sublayer's elements has no bound."""
    execution = precision_report("bf16", n_layers)
    rows = [
        replace(
            row,
            elements_unbounded=round(share * not_none(row.elements_total)),
            unbounded={"sublayer output": share},
        )
        for row in execution.layers
    ]
    return example_report(n_layers, executions=[replace(execution, layers=rows)])


def test_held_is_said_of_the_elements_that_have_a_bound_alone():
    """Assert the words and counts at one element in eight, and `*` beside the count of
    violations in every form."""
    report = with_findings(without_bounds(0.125))
    found = headline(report)
    line = "HELD: every finite bound held and every exponent is negative"
    assert (found.sentence, found.style) == (line, "held")
    assert "98,304 of 786,432 elements without a finite bound" in found.counts
    assert report.summary.bounded_share == 0.875
    assert " 0*" in to_table(report)
    assert " 0\\* |" in to_markdown(report)
    assert "<td>49,152</td>" in to_html(report)
    assert "every bound held" not in to_table(report)


@pytest.mark.parametrize(("share", "known"), [(0.51, "49 %"), (1.0, "0 %")])
def test_few_bounds_are_another_word_than_held(share, known):
    """Assert the word, the share and the exit code where half has no finite bound."""
    report = without_bounds(share)
    assert (report.summary.verdict, report.summary.exit_code) == ("unbounded", 2)
    found = headline(report)
    assert found.word == "UNBOUNDED"
    assert found.style == "incomplete"
    assert found.sentence.startswith(f"UNBOUNDED: {known} of the elements")
    for form in (to_table(report), to_markdown(report), to_html(report)):
        assert "UNBOUNDED" in form
        assert "HELD" not in form
