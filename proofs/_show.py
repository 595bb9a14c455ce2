"""Rows as text for a terminal and as one HTML page with MathML."""

import html
import textwrap
from typing import Any

import sympy
from sympy.printing.mathml import MathMLPresentationPrinter

from ._statement import KINDS, Row, Step


WIDTH = 100


def proved_how(row: Row) -> str:
    """Counts of the kinds of steps, or the first step that fails."""
    for number, step in enumerate(row.steps, 1):
        if not step.holds:
            return f"FAILS at step {number}: {step.text}"
    return ", ".join(f"{count} {kind}" for kind, count in row.kinds.items())


def reproduced_how(row: Row) -> str:
    """The largest deviation, with its tolerance."""
    worst = row.worst
    if worst is None:
        return "not run"
    lead = "" if worst.holds else "FAILS: "
    if worst.deviation < 0:
        return f"{lead}no violation, room {-worst.deviation:.2g} ({worst.text})"
    return f"{lead}{worst.deviation:.2g} <= {worst.tolerance:.2g} ({worst.text})"


def table(rows: list[Row]) -> str:
    """One block a statement."""
    blocks = []
    for number, row in enumerate(rows, 1):
        one = row.statement
        mark = "ok" if row.proved and row.reproduced else "FAILED"
        lines = [f"{number}. {one.name}  [{mark}]  {one.title}"]
        cells = {
            "hypotheses": "; ".join(h.text for h in one.hypotheses),
            "whose": one.whose,
            "proved": proved_how(row),
            "reproduced": reproduced_how(row),
            "used in": one.used,
        }
        for name, text in cells.items():
            lines.append(_wrapped(f"   {name:<11} ", text))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def derivation(row: Row) -> str:
    """Every step of one statement, then its numbers."""
    one = row.statement
    out = [one.title, "=" * min(WIDTH, len(one.title)), "", "Hypotheses"]
    out += [_wrapped(f"  {h.name}: ", h.text) for h in one.hypotheses]
    out += ["", _wrapped("Whose: ", one.whose), "", "Derivation"]
    for number, step in enumerate(row.steps, 1):
        mark = "" if step.holds else "FAILS "
        out.append(_wrapped(f"  {number}. [{mark}{step.kind}] ", step.text))
        for formula in step.formulas:
            drawn = sympy.pretty(formula, use_unicode=True, wrap_line=False)
            out.append(textwrap.indent(drawn, " " * 9))
        if step.evidence:
            out.append(_wrapped("     ", step.evidence))
    out += ["", "Numbers"]
    for found in row.numbers:
        mark = "ok" if found.holds else "FAILS"
        figures = f"{found.deviation:.3g}, allowed {found.tolerance:.3g}"
        out.append(
            _wrapped(f"  [{mark}] ", f"{found.text}: {figures} ({found.derived})")
        )
    out += ["", _wrapped("Used in: ", one.used), ""]
    return "\n".join(out)


def _wrapped(lead: str, text: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=lead, subsequent_indent=" " * min(len(lead), 15)
    )


STYLE = """
body { font: 16px/1.5 Georgia, serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; background: #fff; }
h1, h2 { font-weight: 600; line-height: 1.25; } h2 { margin-top: 3rem; }
table { border-collapse: collapse; font-size: .82rem; width: 100%; }
th, td { border-bottom: 1px solid #ddd; padding: .4rem .5rem; text-align: left;
         vertical-align: top; }
th { width: 18%; } th:nth-child(2) { width: 25%; } th:nth-child(4) { width: 11%; }
th:nth-child(6) { width: 14%; } td { overflow-wrap: anywhere; }
ol > li { margin: .9rem 0; }
.kind { font: .75rem sans-serif; background: #eef; border-radius: .2rem;
        padding: .1rem .35rem; margin-right: .4rem; }
.failed { background: #fcc; } .evidence { color: #666; font-size: .85rem; }
.formula { overflow: auto hidden; padding: .4rem 0; margin-left: 1.5rem; }
code { font-size: .85em; }
"""


def page(rows: list[Row]) -> str:
    """One self-contained page."""
    head = ["statement", "hypotheses", "whose", "proved", "reproduced", "used in"]
    cells = "".join(f"<th>{name}</th>" for name in head)
    lines = "".join(_table_row(row) for row in rows)
    kinds = "".join(
        f"<li><span class=kind>{kind}</span>{_text(what)}</li>"
        for kind, what in KINDS.items()
    )
    sections = "".join(_section(row) for row in rows)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>Stability proofs</title><style>{STYLE}</style></head><body>"
        "<h1>Stability of state-space models: the proofs, run</h1>"
        "<p>Every step was checked when this page was written, in the way that its "
        "label says; then the statement was tried on numbers.</p>"
        f"<ul>{kinds}</ul><table><tr>{cells}</tr>{lines}</table>{sections}"
        "</body></html>\n"
    )


def _table_row(row: Row) -> str:
    one = row.statement
    fine = row.proved and row.reproduced
    cells = [
        f"<a href='#{one.name}'>{_text(one.title)}</a>",
        "<br>".join(_text(h.text) for h in one.hypotheses),
        *map(_text, (one.whose, proved_how(row), reproduced_how(row), one.used)),
    ]
    mark = "" if fine else " class=failed"
    return f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _section(row: Row) -> str:
    one = row.statement
    hypotheses = "".join(
        f"<li><b>{_text(h.name)}</b>: {_text(h.text)}</li>" for h in one.hypotheses
    )
    steps = "".join(_step(step) for step in row.steps)
    numbers = "".join(
        f"<li{'' if n.holds else ' class=failed'}>{_text(n.text)}: {n.deviation:.3g}, "
        f"allowed {n.tolerance:.3g} <span class=evidence>({_text(n.derived)})</span>"
        "</li>"
        for n in row.numbers
    )
    return (
        f"<h2 id={one.name}>{_text(one.title)}</h2><p>{_text(one.whose)}</p>"
        f"<h3>Hypotheses</h3><ul>{hypotheses}</ul><h3>Derivation</h3><ol>{steps}</ol>"
        f"<h3>Numbers</h3><ul>{numbers}</ul><p>Used in: {_text(one.used)}</p>"
    )


def _step(step: Step) -> str:
    mark = "kind" if step.holds else "kind failed"
    formulas = "".join(f"<div class=formula>{_math(f)}</div>" for f in step.formulas)
    evidence = f"<div class=evidence>{_text(step.evidence)}</div>"
    return (
        f"<li><span class='{mark}'>{step.kind}</span>{_text(step.text)}"
        f"{formulas}{evidence if step.evidence else ''}</li>"
    )


def _math(formula) -> str:
    """Presentation MathML, which browsers draw without scripts."""
    drawn = _Drawn().doprint(_without_signs(formula))
    return (
        f"<math display=block xmlns='http://www.w3.org/1998/Math/MathML'>{drawn}</math>"
    )


def _without_signs(formula):
    """The same symbols without assumptions: a negative exponent known as such would
    be drawn as a fraction."""
    signed = {
        one: sympy.Symbol(one.name, commutative=one.is_commutative)
        for one in formula.atoms(sympy.Symbol)
        if one.is_negative
    }
    signed |= {
        one: sympy.Indexed(sympy.IndexedBase(one.base.name), *one.indices)
        for one in formula.atoms(sympy.Indexed)
    }
    if not isinstance(formula, sympy.core.relational.Relational):
        return formula.xreplace(signed)
    sides = [side.xreplace(signed) for side in formula.args]
    return formula.func(*sides, evaluate=False)


class _Drawn(MathMLPresentationPrinter):
    """With Kronecker's delta as it is written by hand."""

    def _print_KroneckerDelta(self, delta):
        letter, below, drawn = (
            self.dom.createElement(tag) for tag in ("mi", "mrow", "msub")
        )
        letter.appendChild(self.dom.createTextNode("\u03b4"))
        for index in delta.args:
            node: Any = self._print(index)  # an element, whatever its stub says
            below.appendChild(node)
        drawn.appendChild(letter)
        drawn.appendChild(below)
        return drawn


def _text(text: str) -> str:
    return html.escape(text)
