"""`analysis.cross_check`: what is left to run, what is kept, what is shown."""

import argparse
import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import lyapunov
from analysis import _cross_cases, cross_check
from analysis._cross_cases import Case, cases
from analysis._cross_page import draw, page
from analysis.cross_check import Results


CASE = Case("mamba1", "prefill", 1, 512, ("bf16", "fp16"))
PLACES = [1.0, 2.0]


def row(precision="bf16", measured_by="mamba_ssm", **changes):
    return {
        "case": CASE.name,
        "model": "mamba1",
        "mode": "prefill",
        "batch": 1,
        "length": 512,
        "execution": f"mamba_ssm prefill, {precision}",
        "precision": precision,
        "measured_by": measured_by,
        "violations": 0,
        "elements": 1000,
        "t0_ratio": [1.0, 1.1],
        "t1_ratio": [2.0, 3.5],
        "rel_l2": 4.5e-3,
        "sigma_t3": 4.4e-3,
        "calibration_z": 1.02,
        "kl_mean": 7e-5,
        "flips": 2,
        "tokens": 512,
        "by_position": dict.fromkeys(("kl", "local", "bound", "accumulated"), PLACES),
        "environment": {"gpu": "H200"},
    } | changes


def test_names_are_one_each_and_cover_what_is_asked():
    every = cases()
    assert len({case.name for case in every}) == len(every)
    assert {case.length for case in every} >= {128, 2049, 8192}
    assert {case.batch for case in every} == {1, 8}
    assert {case.mode for case in every} == {"prefill", "decode"}
    assert {case.model.partition(" ")[2] for case in every} == {"", "130m", "2.8b"}
    assert not [c for c in every if c.model == "mamba3" and c.mode == "decode"]


def test_a_cut_run_goes_on_and_counts_nothing_twice(tmp_path):
    path = tmp_path / "cross_check.json"
    results = Results(path)
    assert results.missing(CASE) == CASE
    results.add(CASE, [row(), row(measured_by="emulated")], "out of time")
    again = Results(path)
    assert again.missing(CASE) == CASE._replace(precisions=("fp16",))
    assert again.failed == {CASE.name: "out of time"}
    again.add(CASE, [row("fp16"), row("fp16", "emulated")], None)
    last = Results(path)
    assert last.missing(CASE) is None
    assert len(last.rows) == 4
    assert last.environments == [{"gpu": "H200"}]
    assert not last.failed
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ([row(), row(measured_by="emulated"), row("fp16")], ["bf16", "bf16"]),
        ([row(), row(measured_by="emulated")], ["bf16", "bf16"]),
        ([], []),
    ],
)
def test_half_a_precision_is_not_kept(tmp_path, lines, kept):
    """Assert it of a process that was ended between a run and its emulation."""
    one = cross_check.Running.__new__(cross_check.Running)
    one.case, one.wanted, one.log = CASE, 2, tmp_path / "log"
    one.process = cast(Any, SimpleNamespace(returncode=-9))
    text = "\n".join(json.dumps(line) for line in lines)
    one.log.write_text(f"{text}\nOutOfMemoryError: 3 GiB\n")
    found, problem = one.finished()
    assert [line["precision"] for line in found] == kept
    assert problem == "OutOfMemoryError: 3 GiB"


@pytest.mark.parametrize("study", ["analysis.cross_check", "analysis.decisions"])
@pytest.mark.parametrize("large", [False, True])
def test_a_case_reaches_its_process_whole(tmp_path, study, large):
    """Assert that the command's options give the case back, for both studies."""
    case = CASE._replace(model="mamba2 130m") if large else CASE
    given = SimpleNamespace(scratch=tmp_path, rehearse=True)
    command, environment = _cross_cases.own_process(study, case, cast(Any, given))
    assert command[1:3] == ["-m", study]
    parser = argparse.ArgumentParser()
    parser.add_argument("--scratch")
    _cross_cases.add_case(parser)
    options = parser.parse_args(command[3:])
    assert _cross_cases.case_of(options) == case
    assert (options.scratch, options.rehearse) == (str(tmp_path), True)
    assert environment["JAX_PLATFORMS"] == ("cuda,cpu" if large else "cpu")


def test_violations_and_emulation_are_shown_beside(tmp_path):
    rows = [row(violations=7), row(measured_by="emulated", rel_l2=4.4e-3)]
    result = {"environments": [{"gpu": "H200"}], "failed": {"x": "why"}, "rows": rows}
    text = page(result)
    assert "| mamba1 | prefill | bf16 | 1 | 1,000 | 7 |" in text
    assert "2 of 512" in text
    assert "0.0045 | 0.0044 | 0.0044" in text
    assert "not finished: x: why" in text
    draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_ties_of_an_earlier_rule_are_changed_tokens_and_promises_are_marked():
    """Assert the recount of rows that told a change into a shared leader apart, that of
    rows that do not, and what is said of tokens that were predicted stable."""
    promise: Any = {"predicted_stable": 500, "predicted_flipped": 1}
    earlier = row(ties=5, **promise)
    now = row("fp16", ties=5, reference_ties=5, unbounded=3, **promise)
    text = page({"environments": [], "failed": {}, "rows": [earlier]})
    assert "| 7 of 512 |" in text
    assert "500 tokens, 1 changed, counted under the earlier rule" in text
    assert "at most 5 more" in text
    assert "Elements: all, and the L2 bound of every tensor is finite." in text
    text = page({"environments": [], "failed": {}, "rows": [now]})
    assert "| 2 of 512 |" in text
    assert "500 tokens, 1 changed." in text
    assert "earlier rule" not in text
    assert "3 more have none" in text


def test_the_committed_page_is_of_the_committed_rows():
    path = cross_check.RESULTS
    result = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == page(result)
    told = [one for one in result["rows"] if one["t0_ratio"] and one["t1_ratio"]]
    assert len(told) == len(result["rows"])
    assert all(None not in one["t0_ratio"] + one["t1_ratio"] for one in told)


@pytest.mark.parametrize("family", ["mamba1", "mamba2"])
def test_random_checkpoints_are_mamba_ssms(tmp_path, monkeypatch, family):
    """Assert that they load whole, with decays and steps as training begins."""
    monkeypatch.setattr(_cross_cases, "VOCABULARY", 64)
    _cross_cases.write_random(tmp_path / "model", family, 64, 2)
    model = lyapunov.load(str(tmp_path / "model"))
    assert [layer.kind for layer in model.sublayers] == [family] * 2
    assert model.config.d_model == 64
    raw = model.raw_parameters(1)
    assert np.exp(np.asarray(raw["A_log"])).min() >= 1.0 - 1e-6
    assert np.exp(np.asarray(raw["A_log"])).max() <= 16.0 + 1e-5
    bias = np.asarray(raw["dt_bias"])
    dt = np.log1p(np.exp(bias))
    assert dt.min() >= 1e-3 * (1 - 1e-4)
    assert dt.max() <= 0.1 * (1 + 1e-4)
    logits = np.asarray(model.logits(np.arange(8)))
    assert np.isfinite(logits).all()
    assert logits.std() > 0


def test_what_ended_a_row_is_told_with_its_reason():
    """Assert that a hint does not stand alone, and that rows are not taken for it."""
    printed = f"{_cross_cases.ROW}: 1}}"
    said = "Traceback\nUsageError: no such way\nhint: another\n\n"
    rows, why = _cross_cases.told(printed, f"{said}{printed}\n", 1)
    assert rows == [json.loads(printed)]
    assert why == "UsageError: no such way hint: another"
    assert _cross_cases.told("", "a\nTypeError: b\n", 1) == ([], "TypeError: b")
    assert _cross_cases.told("", "", 7) == ([], "exit 7")
    assert _cross_cases.told(printed, said, 0) == (rows, "")
