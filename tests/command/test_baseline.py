"""Assert that a baseline fails what grew, passes what did not, and refuses the rest."""

import copy
import json
import math
from dataclasses import replace

import jsonschema
import pytest

from lyapunov.findings._baseline import FACTOR, compare, with_baseline
from lyapunov.findings._baseline_file import BaselineError, read_baseline
from lyapunov.report.json import schema

from .conftest import example


@pytest.fixture(scope="module")
def now():
    return example.example_report(3).to_dict()


@pytest.fixture
def earlier(now):
    return copy.deepcopy(now)


def _codes(outcome):
    return [finding.code for finding in outcome.findings]


def test_the_same_report_is_equal_in_every_figure(now, earlier):
    outcome = compare(now, earlier)
    assert outcome.findings == outcome.notes == []
    assert outcome.changed == 0
    # 5 figures, the flips and 3 counts of the logits, 6 of each of 3 layers; no sigma
    # for fp16; the reference's loss
    assert outcome.compared == 2 * (9 + 3 * 6) - 1 + 1
    assert outcome.sentence() == "equal: 0 of 54 figures differ"


def test_time_and_place_never_count(now, earlier):
    earlier["summary"]["seconds"] *= 100
    earlier["environment"] = {"device": "another"}
    earlier["tool"]["version"] = "0.0.1"
    earlier["settings"]["select"] = ["LYA001"]
    assert compare(now, earlier).changed == 0


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("output", "measured_rel_l2"),
        ("output", "kl_mean"),
        ("output", "kl_max"),
        ("output", "estimate_t2"),
        ("layer", "local_l2"),
        ("layer", "accumulated_l2"),
        ("layer", "bound_t1_l2"),
    ],
)
def test_growth_beyond_the_factor_is_worse_and_shrinking_is_not(
    now, earlier, place, name
):
    entry = earlier["precisions"][0]
    figures = entry["output"] if place == "output" else entry["layers"][1]
    value = figures[name]
    for factor, worse in ((1.01, False), (FACTOR * 1.01, True), (0.1, False)):
        figures[name] = value / factor
        outcome = compare(now, earlier)
        assert outcome.changed == 1
        assert _codes(outcome) == (["LYA010"] if worse else [])
        if worse:
            (finding,) = outcome.findings
            assert finding.precision == "bf16"
            assert finding.value == pytest.approx(factor, rel=1e-12)
            assert name in finding.message


def test_estimates_of_other_samples_are_not_compared(now, earlier):
    earlier["precisions"][0]["output"]["estimate_t2"] /= 2
    assert _codes(compare(now, earlier)) == ["LYA010"]
    earlier["settings"]["seed"] = 7
    outcome = compare(now, earlier)
    assert outcome.findings == []
    assert outcome.compared == 54 - 3


def test_flips_may_move_by_a_tie_and_violations_by_none(now, earlier):
    output, row = (earlier["precisions"][0][k] for k in ("output", "layers"))
    assert output["argmax_flips"] == 7
    for flips, worse in ((6, False), (5, False), (4, True), (0, True)):
        output["argmax_flips"] = flips
        assert bool(compare(now, earlier).findings) is worse
    output["argmax_flips"] = 7
    later = copy.deepcopy(now)
    row[0]["violations"] = 100
    later["precisions"][0]["layers"][0]["violations"] = 101
    (finding,) = compare(later, earlier).findings
    assert finding.message == "grew since the baseline: layer 0 violations 100 → 101"
    assert finding.value == math.inf


def test_ties_of_an_earlier_version_are_changed_tokens(now, earlier):
    """Assert that a report of the rule before this one, which counted a changed token
    as a tie where the execution's leader is shared, is no better for it."""
    output = earlier["precisions"][0]["output"]
    assert output["argmax_flips"] == 7
    for rule, flips, ties, worse in (
        ("old", 1, 6, False),
        ("old", 1, 5, False),
        ("old", 1, 3, True),
        ("new", 1, 6, True),
        ("new", 7, 0, False),
    ):
        output |= {"argmax_flips": flips, "argmax_ties": ties, "reference_ties": 0}
        if rule == "old":
            del output["reference_ties"]
        assert bool(compare(now, earlier).findings) is worse, (rule, flips, ties)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("output", "non_finite"),
        ("output", "reference_non_finite"),
        ("output", "constant_tokens"),
        ("layers", "elements_unbounded"),
    ],
)
def test_bounds_and_logits_that_were_lost_since_are_worse(now, earlier, place, name):
    """Assert one of each, where there was none; and that a baseline from before they
    were counted says nothing of them."""
    later = copy.deepcopy(now)
    find = lambda document: document["precisions"][0][place]
    pick = lambda part: part[1] if place == "layers" else part
    pick(find(later))[name] = 1
    (finding,) = compare(later, earlier).findings
    assert finding.code == "LYA010"
    assert f"{name} 0 → 1" in finding.message
    for part in find(earlier) if place == "layers" else [find(earlier)]:
        del part[name]
    assert compare(later, earlier).findings == []


def test_a_verdict_anew_keeps_what_the_check_rests_on():
    """Assert that a check of few bounds is not called held beside its own report."""
    report = example.example_report(3)
    few = replace(
        report, findings=[], summary=replace(report.summary, bounded_share=0.2)
    )
    shown, _ = with_baseline(few, few.to_dict())
    assert (shown.summary.verdict, shown.summary.exit_code) == ("unbounded", 2)


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [
        ("inf", "inf", False),
        ("nan", "nan", False),
        (1.0, "inf", True),
        (1.0, "nan", True),
        ("inf", 1.0, False),
        ("nan", 1.0, False),
        (0.0, 1e-9, True),
        (None, 1.0, False),
        (1.0, None, False),
    ],
)
def test_what_is_not_finite_or_not_there(now, earlier, before, after, worse):
    later = copy.deepcopy(now)
    for document, value in ((earlier, before), (later, after)):
        output = document["precisions"][0]["output"]
        output["kl_mean"] = value if isinstance(value, float) else None
        if isinstance(value, str):
            output["kl_mean_flag"] = value
    outcome = compare(later, earlier)
    assert bool(outcome.findings) is worse
    assert outcome.changed == (before != after and None not in (before, after))


def test_other_subjects_are_refused(now, earlier):
    for part, name, value, words in (
        ("tokens", "sha256", "ee" * 32, "other tokens"),
        ("checkpoint", "n_layers", 64, "n_layers 64 there, 3 here"),
        ("checkpoint", "architecture", "mamba2", "another model"),
    ):
        other = copy.deepcopy(earlier)
        other[part][name] = value
        with pytest.raises(BaselineError, match=words) as caught:
            compare(now, other)
        assert caught.value.hint
    for entry in earlier["precisions"]:
        entry["state_precision"] = "bf16"
    with pytest.raises(BaselineError, match="no execution in common"):
        compare(now, earlier)


def test_what_may_differ_is_noted(now, earlier):
    earlier["checkpoint"]["files"][0]["sha256"] = "ff" * 32
    fp32 = copy.deepcopy(earlier["precisions"][0])
    earlier["precisions"].append(fp32 | {"precision": "fp32"})
    earlier["precisions"][1]["layers"].append(
        earlier["precisions"][1]["layers"][0] | {"layer": 9}
    )
    outcome = compare(now, earlier)
    assert outcome.findings == []
    sentence = outcome.sentence()
    assert "the checkpoint's files are others" in sentence
    assert "fp32 (state fp32, prefill, emulated) is only in the baseline" in sentence
    assert "1 sublayers are only in the baseline" in sentence


def test_an_older_report_without_the_new_fields_is_accepted(now, earlier, tmp_path):
    for entry in earlier["precisions"]:
        for name in ("sigma_t3", "estimate_t2", "decisions", "texts"):
            del entry["output"][name]
        for row in entry["layers"]:
            del row["binding_site"]
    del earlier["parameter_changes"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(earlier))
    assert compare(now, read_baseline(path)).findings == []


def test_verdict_and_report_follow(earlier):
    report = example.example_report(3)
    earlier["precisions"][1]["output"]["kl_mean"] /= 2
    worse, sentence = with_baseline(report, earlier)
    assert (worse.summary.verdict, worse.summary.exit_code) == ("findings", 1)
    assert sentence.startswith("worse: 1 of 54 figures differ")
    assert worse.settings["baseline"] == sentence
    assert worse.findings[0].code == "LYA010"
    jsonschema.validate(worse.to_dict(), schema())
    ignoring = replace(report, settings={**report.settings, "ignore": ["LYA010"]})
    kept, _ = with_baseline(ignoring, earlier)
    assert (kept.summary.verdict, kept.findings) == ("held", report.findings)
    zero = replace(report, settings={**report.settings, "exit_zero": True})
    assert with_baseline(zero, earlier)[0].summary.exit_code == 0


# --- Findings that the baseline has ----------------------------------------------

LOST = [example.layer_exponents(i, suspicions=["dt_bias is zero"]) for i in range(3)]


def _with(fail_on, **options):
    report = example.example_report(3, **options)
    return replace(report, settings={**report.settings, "fail_on": fail_on})


def test_only_new_findings_count():
    """Assert that warnings and errors of the baseline fail nothing, whether they are
    fewer now or not, and that a new one does."""
    lost = _with("warning", layers=LOST)
    assert lost.findings
    same, sentence = with_baseline(lost, lost.to_dict())
    assert all(finding.known for finding in same.findings)
    assert (same.summary.verdict, same.summary.exit_code) == ("held", 0)
    assert same.summary.baseline == (
        f"nothing grew, {sentence}; no new findings, {len(lost.findings)} known"
    )
    jsonschema.validate(same.to_dict(), schema())
    healthy = _with("warning")
    fresh, _ = with_baseline(lost, healthy.to_dict())
    assert sum(not finding.known for finding in fresh.findings) == 3
    assert (fresh.summary.verdict, fresh.summary.exit_code) == ("findings", 1)
    assert "3 new findings" in str(fresh.summary.baseline)
    fewer, _ = with_baseline(healthy, lost.to_dict())
    assert (fewer.summary.verdict, fewer.summary.exit_code) == ("held", 0)


def test_a_known_error_fails_when_it_grows():
    row = example.layer_divergence(0, "bf16", violations=3)
    entry = replace(example.precision_report("bf16", 3), layers=[row])
    broken = _with("error", executions=[entry])
    assert broken.summary.exit_code == 1
    same, _ = with_baseline(broken, broken.to_dict())
    assert (same.summary.verdict, same.summary.exit_code) == ("held", 0)
    more = replace(entry, layers=[replace(row, violations=4)])
    grown, _ = with_baseline(_with("error", executions=[more]), broken.to_dict())
    assert grown.summary.exit_code == 1
    assert [f.code for f in grown.findings if not f.known] == ["LYA010"]


def test_a_baseline_without_findings_knows_none(earlier):
    report = _with("warning")
    del earlier["findings"]
    found, _ = with_baseline(report, earlier)
    assert found.summary.exit_code == 1
    assert not any(finding.known for finding in found.findings)


# --- The file --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[1, 2]", "not an object"),
        ('{"schema_version": 2}', "schema_version is 2, not 1"),
        ('{"error": {"code": "usage"}}', "schema_version is None"),
        ("[" * 100_000, "not JSON"),
        ('{"schema_version": 1, "settings": {}}', "checkpoint is not an object"),
        ('{"reports": []}', "several reports"),
        ("9" * 5000, "not JSON"),
    ],
)
def test_files_that_are_no_report_are_refused(tmp_path, text, words):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(BaselineError, match=words) as caught:
        read_baseline(path)
    assert caught.value.hint


def test_files_that_are_missing_binary_or_huge_are_refused(tmp_path):
    with pytest.raises(BaselineError, match="no baseline at"):
        read_baseline(tmp_path / "none.json")
    with pytest.raises(BaselineError, match="no baseline at"):
        read_baseline(tmp_path)
    binary = tmp_path / "b.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BaselineError, match="not UTF-8"):
        read_baseline(binary)
    huge = tmp_path / "h.json"
    with huge.open("wb") as file:
        file.truncate(33 * 2**20)
    with pytest.raises(BaselineError, match="too many for a report"):
        read_baseline(huge)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["precisions"][0]["output"].update(kl_mean="1"), "kl_mean"),
        (lambda d: d["precisions"][0]["output"].update(kl_max=10**400), "kl_max"),
        (lambda d: d["precisions"][0]["layers"].append(3), "layers"),
        (lambda d: d["precisions"][0]["layers"][0].update(layer="0"), "whole"),
        (lambda d: d["precisions"][0].pop("mode"), "mode is not text"),
        (lambda d: d.update(precisions={}), "precisions is not a list"),
        (lambda d: d["checkpoint"].update(files=[1]), "a file is not an object"),
        (lambda d: d["tokens"].pop("sha256"), "tokens.sha256"),
        (lambda d: d.update(findings=3), "findings is not a list"),
        (lambda d: d.update(findings=[{}]), "a finding's code is not text"),
        (lambda d: d["findings"][0].update(layer=[]), "a finding's layer"),
    ],
)
def test_fields_of_another_kind_are_refused(earlier, tmp_path, change, words):
    change(earlier)
    path = tmp_path / "b.json"
    path.write_text(json.dumps(earlier))
    with pytest.raises(BaselineError, match=words):
        read_baseline(path)


# --- The command -----------------------------------------------------------------


def test_the_command_compares_and_says_so(run, fake, tmp_path):
    path = tmp_path / "b.json"
    assert run("model", "--tokens", "random", "-o", path).exit_code == 0
    # the fake check's report is of tokens of its own
    document = json.loads(path.read_text())
    from lyapunov.questions._request import tokens_facts

    _, tokens, _ = fake.calls[0]
    facts = tokens_facts(tokens)
    fake.default = replace(fake.default, tokens=facts)
    document["tokens"]["sha256"] = facts.sha256
    path.write_text(json.dumps(document))
    equal = run("model", "--tokens", "random", "--baseline", path)
    assert equal.exit_code == 0, equal.stderr
    assert equal.stderr == "baseline: equal: 0 of 42 figures differ\n"
    document["precisions"][0]["output"]["kl_mean"] /= 3
    path.write_text(json.dumps(document))
    worse = run("model", "--tokens", "random", "--baseline", path)
    assert worse.exit_code == 1
    assert "LYA010" in worse.stdout
    assert run("model", "-q", "--baseline", path).stderr == ""
    other = run("model", "--tokens", "random", "--seed", 7, "--baseline", path)
    assert other.exit_code == 2
    assert "the baseline is of other tokens" in other.stderr
    assert len(fake.calls) == 4, "refused before the long work"


def test_a_bad_baseline_is_refused_before_the_work(run, fake, tmp_path):
    path = tmp_path / "b.json"
    path.write_text("no")
    for arguments in (("m", "--baseline", path), ("m", "n", "--baseline", path)):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stderr.count("error: ") == result.stderr.count("hint: ") == 1
    assert fake.opened == []
