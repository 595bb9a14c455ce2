"""The change that was asked about has its sentence in verdict, advice and report."""

from dataclasses import replace

import pytest

from lyapunov.findings._changes import change_advice, change_clause
from lyapunov.findings._rules import recommendation
from lyapunov.report._headline import headline
from lyapunov.report._sentences import change_sentence
from lyapunov.results._check import Finding

from .example import example_report, parameter_change


def changed(kind="adapter", name="m/adapter", flips=3, total=64, **fields):
    change = parameter_change(name, 3)
    output = replace(
        change.output,
        argmax_flips=flips,
        argmax_total=total,
        kl_mean=0.012,
        measured_rel_l2=0.74,
    )
    none = {"weight_format": None, "rounded": [], "kept": []}
    return replace(change, kind=kind, output=output, **(none | fields))


def unchanged(kind):
    change = changed(kind, flips=0)
    layers = [replace(row, weights={}, bound_ratio=None) for row in change.layers]
    output = replace(change.output, measured_rel_l2=0.0, kl_mean=0.0)
    return replace(change, layers=layers, output=output, outside={})


@pytest.mark.parametrize(
    ("change", "advice", "clause"),
    [
        (
            changed(),
            "The adapter m/adapter changes 3 of 64 top tokens, mean KL 0.012 nats, "
            "logits moved by 0.74 of their size.",
            "; the adapter m/adapter changes 3 of 64 top tokens",
        ),
        (
            changed("rounding", "nvfp4:mlp"),
            "The weights nvfp4:mlp change 3 of 64 top tokens, mean KL 0.012 nats, "
            "logits moved by 0.74 of their size.",
            "; the weights nvfp4:mlp change 3 of 64 top tokens",
        ),
        (
            unchanged("checkpoint"),
            "The checkpoint m/adapter changes nothing: no weight that was compared "
            "differs.",
            "; the checkpoint m/adapter changes nothing",
        ),
    ],
)
def test_each_kind_of_change_is_told(change, advice, clause):
    assert change_advice([change]) == [advice]
    assert change_clause([change]) == clause


def test_of_several_the_verdict_tells_the_one_that_changes_most():
    few, many = changed("rounding", "bf16:D", 1), changed("rounding", "int4:all", 40)
    assert change_clause([few, many, few]) == (
        "; the weights int4:all change 40 of 64 top tokens, most of 3 weight sets"
    )
    assert len(change_advice([few, many])) == 2
    assert change_clause([]) == ""
    assert change_advice([]) == []


def test_verdict_and_advice_tell_it_whatever_else_is_found():
    """Today an error or a lost dynamic took the advice, and the adapter had no word."""
    change = changed()
    report = example_report(3, changes=[change])
    assert change_clause([change])[2:] in str(headline(report))
    broken = [
        Finding("LYA008", "warning", 1, "dt looks lost"),
        Finding("LYA002", "error", None, "not finite"),
    ]
    for found in ([], broken[:1], broken):
        line = recommendation(report.exponents, report.precisions, found, [change])
        assert line.endswith(change_advice([change])[0])


def test_the_reports_sentence_says_what_each_figure_is_of():
    """`certified bound over measured 1e+04x`, `108 % beyond`: of nothing, before."""
    change = changed(predicted_rel_l2=1.0, nonlinearity=1.08)
    layers = [
        replace(row, bound_ratio=ratio)
        for row, ratio in zip(change.layers, (10400.0, 15000.0, 22100.0), strict=True)
    ]
    text = change_sentence(replace(change, layers=layers))
    assert "logits moved by 0.74 of their size" in text
    assert "1.0 to first order" in text
    assert "leaves 108 % of the move unexplained" in text
    assert "at most 10,400 to 22,100 times as much (certified)" in text
    assert "e+0" not in text
    assert "kept" not in text


def test_what_quantisers_leave_alone_is_said():
    change = changed(
        "rounding",
        "int8-row:all",
        weight_format="symmetric int8 with one fp32 scale a row",
        rounded=["mamba2.in_proj"],
        kept=["embedding", "mamba2.A_log"],
    )
    text = change_sentence(change)
    assert "one fp32 scale a row: mamba2.in_proj" in text
    assert "kept: embedding, mamba2.A_log" in text
