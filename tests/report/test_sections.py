"""Assert that every form of a result says all that its sections hold for it."""

import dataclasses
import html
import re
import sys
from pathlib import Path

import pytest

from lyapunov.questions._plan import EffortCost, Plan, Stage
from lyapunov.report import to_html, to_json, to_markdown, to_table
from lyapunov.report._sections import Form, document_of, meant
from lyapunov.report._write import files
from lyapunov.results._audit import (
    BUG,
    NOT_RUN,
    AuditReport,
    AuditSummary,
    FirstViolation,
    LayerAudit,
    LogitsAudit,
    VariantAudit,
)
from lyapunov.results._check import Finding

from .example import example_report, parameter_change


def example_audit() -> AuditReport:
    report = example_report(2)
    found = [
        VariantAudit(
            "steps",
            "bf16",
            BUG,
            violations=3,
            ratio=2.0,
            z=9.0,
            first_violation=FirstViolation(1, "gated", 0, 7, 3, 0.31, 0.012),
            layers=[LayerAudit(1, "mamba1", 3, 1.5, 2.0, 9.0, 7, elements=1280)],
            logits=[LogitsAudit("whole", 0.25, 1.5, 0.125, 4, 1)],
            elements=1280,
            unbounded=12,
        ),
        VariantAudit("chunks:3", "bf16", NOT_RUN, reason="it takes no state"),
    ]
    message = "steps: layer 1, token 7, gated: 0.31 above 0.012"
    return AuditReport(
        {"name": "lyapunov-check", "version": "0.1.0"},
        {"precisions": ["bf16"]},
        {"python": "3.11.7", "command": None},
        ["Rounding is to nearest."],
        report.checkpoint,
        report.tokens,
        "transformers",
        found,
        [Finding("LYA018", "error", 1, message, precision="bf16")],
        AuditSummary(BUG, "Do not decode with steps.", 1, 1, 2.0, 1),
    )


def example_plan() -> Plan:
    stages = [
        Stage("reference", 1.0, 7, 1.3, 0.4, 2**30),
        Stage("T3", 6.0, 6, 20.4, 5.1, 2**31),
    ]
    return Plan(
        "some/model",
        "mamba2",
        24,
        24,
        129_000_000,
        2,
        4096,
        ["mamba_ssm prefill, bf16", "mamba_ssm prefill, fp16"],
        "cpu",
        1.25,
        stages,
        13,
        4000.0,
        700.0,
        3 * 2**30,
        2**30,
        [Finding("LYA013", "warning", None, "2 x 4,096 tokens: end at 9")],
        [EffortCost("quick", 11, 90.0, 30.0, 2**29)],
    )


@pytest.fixture(scope="module", params=["check", "changes", "audit", "plan"])
def result(request):
    made = {
        "check": lambda: dataclasses.replace(
            example_report(2, ("bf16", "fp16", "fp32")),
            not_computed={"certified_l2": "left out by the effort quick"},
        ),
        "changes": lambda: example_report(2, changes=[parameter_change(n_layers=2)]),
        "audit": example_audit,
        "plan": example_plan,
    }
    return made[request.param]()


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Figures take seconds, and are for `test_html`."""
    monkeypatch.setattr("lyapunov.report.plots.pictures", lambda report, prefix: [])


def bare(text: str) -> str:
    """Words alone: without markup, its escapes, and breaks of lines."""
    return " ".join(text.replace("\\", "").replace("**", "").replace("`", "").split())


FORMS = {
    "terminal": (
        Form.TERMINAL | Form.VERBOSE,
        lambda result: to_table(result, width=400, verbose=True),
    ),
    "markdown": (Form.MARKDOWN, to_markdown),
    "page": (
        Form.PAGE,
        lambda result: html.unescape(re.sub(r"<[^>]*>", " ", to_html(result))),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_says_all_that_is_meant_for_it(result, name):
    """Assert sentences, lines, notes, findings and every cell of every table."""
    form, show = FORMS[name]
    text = bare(show(result))
    document = document_of(result)
    told = [document.title, document.verdict, document.counts, document.aside]
    told += document.advice
    told += [fact.text for fact in document.facts]
    told += [finding.message for finding in document.findings or ()]
    cells = []
    for section in meant(document.sections, form):
        if section.pictures is not None:
            continue
        told.append(section.title)
        for line in section.lines:
            told += [line.label, line.text, line.code]
        told += [note.text for note in meant(section.notes, form)]
        if section.table is not None:
            table = section.table.chosen(form)
            for group in table.groups:
                for column in [*table.keys, *group.columns]:
                    digits = 3 if name == "page" else 2
                    cells += [column.text(row, digits) for row in table.rows]
                    assert (
                        column.head in text
                        or column.long in text
                        or form in (Form.TERMINAL | Form.VERBOSE)
                    ), column.head
    for fact in told:
        assert bare(fact) in text, fact
    words = set(text.split())
    for cell in cells:
        assert set(cell.split()) <= words, cell


def test_what_only_some_forms_show_is_in_none_of_the_others(result):
    """Assert it of the columns: a page has what no line has room for."""
    document = document_of(result)
    for section in document.sections:
        for group in section.table.groups if section.table else ():
            for column in group.columns:
                assert column.forms & Form.EVERY, column.head
    if isinstance(result, Plan):
        assert "Assumptions" not in to_markdown(result)
        return
    assert "Assumptions" not in to_table(result, verbose=True)


def test_every_number_of_an_audit_is_on_its_page():
    page = to_html(example_audit())
    for value in ("1.50", "2.00", "9.00", "0.250", "0.125", "1,280", "steps"):
        assert f">{value}<" in page, value
    for form in (page, to_markdown(example_audit()), to_table(example_audit())):
        flat = bare(form)
        assert "!bug" in flat
        assert "layer 1, token 7, gated" in flat
        assert "not run: chunks:3: it takes no state" in flat
        assert "12 of 1,280 elements have no finite bound" in flat


@pytest.mark.parametrize("suffix", [".html", ".md", ".tex", ".csv"])
def test_a_file_takes_audits_and_failures_alike(suffix):
    failure = {"checkpoint": {"source": "lost"}, "error": {"message": "no such file"}}
    path = Path(f"r{suffix}")
    text = files(path, [example_audit(), failure])[path].decode()
    assert ("Do not decode with steps." in text) is (suffix != ".csv")
    assert "steps" in text
    assert "no such file" in text


@pytest.mark.parametrize("width", [80, 120])
def test_terminals_are_not_overrun(result, width):
    text = to_table(result, width=width, verbose=True)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_ascii_for_all_of_them(result):
    assert to_table(result, encoding="ascii", verbose=True).isascii()


def test_print_shows_the_table_and_a_notebook_the_page(result, monkeypatch):
    """Assert it without the libraries of the page too."""
    monkeypatch.setenv("COLUMNS", "100")
    assert f"{result}" == to_table(result, width=100).rstrip("\n")
    frame = result._repr_html_()
    page = re.fullmatch(r'<iframe srcdoc="([^"]*)" style="[^"]*"></iframe>', frame)
    assert page is not None
    assert html.unescape(page.group(1)) == to_html(result)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert result._repr_html_().startswith("<pre>checkpoint")
    assert repr(result).startswith(f"{type(result).__name__}(")
    assert to_json(result).startswith("{\n")


def said(report) -> list[str]:
    """Every line and cell of a page but its figures."""
    document = document_of(report)
    told = [line.text for line in document.facts]
    for section in meant(document.sections, Form.PAGE):
        told += [line.text for line in section.lines]
        if (table := section.table) is None:
            continue
        told += [
            column.text(row, 3)
            for group in table.groups
            for column in meant([*table.keys, *group.columns], Form.PAGE)
            for row in table.rows
        ]
    return told


def with_row(report, kind, **changes):
    """The report with the first row of a kind changed."""
    if kind == "exponents":
        layers = report.exponents.layers
        row = dataclasses.replace(layers[0], **changes)
        made = dataclasses.replace(report.exponents, layers=[row, *layers[1:]])
        return dataclasses.replace(report, exponents=made)
    if kind == "change":
        (changed,) = report.parameter_changes
        row = dataclasses.replace(changed.layers[0], **changes)
        made = dataclasses.replace(changed, layers=[row, *changed.layers[1:]])
        return dataclasses.replace(report, parameter_changes=[made])
    run = report.precisions[0]
    if kind == "output":
        made = dataclasses.replace(
            run, output=dataclasses.replace(run.output, **changes)
        )
    else:
        row = dataclasses.replace(run.layers[0], **changes)
        made = dataclasses.replace(run, layers=[row, *run.layers[1:]])
    return dataclasses.replace(report, precisions=[made, *report.precisions[1:]])


UNSAID = {
    "exponents": {"multiplicity", "n_minus_inf"},
    "divergence": {"accumulated_max", "non_finite"},
    "output": set(),
    "change": {"elements_total"},
}
"""Numbers that no form tells of a row: in sums, in findings, or in JSON alone."""


@pytest.mark.parametrize("kind", UNSAID)
def test_no_number_of_a_row_is_forgotten(kind):
    """Assert that the page changes with each of them, and that nothing that it does
    tell is taken for untold."""
    report = example_report(2, changes=[parameter_change(n_layers=2)])
    rows = {
        "exponents": report.exponents.layers[0],
        "divergence": report.precisions[0].layers[0],
        "output": report.precisions[0].output,
        "change": report.parameter_changes[0].layers[0],
    }
    before = said(report)
    numbers = {
        field.name: value
        for field in dataclasses.fields(rows[kind])
        if field.init and field.name != "layer"
        for value in [getattr(rows[kind], field.name)]
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    untold = {
        name
        for name, value in numbers.items()
        if said(with_row(report, kind, **{name: 2 * value + 3})) == before
    }
    assert untold == UNSAID[kind]
    assert len(numbers) > 5
