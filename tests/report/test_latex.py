"""Assert that LaTeX says what the report says, is typeset, and stays on its page."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from lyapunov.report import to_latex

from .example import example_report, parameter_change, troubled_report
from .test_objects import spectrum
from .test_sections import example_audit, example_plan


HOSTILE = r"a_b%c#d&e{f}g~h^i\j$k<l>|m`n -- … λ × ² [*]"
WRITTEN = {
    "check": lambda: example_report(3, changes=[parameter_change(n_layers=3)]),
    "hostile": lambda: example_report(1, source=HOSTILE),
    "troubled": troubled_report,
    "audit": example_audit,
    "plan": example_plan,
    "exponents": spectrum,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_latex_opens_it_closes(name):
    """Assert braces and environments, each inside the one that it began in."""
    text = re.sub(r"(?<!\\)%.*|\\[{}%]", "", to_latex(WRITTEN[name]()))
    begun = []
    for mark in re.findall(
        r"\\begingroup|\\endgroup|\\(?:begin|end)\{\w+\}|[{}]", text
    ):
        if mark in ("{", r"\begingroup") or mark.startswith(r"\begin{"):
            begun.append(mark)
        else:
            end = {"}": "{", r"\endgroup": r"\begingroup"}
            assert begun.pop() == end.get(mark, mark.replace(r"\end{", r"\begin{"))
    assert not begun
    assert r"\item" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
@pytest.mark.parametrize("name", WRITTEN)
def test_latex_is_typeset_and_stays_on_its_page(name, tmp_path):
    parts = (
        r"\documentclass{article}",
        r"\usepackage[T1]{fontenc}\usepackage{booktabs,longtable}",
        r"\begin{document}",
        to_latex(WRITTEN[name]()),
        r"\end{document}",
    )
    (tmp_path / "r.tex").write_text("\n".join(parts))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "r.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_latex_neither_marks_up_nor_breaks(troubled):
    text = to_latex(troubled)
    for finding in troubled.findings:
        assert finding.code in text
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") > 2
    for table in re.findall(r"\\begin\{longtable\}\{(\w+)\}(.*?)\\end", text, re.S):
        rows = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        for row in rows:
            assert row.replace(r"\&", "").count("&") == len(table[0]) - 1
    source = r"\input{/etc/passwd} 50% a_b $x$ #1 ~"
    hostile = to_latex(example_report(1, source=source))
    head = next(x for x in hostile.splitlines() if x.startswith(r"\section*"))
    assert head == (
        r"\section*{\textbackslash{}input\{/etc/passwd\} 50\% a\_b \$x\$ \#1 "
        r"\textasciitilde{}}"
    )


def test_a_row_of_latex_that_begins_with_a_mark_is_no_argument():
    rows = [replace(row, variant="[x]") for row in example_audit().variants]
    text = to_latex(replace(example_audit(), variants=[*rows, *rows]))
    assert not re.search(r"\\\\\n\s*[\[*]", text)
    assert "\n{}[x] & " in text
