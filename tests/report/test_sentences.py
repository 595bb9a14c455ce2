"""Assert that each form tells estimates as estimates and bounds as bounds."""

from dataclasses import fields, replace

import pytest

from lyapunov.report import to_html, to_markdown, to_table
from lyapunov.report._sentences import change_sentence, output_lines, percent
from lyapunov.report._words import exponent_sentence
from lyapunov.results._check import (
    Decisions,
    LayerDivergence,
    OutputDivergence,
    PrecisionReport,
)

from ..helpers import not_none
from .example import (
    delta_exponents,
    example_report,
    output_divergence,
    parameter_change,
    precision_report,
    texts,
)


def told(output=None, n_layers=9, **changes) -> dict[str, str]:
    report = precision_report("bf16", 3, **changes)
    if output is not None:
        report = replace(report, output=output)
    return dict(output_lines(report, n_layers))


def test_nothing_is_told_where_nothing_is_known():
    bare = PrecisionReport("bf16", "fp32", "x", "prefill", "x", [], OutputDivergence())
    assert output_lines(bare, 9) == []
    row = LayerDivergence(0, "mamba1")
    assert output_lines(replace(bare, layers=[row]), 9) == []


def test_exponents_known_by_their_sums_alone_are_counted():
    row = delta_exponents(0, multiplicity=3)
    plain = exponent_sentence(example_report(1, layers=[row]).exponents)
    assert "at most" not in plain
    assert "sums alone" not in plain
    row = replace(row, heads=replace(not_none(row.heads), unresolved=[1, 2]))
    found = exponent_sentence(example_report(1, layers=[row]).exponents)
    assert ", smallest at most -" in found
    assert found.endswith(", 9 known by their sums alone")


def test_a_prediction_names_its_error_its_z_and_its_probes():
    line = told(
        output_divergence(
            "bf16",
            sigma_t3=4.4e-3,
            sigma_t3_stderr=5.3e-4,
            calibration_z=0.97,
            n_probes=4,
            nonlinearity=0.03,
        )
    )["predicted"]
    assert line == (
        "4.4e-3 ± 12 % (1 sigma, an estimate, z 0.97 at 512 tokens, 4 probes); "
        "3.0 % beyond first order"
    )


def test_a_withheld_sigma_says_why():
    output = output_divergence(
        "bf16", sigma_t3=None, sigma_withheld="z 1.9 on 16 read-outs: biased rounding"
    )
    assert told(output)["predicted"] == (
        "withheld: z 1.9 on 16 read-outs: biased rounding"
    )
    silent = output_divergence("bf16", sigma_t3=None, sigma_withheld=None)
    assert "predicted" not in told(silent)


@pytest.mark.parametrize(
    ("until", "stopped", "words"),
    [
        (0, "layer 0, gated", "none of 9 sublayers, stopped by layer 0, gated"),
        (2, None, "through 2 of 9 sublayers"),
        (9, "what", "through all of 9 sublayers"),
    ],
)
def test_certified_reach(until, stopped, words):
    output = output_divergence("bf16", certified_until_layer=until, stopped_by=stopped)
    assert told(output)["certified"].endswith(words)


def test_decisions_tell_promises_and_what_became_of_them():
    output = output_divergence("bf16", decisions=Decisions(512, 101, 0, 430, 2, 3))
    assert told(output)["top tokens"] == (
        "101 of 512 certified stable (0 flipped), 430 predicted stable at 4 sigma "
        "(2 flipped), 3 ties"
    )


def test_texts_are_told_as_least_median_and_most():
    line = told(output_divergence("bf16", texts=texts(5)))["texts"]
    assert line == (
        "of 5, least to median to most: rel L2 0.020 to 0.030 to 0.040, KL mean "
        "1.0e-4 to 3.0e-4 to 5.0e-4, flips 0 to 6 to 12"
    )
    flat = [replace(text, measured_rel_l2=float("nan")) for text in texts(3)]
    line = told(output_divergence("bf16", texts=flat))["texts"]
    assert "rel L2 not defined, KL mean 1.0e-4" in line
    broken = [replace(text, kl_mean=float("nan")) for text in texts(3)]
    assert (
        "KL mean not finite" in told(output_divergence("bf16", texts=broken))["texts"]
    )


def test_growth_compares_last_quarter_and_first():
    output = output_divergence("bf16", kl_by_position=[1e-4] * 16 + [3e-4] * 16)
    assert told(output)["position"] == (
        "mean KL of the last quarter is 3.0× that of the first"
    )
    for values in (None, [1.0] * 7, [0.0] * 8, [float("inf")] * 8):
        assert "position" not in told(output_divergence("bf16", kl_by_position=values))


def test_the_layers_and_stores_at_fault_come_first():
    rows = [
        LayerDivergence(i, "mamba1", sigma_share=s, binding_site=site)
        for i, (s, site) in enumerate([(0.1, "xz"), (0.7, "gated"), (0.2, "gated")])
    ]
    lines = told(
        output_divergence("bf16", sigma_by_site={"state": 0.6, "xz": 0.4, "out": 0.0}),
        layers=rows,
    )
    assert lines["error from"] == (
        "layers 1 (70 %), 2 (20 %), 0 (10 %); stores state (60 %), xz (40 %) of the "
        "predicted variance"
    )
    assert lines["bound lost"] == "mostly at gated in 2, xz in 1 of 3 sublayers"


def test_estimates_are_never_called_bounds_nor_bounds_estimates():
    lines = told()
    for label in ("predicted", "worst case"):
        assert "estimate" in lines[label]
        assert not {"bound", "certified", "at most"} & set(lines[label].split())
    for label in ("certified", "bound lost"):
        assert "estimate" not in lines[label]
        assert "predicted" not in lines[label]


def test_every_form_tells_every_line():
    cause = "stagnation: 40 % of updates are lost"
    execution = precision_report("bf16", 3)
    odd = {"reference_ties": 3, "constant_tokens": 2, "state_share": 0.25}
    output = replace(execution.output, texts=texts(3), cause=cause, **odd)
    rows = [
        replace(row, elements_unbounded=77, unbounded={"out": 0.1, "gated": 1e-4})
        for row in execution.layers
    ]
    execution = replace(execution, output=output, layers=rows, state_stored_every=16)
    change = parameter_change(n_layers=3)
    report = example_report(3, executions=[execution], changes=[change])
    lines = [text for _, text in output_lines(execution, 3)]
    assert len(lines) == 12
    assert any("rounding the state, stored every 16 tokens (25 %" in x for x in lines)
    lines.append(change_sentence(change))
    for flag in report.summary.flags:
        lines += [flag["stack"], flag["flag"]]
    lines.append(not_none(report.summary.benchmark_note))
    forms = {
        "table": to_table(report, width=100, verbose=True),
        "markdown": to_markdown(report).replace("\\", ""),
        "html": to_html(report).replace("&#39;", "'"),
    }
    for name, form in forms.items():
        flat = "".join(form.split())
        for line in lines:
            assert "".join(line.split()) in flat, (name, line)
    assert len(fields(output)) == 30, "a new field of the logits: show it here as well"


def test_long_lines_stay_within_the_terminal():
    change = parameter_change("a/very/long/path/to/a/fine-tuned/checkpoint" * 2, 3)
    report = example_report(64, ("bf16",), changes=[change])
    for width in (80, 120):
        text = to_table(report, width=width, verbose=True)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text


@pytest.mark.parametrize(
    ("value", "text"), [(0.243, "24 %"), (0.0031, "0.31 %"), (None, "–"), (0.0, "0 %")]
)
def test_shares_are_told_in_percent(value, text):
    assert percent(value) == text


def test_logits_that_hardly_occur_are_told_and_sound_ones_are_not():
    """Assert the words for each count, for a head of zeros, and silence otherwise."""
    assert "logits" not in told(output_divergence("bf16"))
    line = told(
        output_divergence(
            "bf16",
            non_finite=1234,
            reference_non_finite=2,
            constant_tokens=191,
            reference_ties=3,
        )
    )["logits"]
    assert line == (
        "1,234 not finite, 2 not finite in the reference, all equal at 191 tokens "
        "where the reference's differ, the reference ties its leaders at 3 tokens"
    )
    flat = told(output_divergence("bf16", measured_rel_l2=float("nan")))["logits"]
    assert "no relative distance" in flat


def test_elements_without_a_bound_are_told_with_their_tensors():
    execution = precision_report("bf16", 3)
    assert "no bound" not in dict(output_lines(execution, 3))
    unbounded = {"sublayer output": 1.0, "out": 0.5}
    rows = [
        replace(row, elements_unbounded=n, unbounded=unbounded if n else {})
        for row, n in zip(execution.layers, (0, 1000, 234), strict=True)
    ]
    line = dict(output_lines(replace(execution, layers=rows), 3))["no bound"]
    assert line == (
        "1,234 of 1,179,648 elements have no finite bound: sublayer output in 2, out "
        "in 2 of 3 sublayers"
    )
