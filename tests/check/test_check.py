"""`lyapunov.check` from a folder on disk to a report."""

import functools
import hashlib
import importlib
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov.report import to_table
from oracles.checkpoints.mamba1 import save_transformers
from oracles.networks.mamba1 import NumpyMamba, random_weights

from ..helpers import not_none
from .conftest import SEQ, SIZES, exponents_only


@pytest.fixture(scope="module")
def report(checkpoint):
    folder, _, tokens = checkpoint
    return every_tier(str(folder), tokens, precisions=["bf16", "fp16"])


def every_tier(*arguments, **named):
    """A check with the floor, T2 and T4 as well."""
    switches = {"floor": True, "readouts": None, "ball": True}
    return lyapunov.check(*arguments, **switches, **named)


def test_states_and_decays_are_those_of_numpy(checkpoint, report):
    """Assert the largest state, dt and decays of each layer to 1e-9 relative."""
    _, weights, tokens = checkpoint
    numpy = NumpyMamba(weights, SIZES)
    states, steps = [], []
    for sequence in tokens:
        numpy.logits(sequence)
        states.append(numpy.states)
        steps.append(numpy.steps)
    for i, row in enumerate(report.exponents.layers):
        dt = np.stack([s[i] for s in steps])
        A = -np.exp(weights[f"backbone.layers.{i}.mixer.A_log"].astype(np.float64))
        decays = np.exp(dt[..., None] * A)
        largest = max(np.abs(s[i]).max() for s in states)
        assert row.max_abs_state == pytest.approx(largest, rel=1e-9)
        assert row.dt_min == pytest.approx(dt.min(), rel=1e-9)
        assert row.dt_max == pytest.approx(dt.max(), rel=1e-9)
        assert row.decay_min == pytest.approx(decays.min(), rel=1e-9)
        assert row.decay_max == pytest.approx(decays.max(), rel=1e-9)


def test_every_layer_of_every_precision_holds(report):
    """Assert a row a sublayer and precision, no violation, ratios of at least 1."""
    assert [p.precision for p in report.precisions] == ["bf16", "fp16"]
    for run in report.precisions:
        assert [row.layer for row in run.layers] == [0, 1, 2]
        for row in run.layers:
            assert row.violations == 0
            assert row.bound_t1_ratio >= 1
            assert row.floor_t1_ratio > 0
            # no bound of free roundings beats the floor; ours is centred, not free
            assert row.elements_total > 0
            assert row.accumulated_l2 >= 0
        assert 0 < run.output.measured_rel_l2 < 0.2
        assert run.output.argmax_total == 2 * SEQ
    bf16, fp16 = (run.output for run in report.precisions)
    assert fp16.measured_rel_l2 < bf16.measured_rel_l2
    assert fp16.kl_mean < bf16.kl_mean


def test_accumulated_divergence_is_against_the_reference_run(checkpoint, report):
    """Assert it from the two traces, whole arrays; the first layer's is its local one.

    Layer 0 reads the embedding rounded, so its own input differs already.
    """
    folder, _, tokens = checkpoint
    from lyapunov.implementations import Emulated, mamba_ssm_prefill

    model = lyapunov.load(folder)
    reference: list[Any] = list(lyapunov.trace(model, tokens))
    emulated: list[Any] = list(
        lyapunov.trace(model, tokens, runner=Emulated(mamba_ssm_prefill("bf16")))
    )
    for row, exact, other in zip(
        report.precisions[0].layers, reference, emulated, strict=False
    ):
        apart = np.asarray(other.output) - np.asarray(exact.output)
        assert row.accumulated_l2 == pytest.approx(np.linalg.norm(apart), rel=1e-12)
        assert row.accumulated_max == pytest.approx(np.abs(apart).max(), rel=1e-12)
        size = np.linalg.norm(np.asarray(exact.output))
        assert row.reference_l2 == pytest.approx(size, rel=1e-12)


def test_logits_are_compared_with_the_reference(checkpoint, report):
    """Assert the relative L2 and KL of the logits, whole arrays in NumPy."""
    from scipy.special import log_softmax

    from lyapunov.implementations import Emulated, mamba_ssm_prefill

    folder, _, tokens = checkpoint
    model = lyapunov.load(folder)
    execution = mamba_ssm_prefill("bf16")
    records = lyapunov.trace(model, tokens, runner=Emulated(execution))
    head: Any = list(records)[-1]
    other = np.asarray(head.logits(0, SIZES.vocab))
    exact = np.stack([np.asarray(model.logits(t)) for t in tokens])

    def centred(x):
        return x - x.mean(axis=-1, keepdims=True)

    output = report.precisions[0].output
    moved = np.linalg.norm(centred(other) - centred(exact))
    expected = moved / np.linalg.norm(centred(exact))
    assert output.measured_rel_l2 == pytest.approx(expected, rel=1e-9)
    left, right = log_softmax(exact, -1), log_softmax(other, -1)
    kl = np.sum(np.exp(left) * (left - right), axis=-1)
    assert output.kl_mean == pytest.approx(kl.mean(), rel=1e-6)
    flips = (exact.argmax(-1) != other.argmax(-1)).sum()
    assert output.argmax_flips + output.argmax_ties == flips


def test_a_subset_of_layers_gives_the_same_rows(checkpoint, report):
    """Assert that leaving layers out changes nothing but what is left out."""
    folder, _, tokens = checkpoint
    part = lyapunov.check(
        str(folder), tokens, precisions=["bf16"], layers=[1], probes=0
    )
    (row,) = part.precisions[0].layers
    whole = report.precisions[0].layers[1]
    assert row.layer == 1
    assert row.local_l2 == pytest.approx(whole.local_l2, rel=1e-12)
    assert row.bound_t1_l2 == pytest.approx(whole.bound_t1_l2, rel=1e-9)
    assert len(part.exponents.layers) == 3
    summary = part.summary
    assert (summary.checked, summary.skipped, summary.left_out) == (1, 0, 2)
    assert (summary.verdict, summary.exit_code) == ("held", 0)
    assert "1 of 3 sublayers checked, as asked" in to_table(part)


def null_paths(part, whole, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Figures that one document has not and the other has, by their names."""
    if part is None and whole is not None:
        yield path
    elif isinstance(whole, dict):
        for name, value in whole.items():
            yield from null_paths(not_none(part)[name], value, (*path, name))
    elif isinstance(whole, list):
        for one, other in zip(not_none(part), whole, strict=True):
            yield from null_paths(one, other, path)


def figures(report):
    document = report.to_dict()
    names = ("exponents", "precisions", "parameter_changes", "reference")
    return {name: document[name] for name in names}


LEFT_OUT = {
    "quick": {"bound_t1_ratio", "violations", "certified_stable", "growth"},
    "standard": {"floor_t1_ratio", "estimate_t2", "certified_until_layer"},
}
DOORS = {
    "bounds": ("_divergence.sublayer_bound", "_divergence.operation_bounds"),
    "others": ("_divergence.floor_l2", "_layers.Ball", "_layers.EndToEnd"),
}
# null in every report of a network that is as this one, or in another part of it
BESIDE = {"floor_ratio", "bound_l2", "bound_ratio", "bounded_share", "growth"}
BESIDE |= {"first_violation", "certified_l2", "stopped_by"}


@pytest.mark.parametrize("effort", LEFT_OUT)
def test_an_effort_says_what_it_left_out(checkpoint, report, effort, monkeypatch):
    """Assert that an effort gives the same figures but those it names, that the report
    has a reason for every figure that is null for it, and that nothing was run for
    these: no bounded pass in quick, no search, reverse pass or ball in either."""
    folder, _, tokens = checkpoint
    ran = []
    for names in DOORS.values():
        for name in names:
            module, door = name.split(".")
            module = importlib.import_module(f"lyapunov.questions.{module}")
            monkeypatch.setattr(module, door, seen(getattr(module, door), ran))
    told = Told()
    part = lyapunov.check(
        str(folder),
        tokens,
        precisions=["bf16", "fp16"],
        effort=effort,
        progress=told,
    )
    assert told.total == told.done > 0
    assert 10 < told.programs < 40
    told.holds(part)
    bounds = {"sublayer_bound", "operation_bounds"}
    assert set(ran) == {"EndToEnd"} | (bounds if effort == "standard" else set())
    verdict = "held" if effort == "standard" else "measured"
    assert (part.summary.verdict, part.summary.exit_code) == (verdict, 0)
    assert (part.summary.bounded_share is None) == (effort == "quick")
    assert (part.settings["effort"], part.settings["readouts"]) == (effort, 0)
    left, right = figures(part), figures(report)
    lost = {path[-1] for path in null_paths(left, right)}
    told = set(part.not_computed)
    assert LEFT_OUT[effort] <= told
    assert lost <= told
    assert set(part.not_computed.values()) == {f"left out by the effort {effort}"}
    assert told - lost <= BESIDE
    for one, other in zip(left["precisions"], right["precisions"], strict=True):
        assert one["output"]["sigma_t3"] == other["output"]["sigma_t3"]
        assert one["output"]["kl_max"] == other["output"]["kl_max"]
        for row, whole in zip(one["layers"], other["layers"], strict=True):
            for name in set(row) - told:
                assert row[name] == approximately(whole[name]), name


class Told:
    """Hear what a check tells while it works."""

    total = done = 0

    def __init__(self):
        self.reports = []

    def start(self, total, what):
        self.total = total

    def advance(self, steps=1, what=""):
        self.done += steps

    def compiles(self, n):
        self.programs = n

    def known(self, report):
        self.reports.append(report)

    def holds(self, whole):
        """Assert that the header came first, exponents before any execution's figures,
        more from one report to the next, and at last all that the whole has."""
        header, first, *_, last = self.reports
        assert (header.checkpoint.source, header.tokens) == (
            whole.checkpoint.source,
            whole.tokens,
        )
        assert (header.exponents.layers, header.precisions) == ([], [])
        assert first.exponents.layers == whole.exponents.layers[:1]
        assert [p.layers for p in first.precisions] == [[], []]
        sizes = [
            (len(r.exponents.layers), sum(len(p.layers) for p in r.precisions))
            for r in self.reports
        ]
        assert sizes == sorted(sizes)
        assert {r.summary.verdict for r in self.reports} == {""}
        assert last.exponents == whole.exponents
        for one, other in zip(last.precisions, whole.precisions, strict=True):
            assert one.layers == other.layers
            assert one.output.kl_max == other.output.kl_max
        for report in self.reports:
            assert "HELD" not in to_table(report)


def seen(door, ran):
    """A door that says when somebody goes through."""

    @functools.wraps(door)
    def through(*arguments, **named):
        ran.append(door.__name__)
        assert not named.get("n_readouts"), "T2's reverse pass"
        return door(*arguments, **named)

    return through


def approximately(value):
    """A figure of another program of the same fp64 sums."""
    exact = value is None or isinstance(value, str)
    return value if exact else pytest.approx(value, rel=1e-9)


def test_one_sequence_and_a_batch_of_one_are_the_same(checkpoint):
    """Assert it for exponents and the tokens' hash."""
    folder, _, tokens = checkpoint
    flat, batch = (exponents_only(folder, t) for t in (tokens[0], tokens[:1]))
    assert flat.exponents == batch.exponents
    assert flat.tokens == batch.tokens
    expected = hashlib.sha256(tokens[0].astype("<i8").tobytes()).hexdigest()
    assert flat.tokens.sha256 == expected
    assert (flat.tokens.batch, flat.tokens.length) == (1, SEQ)


def test_the_document_is_strict_json_with_the_agreed_fields(report):
    """Assert no NaN or Infinity, and every field of the design."""
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["schema_version"] == 1
    fields = {
        "tool",
        "settings",
        "environment",
        "assumptions",
        "checkpoint",
        "tokens",
        "exponents",
        "precisions",
        "findings",
        "summary",
    }
    assert fields <= set(document)
    row = document["precisions"][0]["layers"][0]
    for name in (
        "local_l2",
        "local_max",
        "accumulated_l2",
        "accumulated_max",
        "bound_t0_ratio",
        "bound_t1_l2",
        "bound_t1_ratio",
        "floor_t1_ratio",
        "violations",
        "elements_total",
        "first_violation",
    ):
        assert name in row
    (file,) = (f for f in document["checkpoint"]["files"] if "safetensors" in f["name"])
    assert len(file["sha256"]) == 64


def test_the_document_of_an_overflow_is_strict_json_too(tmp_path):
    """Assert nulls beside flags where fp16 overflows, and no violation."""
    weights = random_weights(np.random.default_rng(11), SIZES)
    weights["backbone.layers.1.mixer.D"][:] = 1e7
    folder = save_transformers(tmp_path / "model", weights, SIZES)
    tokens = np.random.default_rng(12).integers(0, SIZES.vocab, (2, SEQ))
    found = lyapunov.check(str(folder), tokens, precisions=["fp16"], readouts=None)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    run = document["precisions"][0]
    assert run["output"]["kl_max"] is None
    assert run["output"]["kl_max_flag"] == "inf"
    assert all(row["violations"] == 0 for row in run["layers"])
    assert run["layers"][1]["non_finite"] > 0
    assert found.summary.exit_code == 1
    assert any(f["severity"] == "error" for f in document["findings"])
    # without bounds the same entries are found not finite
    quick = lyapunov.check(
        str(folder), tokens, precisions=["fp16"], effort="quick", probes=0
    )
    (one,), (other,) = quick.precisions, found.precisions
    for row, whole in zip(one.layers, other.layers, strict=True):
        assert row.non_finite == whole.non_finite
        assert str(row.max_abs_stored) == str(whole.max_abs_stored)
    assert quick.summary.exit_code == 1


def test_two_runs_give_the_same_report(checkpoint, report):
    """Assert that nothing but time differs: seeds are fixed, sums are ordered."""
    folder, _, tokens = checkpoint
    again = every_tier(str(folder), tokens, precisions=["bf16", "fp16"])
    left, right = report.to_dict(), again.to_dict()
    for document in (left, right):
        document["summary"].pop("seconds")
        document["environment"].pop("date")
    assert left == right


def test_progress_counts_to_its_end(checkpoint):
    """Assert that every step announced is taken."""

    folder, _, tokens = checkpoint
    told = Told()
    exponents_only(folder, tokens, progress=told)
    assert told.total == told.done > 0


def test_long_memory_is_flagged(tmp_path):
    """Assert that a decay near 1 gives a memory beyond the sample, flagged as such."""
    weights = random_weights(np.random.default_rng(11), SIZES)
    weights["backbone.layers.2.mixer.A_log"][0, 0] = -20.0
    folder = save_transformers(tmp_path / "model", weights, SIZES)
    tokens = np.random.default_rng(12).integers(0, SIZES.vocab, (2, SEQ))
    rows = exponents_only(folder, tokens).exponents.layers
    assert not_none(rows[2].memory_tokens).exceeds_sample
    assert not_none(not_none(rows[2].memory_tokens).max) > 1e6
    assert not_none(rows[2].max) < 0
    assert math.isfinite(not_none(rows[2].max))
