"""Assert that the page is self-contained, whole, accessible and reproducible."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from lyapunov._errors import MissingExtraError
from lyapunov.report import to_html
from lyapunov.report.html import GAP, PAGE
from lyapunov.results._check import LayerExponents

from .example import (
    example_report,
    layer_divergence,
    layer_exponents,
    output_divergence,
    precision_report,
)


VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "rect", "circle"}


class Page(HTMLParser):
    """Checks nesting and collects what the tests ask about."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.links, self.text = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self._seen(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._seen(tag, attrs)

    def _seen(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        for key in ("href", "src", "xlink:href", "srcset", "action", "data"):
            if key in found:
                self.links.append(found[key])

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(troubled):
    return to_html(troubled)


def test_page_parses_and_closes_everything(page):
    parsed = Page(page)
    assert parsed.open == []
    assert page.startswith("<!DOCTYPE html>")


def test_nothing_comes_from_outside(page):
    parsed = Page(page)
    assert all(link.startswith("#") for link in parsed.links)
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "iframe", "img"}
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_ids_are_unique_and_inner_references_resolve(page):
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    references = parsed.links + re.findall(r"url\(([^)]*)\)", page)
    assert {reference.lstrip("#") for reference in references} <= set(parsed.ids)


def test_figures_have_words_and_tables_have_headings(page):
    parsed = Page(page)
    drawings = [attrs for tag, attrs in parsed.tags if tag == "svg"]
    assert len(drawings) == 8
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in drawings)
    headings = [attrs for tag, attrs in parsed.tags if tag == "th"]
    assert headings
    assert all(attrs["scope"] in ("col", "row") for attrs in headings)


def test_no_table_is_wider_than_a_page_and_each_says_which_row():
    """Assert it of every piece of a table of more than 20 columns, and each once."""
    text = to_html([example_report(3, ("bf16", "fp16"))])
    first, again = [], []
    for region in re.findall(r'<div class="scroll".*?</div>', text, re.S):
        for i, piece in enumerate(re.findall("<table>.*?</table>", region, re.S)):
            rows = re.findall(r"<tr>(.*?)</tr>", piece, re.S)
            cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
            heads = [max(map(len, head.split())) for head in cells[0]]
            widths = [
                GAP + max(head, *(len(unescape(row[j])) for row in cells[1:]))
                for j, head in enumerate(heads)
            ]
            assert sum(widths) <= PAGE
            (again if i else first).append(cells[0])
    assert len(again) >= 3
    assert all(heads[:2] == ["layer", "kind"] for heads in again)
    assert sum(heads.count("certified radius") for heads in first + again) == 2


def test_page_says_what_the_report_says(page, troubled):
    text = " ".join(" ".join(Page(page).text).split())
    for assumption in troubled.assumptions:
        assert assumption in text
    for finding in troubled.findings:
        assert finding.code in text
        assert finding.message in text
    assert troubled.summary.recommendation in text
    assert "cd" * 32 in text
    assert "it breaks its bound" in text
    assert "above the bound" in text


def test_light_dark_and_narrow_are_provided_for(page):
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert "var(--blue)" in page
    assert not re.search(r"#0[1-7]0[1-7]0[1-7]", page)


def test_same_report_gives_the_same_bytes(troubled, page):
    assert to_html(troubled) == page


def test_text_from_outside_is_escaped():
    report = example_report(1, source="<script>alert(1)</script>")
    layers = [layer_exponents(0, suspicions=["<b>zero</b>"])]
    report = replace(report, exponents=replace(report.exponents, layers=layers))
    page = to_html(report)
    assert "<script>" not in page
    assert "<b>zero" not in page


def test_several_checkpoints_share_a_page(held):
    failure = {
        "checkpoint": {"source": "lost"},
        "error": {"code": "checkpoint", "message": "no such file", "hint": ""},
    }
    parsed = Page(to_html([example_report(1), failure, example_report(2)]))
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "no such file" in " ".join(parsed.text)


@pytest.mark.filterwarnings("error")
def test_bare_and_broken_reports_are_drawn_too():
    inf, nan = float("inf"), float("nan")
    bare = example_report(
        layers=[LayerExponents(0, "mlp", reason="no recurrence")], executions=[]
    )
    Page(to_html(bare))
    broken = replace(
        precision_report("bf16", 1),
        layers=[
            layer_divergence(
                0,
                "bf16",
                local_l2=nan,
                bound_t1_l2=inf,
                accumulated_l2=inf,
                local_by_position=[nan] * 4,
                bound_by_position=[inf] * 4,
                accumulated_by_position=None,
            )
        ],
        output=output_divergence("bf16", kl_by_position=[nan, inf, 0.0], kl_mean=nan),
    )
    strange = layer_exponents(0, quantiles=[-inf, -inf, 0.0], max=0.0)
    Page(to_html(example_report(layers=[strange], executions=[broken])))


def test_missing_extra_is_named(held, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError) as caught:
        to_html(held)
    assert caught.value.hint == "pip install 'lyapunov-check[report]'"
