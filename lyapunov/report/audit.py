"""An audit as text: one row for each way that the text was run, then the verdict."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lyapunov.report import _words as words
from lyapunov.report.table import PLAIN, glyphs_for
from lyapunov.results._audit import (
    BUG,
    CONSISTENT,
    NOT_RUN,
    SUSPICIOUS,
    UNBOUNDED,
    AuditReport,
    VariantAudit,
)


STYLES = {
    CONSISTENT: "green",
    SUSPICIOUS: "yellow",
    UNBOUNDED: "yellow",
    BUG: "bold red",
    NOT_RUN: "dim",
}
HEAD = ("run", "precision", "verdict", "of bound", "z", "first at")
LEGEND = (
    "of bound: largest measured over certified bound of a sublayer's output (above 1 "
    "is no rounding). z: largest L2 error of an output at a token, in sigmas of random "
    "roundings (above 6 is suspicious). Layers and tokens count from 0."
)


def audit_to_table(
    report: AuditReport,
    *,
    width: int = 80,
    color: bool = False,
    encoding: str | None = "utf-8",
    quiet: bool = False,
    verbose: bool = False,
) -> str:
    """The audit as a terminal shows it; the arguments are those of `to_table`."""
    del verbose
    stream = io.StringIO()
    glyphs = glyphs_for(encoding)
    console = Console(
        file=stream,
        width=max(width, 40),
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        safe_box=glyphs is PLAIN,
    )
    if not quiet:
        _header(console, report)
        console.print()
        console.print(_table(report))
        console.print(Text(LEGEND, style="dim"))
        for line in _notes(report):
            console.print(Text(line, style="dim"))
        console.print()
    for finding in report.findings:
        console.print(
            Text(f"{finding.code} {finding.precision}, {finding.message}"),
        )
    style = STYLES[report.summary.verdict]
    console.print(Text(f"{report.summary.verdict}", style=style))
    console.print(Text(report.summary.recommendation))
    text = "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
    if glyphs is PLAIN:
        text = text.replace("–", "-").replace("…", "~")
        text = text.encode(encoding or "ascii", "replace").decode(encoding or "ascii")
    return text


def audit_to_markdown(report: AuditReport) -> str:
    """The audit for an issue: text that ends in a newline."""
    rows = [HEAD, ("---", "---", "---", "---:", "---:", "---")]
    rows += [_cells(variant) for variant in report.variants]
    table = "\n".join(f"| {' | '.join(map(_plain, row))} |" for row in rows)
    facts = [f"{name}: {value}" for name, value in _facts(report)]
    blocks = [
        f"# {_plain(report.checkpoint.source)}: {report.summary.verdict}",
        f"**{_plain(report.summary.recommendation)}**",
        _bullets(facts),
        table,
        LEGEND,
        _bullets(_notes(report)),
        "## Findings",
        _bullets(f"{f.code} {f.precision}, {f.message}" for f in report.findings)
        or "None.",
        "## Assumptions",
        _bullets(report.assumptions),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def audits_to_markdown(entries: Sequence[AuditReport | Mapping[str, Any]]) -> str:
    """Markdown of several audits, checkpoints that failed among them."""
    parts = [
        audit_to_markdown(entry)
        if isinstance(entry, AuditReport)
        else f"# {_plain(entry['checkpoint']['source'])}\n\nCould not be audited: "
        f"{_plain(entry['error']['message'])}\n"
        for entry in entries
    ]
    return "\n\n".join(parts)


def audit_to_json(report: AuditReport) -> str:
    """The audit as one JSON document."""
    document = report.to_dict()
    return json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _facts(report: AuditReport) -> list[tuple[str, str]]:
    tokens = report.tokens
    size = f"{tokens.batch} × {tokens.length}" if tokens.batch > 1 else tokens.length
    return [
        ("audited", report.source),
        ("checkpoint", f"{report.checkpoint.source}, {report.checkpoint.architecture}"),
        ("tokens", f"{size}, {tokens.source}"),
    ]


def _header(console: Console, report: AuditReport) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _facts(report):
        grid.add_row(name, Text(value))
    console.print(grid)


def _table(report: AuditReport) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in HEAD:
        table.add_column(
            name,
            justify="right" if name in ("of bound", "z") else "left",
            no_wrap=name in ("run", "precision"),
        )
    for variant in report.variants:
        style = STYLES[variant.verdict]
        table.add_row(*(Text(cell, style=style) for cell in _cells(variant)))
    return table


def _cells(variant: VariantAudit) -> tuple[str, ...]:
    first = variant.first_violation
    where = words.NOTHING
    if first is not None:
        where = f"layer {first.layer}, token {first.token}, {first.tensor}"
    verdict = "rounding" if variant.verdict == CONSISTENT else variant.verdict
    return (
        variant.variant,
        variant.precision,
        verdict,
        words.number(variant.ratio),
        words.number(variant.z),
        where,
    )


def _notes(report: AuditReport) -> list[str]:
    """Why runs are missing, and the runs' logits beside each other."""
    reasons: dict[str, list[str]] = {}
    for variant in report.variants:
        if variant.reason is not None:
            reasons.setdefault(variant.reason, []).append(variant.variant)
    lines = [
        f"not run: {', '.join(dict.fromkeys(names))}: {reason}"
        for reason, names in reasons.items()
    ]
    lines += [
        f"{variant.variant} in {variant.precision}: {variant.unbounded:,} of "
        f"{variant.elements:,} elements have no finite bound"
        for variant in report.variants
        if variant.unbounded
    ]
    lines += _known(report)
    apart = [
        (logits.rel_l2 or 0.0, logits.flips, variant, logits.against)
        for variant in report.variants
        for logits in variant.logits
        if logits.against != "fp64 reference"
    ]
    if apart:
        distance, flips, variant, against = max(apart, key=lambda row: row[:2])
        lines.append(
            f"logits furthest apart: {variant.variant} and {against} in "
            f"{variant.precision}, rel L2 {words.number(distance)}, {flips} top tokens "
            "changed"
        )
    return lines


def _known(report: AuditReport) -> list[str]:
    """What is known of the bugs, each defect once with the ways that met it."""
    ways: dict[str, list[str]] = {}
    for variant in report.variants:
        if variant.known is not None:
            ways.setdefault(str(variant.known), []).append(variant.variant)
    return [f"{', '.join(dict.fromkeys(v))}: {text}" for text, v in ways.items()]


def _plain(text: str) -> str:
    for sign in ("\\", "`", "*", "_", "<", "[", "|"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _bullets(lines) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)
