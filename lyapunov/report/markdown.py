"""A result as Markdown, for an issue or a model card."""

from collections.abc import Iterator
from typing import Any

from lyapunov.report._sections import (
    Column,
    Document,
    Form,
    Line,
    Section,
    Table,
    documents_of,
    meant,
)
from lyapunov.report._words import Group


def to_markdown(results: Any) -> str:
    """Write Markdown of one result, or of several one after the other.

    **Arguments:**

    - `results`: a `Report`, an `AuditReport` or a `Plan`, or a sequence of them and
        of `{"checkpoint": ..., "error": ...}`.

    **Returns:**

    Text that ends in a newline.
    """
    parts = ["\n\n".join(_blocks(document)) for document in documents_of(results)]
    return "\n\n".join(parts) + "\n"


def _blocks(document: Document) -> Iterator[str]:
    yield f"# {_plain(document.title)}"
    yield f"**{_plain(document.sentence)}**"
    yield from map(_plain, document.advice)
    if document.given:
        yield _lines(document.given)
    if document.aside:
        yield _plain(document.aside)
    facts = [*document.facts, *([Line("", document.tool)] if document.tool else [])]
    if facts:
        yield _lines(facts)
    if document.findings is not None:
        yield "## Findings"
        yield "\n".join(map(_finding, document.findings)) or "None."
    for section in meant(document.sections, Form.MARKDOWN):
        yield from _section(section)


def _section(section: Section) -> Iterator[str]:
    yield f"{'#' * section.level} {_plain(section.title)}"
    if section.lines:
        yield _lines(section.lines)
    if section.table is not None:
        yield _table(section.table.chosen(Form.MARKDOWN))
    for note in meant(section.notes, Form.MARKDOWN):
        yield _plain(note.text)


def _lines(lines: list[Line] | Any) -> str:
    return "\n".join(f"- {_line(line)}" for line in lines)


def _line(line: Line) -> str:
    text = _plain(line.text)
    if line.code:
        text = f"`{line.code}` ({text})" if text else f"`{line.code}`"
    return f"{_plain(line.label)}: {text}" if line.label else text


def _finding(group: Group) -> str:
    place = f"{group.precision}, {group.where}" if group.precision else group.where
    return (
        f"- **{group.code}** {group.title} ({group.severity}; {_plain(place)}): "
        f"{_plain(group.message)}"
    )


def _table(table: Table) -> str:
    columns = [("", key) for key in table.keys]
    columns += [(group.name, c) for group in table.groups for c in group.columns]
    lines = [
        [_cell(f"{name} {column.head}".strip()) for name, column in columns],
        ["---" if column.word else "---:" for _, column in columns],
        *([_value(column, row) for _, column in columns] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _value(column: Column, row: Any) -> str:
    text = _cell(column.text(row))
    return f"**{text}**" if column.alarms(row) else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "\\<")


def _plain(text: str) -> str:
    """Text from outside, so that it neither marks up nor breaks out of its line."""
    escaped = " ".join(text.split())
    for sign in ("\\", "`", "*", "_", "<", "[", "|"):
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped
