"""Assert that results show themselves: in a line, as files, figures and rows."""

import csv
import io
import json
import math
import re
import sys
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from lyapunov._errors import MissingExtraError, OutputError, UsageError
from lyapunov.exponents._result import SpectrumResult
from lyapunov.findings._rules import verdict
from lyapunov.report import _drawing as drawing
from lyapunov.report._records import records, to_csv
from lyapunov.report._write import SUFFIXES
from lyapunov.report.plots import pictures
from lyapunov.results._check import LayerExponents

from ..helpers import not_none
from .example import example_report, layer_divergence, precision_report
from .test_sections import example_audit, example_plan


def spectrum(windows: int = 40) -> SpectrumResult:
    growth = np.random.default_rng(0).normal([-0.2, -3.0], 0.1, (windows, 2))
    return SpectrumResult(
        exponents=jnp.asarray(growth.mean(0)),
        growth=jnp.asarray(growth),
        used=jnp.asarray(windows),
        width=1,
        multiplicity=jnp.asarray([1, 4]),
        method="QR()",
    )


KINDS = {
    "check": lambda: example_report(2),
    "audit": lambda: example_audit(),
    "plan": lambda: example_plan(),
    "spectrum": spectrum,
}
ROWS = {"check": 4, "audit": None, "plan": None, "spectrum": 2}
OF_EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def results():
    return {kind: make() for kind, make in KINDS.items()}


@OF_EVERY_KIND
def test_a_repr_is_short_and_says_the_verdict(results, kind, troubled):
    for result in (results[kind], troubled):
        lines = repr(result).splitlines()
        assert len(lines) <= 8
        assert max(map(len, lines)) <= 120
    held = repr(results["check"])
    assert held.startswith("Report(state-spaces/mamba-130m-hf)\n  HELD: ")
    for said in ("exponents: largest", "and of bf16, fp16", "Weights"):
        assert said in held


@OF_EVERY_KIND
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_form_of_every_kind_is_a_file_or_refused(results, kind, suffix, tmp_path):
    figures = suffix in (".pdf", ".svg", ".png")
    target = tmp_path / f"r{suffix}"
    if figures and kind in ("audit", "plan"):
        with pytest.raises(OutputError, match="no figures"):
            results[kind].save(target)
        assert list(tmp_path.iterdir()) == []
        return
    written = results[kind].save(str(target))
    assert sorted(written) == sorted(tmp_path.iterdir())
    starts = {
        ".json": b"{",
        ".html": b"<!DOCTYPE html>",
        ".md": b"# ",
        ".tex": b"% needs",
        ".csv": b"index," if kind == "spectrum" else b"checkpoint,",
        ".pdf": b"%PDF",
        ".svg": b"<?xml",
        ".png": b"\x89PNG",
    }
    for path in written:
        assert path.read_bytes().startswith(starts[suffix])
    if suffix in (".svg", ".png"):
        names = results[kind].figures()
        assert [path.stem for path in written] == [f"r-{name}" for name in names]
    if suffix == ".json" and kind != "spectrum":
        assert json.loads(target.read_text()) == results[kind].to_dict()


def test_other_suffixes_are_refused_with_the_list(results, tmp_path):
    with pytest.raises(OutputError) as caught:
        results["check"].save(tmp_path / "r.docx")
    assert all(suffix in caught.value.hint for suffix in SUFFIXES)


def test_figures_are_those_of_the_page_in_its_colours(results):
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    made = results["check"].figures()
    assert list(made) == [one.name for one in pictures(results["check"])]
    assert all(isinstance(one, Figure) for one in made.values())
    lines = made["layers-bf16"].axes[0].lines
    colors = {to_hex(one.get_color()) for one in lines}
    assert colors == {drawing.ORANGE, drawing.GREEN, drawing.BLUE}
    assert list(results["spectrum"].figures()) == ["history"]


def test_colours_are_the_pages_own_by_day():
    from importlib.resources import files

    css = files("lyapunov.report").joinpath("page.css").read_text()
    day = dict(re.findall(r"--(\w+): (#\w{6})", css.partition("@media")[0]))
    assert {day[name]: name for name in drawing.VARIABLES.values()} == dict(
        drawing.VARIABLES
    )


def test_figures_and_tables_have_the_same_numbers(results):
    """Assert relative errors where tables have them, and a bar for colours."""
    report = results["check"]
    figures = report.figures()
    local = {line.get_label(): line for line in figures["layers-bf16"].axes[0].lines}
    rows = report.precisions[0].layers
    assert local["measured, local"].get_ydata() == pytest.approx(
        [row.local_l2 / row.reference_l2 for row in rows], rel=1e-15
    )
    bar = figures["decays"].axes[1]
    assert bar.get_ylabel() == "share of decays"
    largest = max(max(r.decay_histogram["share"]) for r in report.exponents.layers)
    assert bar.get_ylim()[1] == pytest.approx(largest)
    for figure in figures.values():
        title = figure.get_suptitle()
        assert "redicted" not in title
        for axes in figure.axes[:1]:
            assert axes.get_xlabel()
            assert axes.get_ylabel()


def test_rows_are_a_sublayer_and_a_precision_each(results):
    report = results["check"]
    rows = records(report)
    assert [(row["precision"], row["layer"]) for row in rows] == [
        (p.precision, r.layer) for p in report.precisions for r in p.layers
    ]
    assert rows[0]["local_l2"] == report.precisions[0].layers[0].local_l2
    assert rows[3]["exponent_max"] == report.exponents.layers[1].max
    alone = replace(report, precisions=[])
    assert [row["exponent_max"] for row in records(alone)] == [
        row.max for row in report.exponents.layers
    ]


def test_rows_are_a_data_frame_and_pandas_is_asked_for(results, monkeypatch):
    pandas = pytest.importorskip("pandas")
    for result in results.values():
        frame = result.to_pandas()
        assert isinstance(frame, pandas.DataFrame)
        assert len(frame) == len(records(result))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError) as caught:
        results["check"].to_pandas()
    assert "pip install pandas" in caught.value.hint


def test_figures_ask_for_matplotlib(results, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        results["check"].figures()
    assert caught.value.hint == "pip install 'lyapunov-check[report]'"


def test_csv_keeps_infinities_and_runs_no_formula():
    row = layer_divergence(0, "bf16", local_l2=math.inf, bound_t1_l2=math.nan)
    report = example_report(
        1, source="=cmd()", executions=[replace(precision_report("bf16"), layers=[row])]
    )
    (read,) = csv.DictReader(io.StringIO(to_csv(report)))
    assert read["checkpoint"] == "'=cmd()"
    assert (read["local_l2"], read["bound_t1_l2"]) == ("inf", "nan")
    assert float(read["accumulated_l2"]) == row.accumulated_l2
    failure = {"checkpoint": {"source": "lost"}, "error": {"message": "gone"}}
    assert to_csv([report, failure]).splitlines()[-1].startswith("lost,")


@pytest.mark.parametrize("fail_on", ["error", "warning"])
def test_assert_held_is_the_commands_exit_code(results, troubled, fail_on):
    """Assert one rule for both: what `verdict` says of the same findings."""
    incomplete = example_report(2, skipped=1)
    for report in (results["check"], troubled, incomplete):
        _, code = verdict(
            report.findings,
            checked=report.summary.checked,
            skipped=report.summary.skipped,
            bounded=report.summary.bounded_share,
            fail_on=fail_on,
        )
        if code == 0:
            assert report.assert_held(fail_on) is None
            continue
        with pytest.raises(AssertionError, match="fail_on"):
            report.assert_held(fail_on)


def test_a_failed_assertion_is_short_and_names_what_failed(troubled):
    with pytest.raises(AssertionError) as caught:
        troubled.assert_held()
    lines = str(caught.value).splitlines()
    assert lines[0] == "state-spaces/mamba-130m-hf: findings (fail_on='error')"
    assert len(lines) <= 7
    assert all(line.startswith(("error LYA", "and ")) for line in lines[1:])
    excused = replace(troubled, settings=troubled.settings | {"exit_zero": True})
    with pytest.raises(AssertionError):
        excused.assert_held()
    ignored = replace(troubled, settings={"ignore": ["LYA"], "allow_partial": True})
    assert ignored.assert_held() is None
    known = [replace(finding, known=True) for finding in troubled.findings]
    same = replace(troubled, findings=known, settings={"allow_partial": True})
    assert same.assert_held() is None
    with pytest.raises(UsageError, match="'error' or 'warning'"):
        troubled.assert_held("note")


def test_an_audit_is_held_to_its_own_rule():
    audit = example_audit()
    assert audit.summary.exit_code == 1
    with pytest.raises(AssertionError, match=audit.summary.verdict):
        audit.assert_held()
    fine = replace(audit, findings=[])
    assert fine.assert_held() is None
    blind = replace(fine, summary=replace(fine.summary, verdict="unbounded"))
    with pytest.raises(AssertionError, match="unbounded"):
        blind.assert_held()


def test_exponents_that_are_not_finite_are_rows_too():
    row = replace(spectrum(), exponents=jnp.asarray([-0.2, -jnp.inf]))
    assert records(row)[1]["exponent"] == -math.inf
    assert "-inf" in to_csv(row)
    assert "-inf" in not_none(row._repr_html_())


def test_of_several_trajectories_one_is_to_be_taken():
    several = replace(spectrum(), exponents=jnp.zeros((3, 2)))
    with pytest.raises(UsageError, match="several trajectories"):
        several.figures()
    assert not_none(several._repr_html_()).startswith("<pre>[[")


def test_layers_without_exponents_have_rows():
    report = example_report(
        layers=[LayerExponents(0, "mlp", reason="no recurrence")], executions=[]
    )
    (row,) = records(report)
    assert (row["kind"], row["exponent_max"]) == ("mlp", None)


def test_a_model_says_what_it_is():
    model = lyapunov.load()
    assert repr(model) == (
        "Model(the bundled model: mamba1, 9 layers, 9 sublayers, "
        f"{model.layout.n_params:,} parameters, fp32)"
    )
    assert model._repr_html_() == f"<pre>{model!r}</pre>"
    model.source = "<b>"
    assert "&lt;b&gt;" in model._repr_html_()
