"""Assert that a report without bounds claims none: in no form, figure or verdict."""

import dataclasses
import json
import re
from typing import Any

import jsonschema
import pytest

from lyapunov._errors import UsageError
from lyapunov.findings._baseline import with_baseline
from lyapunov.findings._rules import bounded_share, unchecked, verdict
from lyapunov.questions._effort import EFFORTS
from lyapunov.report import to_html, to_json, to_markdown, to_table
from lyapunov.report._headline import headline
from lyapunov.report.json import schema
from lyapunov.results._check import Finding

from .example import example_report, parameter_change


def left_out(thing: Any, names) -> Any:
    """A row without the figures of these names."""
    if dataclasses.is_dataclass(thing):
        held = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}
        made = {
            f.name: None if f.name in names else left_out(held[f.name], names)
            for f in dataclasses.fields(thing)
            if f.init
        }
        return type(thing)(**made)
    if isinstance(thing, list):
        return [left_out(one, names) for one in thing]
    return thing


BOUNDS = r"\bHELD\b|\bT[014]\b|[Ff]loor|viol|[Aa]bove|[Cc]ertified|finite bound"


@pytest.fixture(scope="module")
def quick():
    effort = EFFORTS["quick"]
    whole = example_report(2, changes=[parameter_change(n_layers=2)])
    part = left_out(whole, effort.left_out())
    word, code = verdict(
        part.findings, checked=2, bounded=part.summary.bounded_share, bounds=False
    )
    return dataclasses.replace(
        part,
        settings=part.settings | effort.settings(),
        summary=dataclasses.replace(part.summary, verdict=word, exit_code=code),
        not_computed=effort.left_out(),
    )


def test_nothing_is_counted_where_nothing_was_bounded(quick):
    run, change = quick.precisions[0], quick.parameter_changes[0]
    for row in (*run.layers, *change.layers):
        counts = {row.violations, row.elements_total, row.elements_unbounded}
        assert counts | {row.elements_bounded} == {None}
    assert bounded_share(quick.precisions, quick.parameter_changes) is None
    assert unchecked(quick.precisions, quick.parameter_changes) == set()
    with pytest.raises(UsageError, match="violations are not known") as caught:
        run.count("violations")
    assert "bounds=True" in caught.value.hint
    assert example_report(2).precisions[0].count("elements_bounded") == 2 * 393216


@pytest.mark.parametrize(
    ("severity", "rules", "expected"),
    [
        (None, {}, ("measured", 0)),
        ("warning", {}, ("measured", 0)),
        ("warning", {"fail_on": "warning"}, ("findings", 1)),
        ("warning", {"fail_on": "warning", "ignore": ("LYA004",)}, ("measured", 0)),
        ("error", {}, ("findings", 1)),
        ("error", {"select": ("LYA002",)}, ("measured", 0)),
        ("error", {"exit_zero": True}, ("findings", 0)),
    ],
)
def test_the_verdict_is_measured_and_its_rules_are_those_of_others(
    severity, rules, expected
):
    found = [] if severity is None else [Finding("LYA004", severity, None, "m")]
    assert verdict(found, checked=2, bounds=False, **rules) == expected
    assert verdict([], checked=0, bounds=False) == ("incomplete", 2)


def test_no_form_shows_a_bound_or_a_dash_for_one(quick):
    told = "no bound was looked for; every exponent is negative"
    assert headline(quick).sentence.startswith(f"MEASURED: {told}")
    assert headline(quick).style == ""
    for form in (to_table, to_markdown, to_html):
        text = form(quick)
        assert "MEASURED" in text
        # what was left out is said by the fields' names, behind all the rest
        text = re.sub(r"Not computed.*", "", text, flags=re.S)
        found = re.findall(BOUNDS, re.sub(r"<style>.*?</style>", "", text, flags=re.S))
        assert not found, form.__name__
    whole = to_markdown(example_report(2))
    assert len(re.findall(BOUNDS, whole)) > 10


def test_the_document_is_valid_and_says_why(quick):
    document = json.loads(to_json(quick))
    jsonschema.validate(document, schema())
    assert document["summary"]["verdict"] == "measured"
    assert document["precisions"][0]["layers"][0]["violations"] is None
    decisions = document["precisions"][0]["output"]["decisions"]
    assert decisions["certified_stable"] is decisions["certified_flipped"] is None
    assert document["not_computed"]["violations"] == "left out by the effort quick"


def test_it_is_a_baseline_and_has_one(quick):
    """Assert that figures that both have are compared, and that nothing held."""
    whole = example_report(2)
    for report, earlier in ((quick, whole), (whole, quick), (quick, quick)):
        found, sentence = with_baseline(report, json.loads(to_json(earlier)))
        assert sentence.startswith("equal: 0 of ")
        assert found.summary.verdict == report.summary.verdict
