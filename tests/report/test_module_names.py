"""Assert that every form names each module, and tells layers from sublayers."""

import re
from dataclasses import replace

import pytest

from lyapunov.report import to_html, to_markdown, to_table
from lyapunov.report._words import groups, layers, modules_of, rows, short_modules
from lyapunov.results._check import Finding

from .example import example_report, precision_report


MODULES = [
    f"model.layers.{i}.{part}"
    for i in range(2)
    for part in ("mamba", "self_attn", "feed_forward")
]


def hybrid(*precisions):
    """A Falcon-H1: two layers of three sublayers."""
    report = example_report(6, precisions)
    named = [
        replace(row, module=module)
        for row, module in zip(report.exponents.layers, MODULES, strict=True)
    ]
    return replace(
        report,
        checkpoint=replace(report.checkpoint, architecture="falcon_h1", n_blocks=2),
        exponents=replace(report.exponents, layers=named),
        precisions=[
            replace(
                precision_report(p, 6),
                layers=[
                    replace(row, module=module)
                    for row, module in zip(
                        precision_report(p, 6).layers, MODULES, strict=True
                    )
                ],
            )
            for p in precisions
        ],
    )


def test_pages_name_every_module():
    report = hybrid("bf16", "fp16")
    page, markdown = to_html(report), to_markdown(report)
    for module in MODULES:
        # the exponents' table and one for each execution
        assert page.count(f">{module}<") == 3
        assert markdown.count(f"| {module} |") == 1


@pytest.mark.parametrize(
    ("precisions", "width", "shown"),
    [
        (("bf16",), 120, MODULES),
        (("bf16",), 80, short_modules(MODULES)),
        (("bf16", "fp16"), 120, MODULES),
        (("bf16", "fp16"), 80, short_modules(MODULES)),
        (("bf16", "fp16"), 70, None),
        (("bf16", "fp16", "fp32"), 70, MODULES),
        ((), 80, MODULES),
    ],
)
def test_the_table_names_them_where_there_is_room(precisions, width, shown):
    text = to_table(hybrid(*precisions), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("module" in text) is (shown is not None)
    for module in shown or ():
        assert re.search(rf"(^|\s){re.escape(module)}\s", text), module


def test_a_row_takes_the_name_from_wherever_it_is():
    report = hybrid("bf16")
    bare = replace(report, exponents=replace(report.exponents, layers=[]))
    assert [row.module for row in rows(bare)] == MODULES
    assert [row.module for row in rows(replace(report, precisions=[]))] == MODULES


def test_reports_without_names_are_shown_without_them():
    report = hybrid()
    old = [replace(row, module=None) for row in report.exponents.layers]
    report = replace(report, exponents=replace(report.exponents, layers=old))
    assert "module" not in to_table(report, width=120)
    to_html(report)
    to_markdown(report)


@pytest.mark.parametrize(
    ("sublayers", "blocks", "text"),
    [
        (24, 24, "24 layers"),
        (6, 2, "2 layers, 6 sublayers"),
        (3, 1, "1 layer, 3 sublayers"),
        (6, None, "6 sublayers"),
    ],
)
def test_layers_are_told_from_sublayers(sublayers, blocks, text):
    assert layers(sublayers, blocks) == text


def test_every_form_counts_layers_and_sublayers():
    report = hybrid("bf16")
    for form in (to_table(report), to_markdown(report), to_html(report)):
        flat = form.replace("\\", "")
        assert "falcon_h1, 2 layers, 6 sublayers" in flat
        assert "6 layers" not in flat


def test_a_finding_of_one_sublayer_names_its_module():
    """Assert it of hybrids, where `layer 3` is not config.json's; and of no other."""
    report = hybrid("bf16")
    one = Finding("LYA008", "warning", 3, "dt_bias is zero")
    more = [replace(one, layer=i, code="LYA006") for i in (0, 3)]
    logits = replace(one, layer=None, code="LYA004")
    report = replace(report, findings=[one, *more, logits])
    where = [g.where for g in groups(report.findings, modules_of(report))]
    assert where == ["layer 3 (model.layers.1.mamba)", "layers 0, 3", "the logits"]
    for form in (to_table(report, quiet=True), to_markdown(report), to_html(report)):
        flat = " ".join(form.replace("\\", "").split())
        assert "layer 3 (model.layers.1.mamba)" in flat
    assert modules_of(example_report(2)) == {}


def test_short_names_keep_what_tells_them_apart():
    assert short_modules(MODULES[:2]) == ["mamba", "self_attn"]
    assert short_modules(["a.layers.0.mixer", "a.layers.1.mixer"]) == [
        "0.mixer",
        "1.mixer",
    ]
    assert short_modules(["a.layers.0.mixer"]) == ["a.layers.0.mixer"]
    assert short_modules([]) == []
