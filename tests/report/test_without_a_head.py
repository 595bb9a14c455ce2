"""Assert that a report without logits is written in every form, and claims nothing."""

import dataclasses
import json

import jsonschema
import pytest

from lyapunov.findings._baseline import compare
from lyapunov.findings._baseline_file import read_baseline
from lyapunov.findings._rules import advice, find
from lyapunov.questions._figures import figures_of
from lyapunov.report import to_html, to_json, to_markdown, to_table
from lyapunov.report.json import schema
from lyapunov.results._check import OutputDivergence

from .example import example_report


@pytest.fixture(scope="module")
def headless():
    """The sublayers of the example, with its logits left out."""
    whole = example_report(2)
    precisions = [
        dataclasses.replace(
            run,
            output=OutputDivergence(),
            layers=[
                dataclasses.replace(row, sigma_share=None, certified_l2=None)
                for row in run.layers
            ],
        )
        for run in whole.precisions
    ]
    found = find(whole.exponents, precisions)
    told = advice(whole.exponents, precisions, found)
    return dataclasses.replace(
        whole,
        precisions=precisions,
        findings=found,
        reference=None,
        parameter_changes=[],
        summary=dataclasses.replace(whole.summary, **told),
    )


def test_the_advice_recommends_no_format(headless):
    summary = headless.summary
    assert "sublayers alone do not tell whether bf16 and fp16" in (
        summary.recommendation.lower()
    )
    assert "fine" not in summary.recommendation
    assert summary.benchmark_note is None
    # the state was kept in fp32, which needs no logits to be kept
    assert not any("--dtype" in flag["flag"] for flag in summary.flags)


def test_a_state_in_few_bits_is_neither_fine_nor_at_fault(headless):
    """Assert it of a format, and of one that is rounded stochastically."""
    for state in ("bf16", "fp16-stochastic"):
        runs = [
            dataclasses.replace(run, state_precision=state)
            for run in headless.precisions
        ]
        told = advice(headless.exponents, runs, [])
        assert "state in" not in told["recommendation"], told
        assert not any("cache-dtype" in flag["flag"] for flag in told["flags"])


def test_the_table_has_sublayers_and_no_logits(headless):
    text = to_table(headless, width=120)
    assert "KL" not in text
    assert "flips" not in text
    assert "rel L2   T1" in text


def test_markdown_has_sublayers_and_no_logits(headless):
    text = to_markdown(headless)
    assert "## Logits" not in text
    assert "KL mean" not in text
    assert "## Layers" in text
    assert "bound lost at" in text


def test_the_page_has_sublayers_and_no_logits(headless):
    pytest.importorskip("jinja2")
    text = to_html(headless)
    assert "Logits against the fp64 reference" not in text
    assert "logits, predicted" not in text
    assert "<h3>bf16: sublayers</h3>" in text
    assert "layers" in text.lower()
    assert "bound lost" in text


def test_the_document_meets_the_schema_and_is_its_own_baseline(headless, tmp_path):
    path = tmp_path / "headless.json"
    path.write_text(to_json(headless))
    document = json.loads(path.read_text())
    jsonschema.validate(document, schema())
    output = document["precisions"][0]["output"]
    assert output["argmax_total"] == 0
    assert output["measured_rel_l2"] is None
    outcome = compare(document, read_baseline(path))
    assert not outcome.findings
    assert outcome.compared > 0
    assert outcome.changed == 0


def test_what_is_logged_while_training_is_of_the_sublayers(headless):
    logged = figures_of(headless)
    assert "max_exponent" in logged
    assert not {"measured_divergence", "predicted_divergence"} & set(logged)
