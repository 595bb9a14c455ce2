"""Assert that `--explain` knows every word that a report prints, and that all fits."""

import inspect
import re

import jax.numpy as jnp
import pytest

import lyapunov
from lyapunov.command._answers import explain
from lyapunov.findings import CATALOGUE
from lyapunov.implementations._implementation import MODES
from lyapunov.implementations._ways import KINDS as WAYS
from lyapunov.report import _headline, _sentences, to_table
from lyapunov.report._glossary import GLOSSARY, explained
from lyapunov.report._sections import Form, document_of
from lyapunov.report._sentences import output_lines

from .example import (
    delta_exponents,
    example_report,
    parameter_change,
    precision_report,
    troubled_report,
)
from .test_sections import example_audit, example_plan


RESULTS = {
    "check": lambda: example_report(3, changes=[parameter_change(n_layers=3)]),
    "troubled": troubled_report,
    "delta": lambda: example_report(1, layers=[delta_exponents(0)]),
    "audit": example_audit,
    "plan": example_plan,
    "exponents": lambda: lyapunov.lyapunov_spectrum(
        lambda x, _: 0.5 * x, jnp.ones(2), jnp.zeros((64, 1)), k=2
    ),
}


@pytest.fixture(params=RESULTS)
def result(request):
    return RESULTS[request.param]()


def printed(result) -> set[str]:
    """Heads of columns and labels of lines, in every form."""
    document = document_of(result)
    words = {fact.label for fact in document.facts}
    for section in document.sections:
        if section.forms == Form.WRITTEN and section.table is None:
            continue  # settings, assumptions, hashes
        if "weights" not in section.title:
            words |= {line.label for line in section.lines}
        if section.table is not None:
            groups = section.table.groups
            for column in [
                *section.table.keys,
                *(c for g in groups for c in g.columns),
            ]:
                words |= {column.head, column.long}
    # figures at a number
    return {re.sub(r"(\+|margin at ).*", r"\g<1>1", word) for word in words} - {""}


def test_every_head_and_label_is_explained(result):
    known = {"margin at 1": "margin at"}
    for word in printed(result):
        assert explained(known.get(word, word)), word


def test_every_line_on_the_logits_is_explained():
    run = precision_report("bf16", 3)
    for label, _ in output_lines(run, 3):
        assert explained(label), label
    source = inspect.getsource(_sentences)
    labels = re.findall(r'^        \("([a-z ]+)", ', source, re.M)
    assert len(labels) >= 12
    assert all(explained(label) for label in labels)


def test_every_verdict_is_explained():
    source = inspect.getsource(_headline)
    words = set(re.findall(r'"([A-Z][A-Z ,]{2,})"', source)) - {"LYA"}
    assert len(words) >= 9
    assert all(explained(word) for word in words), words


def test_modes_and_ways_are_told_apart():
    """Assert an entry for each word, of a mode or of a way and never of both."""
    mode, way = explained("mode"), explained("way")
    assert mode is not way
    assert {explained(name) for name in MODES} == {mode}
    assert {explained(name) for name in WAYS} == {way}


def test_no_word_has_two_entries():
    names = [name.casefold() for word in GLOSSARY for name in word.names]
    assert len(names) == len(set(names))
    assert not set(names) & {code.casefold() for code in CATALOGUE}


def test_all_of_it_is_shown_at_once():
    text = explain("all")
    assert all(code in text for code in CATALOGUE)
    assert all(word.names[0] in text for word in GLOSSARY)
    assert "two times" not in text
    assert explain(" t1 ").startswith("T1")


@pytest.mark.parametrize("width", [40, 60])
def test_narrow_terminals_show_every_column(result, width):
    text = to_table(result, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    heads = set(" ".join(to_table(result, width=200).split()).split())
    found = set(text.split())
    for column in ("viol", "flips", "verdict", "memory"):
        assert column not in heads or column in found
