"""Assert that the terminal report fits, says everything, and degrades to ASCII."""

from dataclasses import replace

import pytest

from lyapunov.report import to_table
from lyapunov.report._legends import LEGEND, legend
from lyapunov.report._words import count, decay, number, ratio

from .example import example_report, precision_report


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["held", "troubled"])
def test_two_precisions_fit_on_one_row_a_layer(name, width, request):
    text = to_table(request.getfixturevalue(name), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert len(text.splitlines()) < 24 + 80


def test_what_does_not_fit_gets_a_table_each():
    report = example_report(4, ("bf16", "fp16", "fp32"))
    text = to_table(report, width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "…" not in text
    assert sum("rel L2" in line and "viol" in line for line in text.splitlines()) == 3


def test_the_first_screen_says_what_to_do_before_any_table(held):
    """Assert the order, and that what authors of kernels ask for is behind -v."""
    text, long = to_table(held), to_table(held, width=200, verbose=True)
    places = [text.index(w) for w in ("HELD", "vLLM", "LYA004", "Layers", "KL mean")]
    assert places == sorted(places)
    for word in (
        "(1 sigma, an estimate",
        "bound lost",
        "as it was checked",
        "none needed",
    ):
        assert word not in text
        assert word in long
    for form in (text, long):
        assert "floor" not in form


def test_long_kinds_do_not_push_columns_out():
    report = example_report(2)
    layers = [replace(row, kind="attention") for row in report.exponents.layers]
    text = to_table(replace(report, exponents=replace(report.exponents, layers=layers)))
    assert "attention" in text
    assert max(map(len, text.splitlines())) <= 80


def test_header_layers_logits_findings_and_verdict_are_all_there(troubled):
    text = " ".join(to_table(troubled).split())
    for word in (
        "state-spaces/mamba-130m-hf",
        "mamba1, 24 layers, 129M parameters, fp32",
        "bundled English text, 1 × 512",
        "!37",
        "KL mean",
        "LYA003",
        "FINDINGS",
        "3 errors, 5 warnings; 23 sublayers checked, 1 skipped",
        troubled.summary.recommendation,
    ):
        assert word in text
    assert legend(LEGEND) in text


def test_verdict_is_not_told_by_colour_alone(held, troubled):
    assert "✓ HELD" in to_table(held)
    assert "✗ FINDINGS" in to_table(troubled)
    assert "\x1b" not in to_table(troubled)
    assert "\x1b[" in to_table(troubled, color=True)


@pytest.mark.parametrize("encoding", ["ascii", None, "cp1252"])
def test_ascii_where_the_encoding_cannot_take_the_signs(troubled, encoding):
    text = to_table(troubled, encoding=encoding)
    assert text.isascii()
    assert "x FINDINGS" in text


def test_quiet_leaves_findings_and_verdict(troubled):
    text = to_table(troubled, quiet=True)
    assert "KL mean" not in text
    assert "LYA001" in text
    assert "FINDINGS" in text


def test_markup_in_names_is_shown_as_it_is():
    text = to_table(example_report(1, source="a[bold]b :smile: [/x]"))
    assert "a[bold]b :smile: [/x]" in text


def test_a_report_without_executions_says_so_little():
    text = to_table(example_report(2, executions=[]))
    assert "KL mean" not in text
    assert "every exponent is negative" in text
    assert "every bound held" not in text


def test_ignored_errors_are_not_said_to_hold(troubled):
    summary = replace(troubled.summary, verdict="held", exit_code=0)
    text = to_table(replace(troubled, summary=summary))
    assert "HELD: no finding that was selected" in text
    assert "every bound held" not in text


def test_estimates_are_never_called_bounds():
    """Only T0 and T1 are bounds; a report with estimates does not promote them."""
    output = replace(precision_report("bf16", 1).output, estimate_t2=3.0, sigma_t3=0.1)
    report = example_report(
        1, executions=[replace(precision_report("bf16", 1), output=output)]
    )
    for line in to_table(report).splitlines():
        if "T2" in line or "T3" in line:
            assert "bound" not in line
            assert "certified" not in line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (-0.00123, "-1.2e-3"),
        (-8.31, "-8.3"),
        (45.2, "45"),
        (12345.0, "1.2e4"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_a_decay_beyond_1_is_seen_to_be():
    decays = (None, 0.5, 1 - 1.5e-3, 1.0, 1.004, 1.5)
    shown = ["–", "0.50", "1-1.5e-3", "1.0", "1+4.0e-3", "1.5"]
    assert [decay(x) for x in decays] == shown


def test_counts_and_ratios_are_short():
    assert [count(x) for x in (None, 3.2, 45.0, 1234.0, 129e6)] == [
        "–",
        "3.2",
        "45",
        "1.2k",
        "129M",
    ]
    assert ratio(45.4) == "45×"
    assert ratio(None) == "–"
