"""A result as Markdown, for an issue or a model card."""

from collections.abc import Iterable, Iterator
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

    - `results`: a `Report`, an `AuditReport`, a `Plan` or a `SpectrumResult`, or a
        sequence of them and of `{"checkpoint": ..., "error": ...}`.

    **Returns:**

    Text that ends in a newline.
    """
    return Markdown().write(results)


class Markdown:
    """Writes documents for people who keep them; a subclass has other marks."""

    def write(self, results: Any) -> str:
        """All documents as one text."""
        parts = ["\n\n".join(self.blocks(one)) for one in documents_of(results)]
        return "\n\n".join(parts) + "\n"

    def blocks(self, document: Document) -> Iterator[str]:
        """What is told of a result, in order."""
        yield self.heading(1, document.title)
        yield self.strong(self.plain(document.sentence))
        yield from map(self.plain, document.advice)
        if document.given:
            yield self.lines(document.given)
        if document.aside:
            yield self.plain(document.aside)
        tool = [Line("", document.tool)] if document.tool else []
        if facts := [*document.facts, *tool]:
            yield self.lines(facts)
        if document.findings is not None:
            yield self.heading(2, "Findings")
            found = [self.finding(group) for group in document.findings]
            yield self.items(found) if found else "None."
        for section in meant(document.sections, Form.MARKDOWN):
            yield from self.section(section)

    def section(self, section: Section) -> Iterator[str]:
        """A part of a document."""
        yield self.heading(section.level, section.title)
        if section.lines:
            yield self.lines(section.lines)
        if section.table is not None:
            yield self.table(section.table.chosen(Form.MARKDOWN))
        for note in meant(section.notes, Form.MARKDOWN):
            yield self.plain(note.text)

    def lines(self, lines: Iterable[Line]) -> str:
        """Sentences with what they are about."""
        return self.items(map(self.line, lines))

    def line(self, line: Line) -> str:
        """A sentence with what it is about."""
        text = self.plain(line.text)
        if line.code:
            code = self.code(line.code)
            text = f"{code} ({text})" if text else code
        return f"{self.plain(line.label)}: {text}" if line.label else text

    def finding(self, group: Group) -> str:
        """Findings of one code, told together."""
        place = f"{group.precision}, {group.where}" if group.precision else group.where
        return (
            f"{self.strong(group.code)} {group.title} ({group.severity}; "
            f"{self.plain(place)}): {self.plain(group.message)}"
        )

    def value(self, column: Column, row: Any) -> str:
        """A cell; what is to be seen at once stands out."""
        text = self.cell(column.text(row))
        return self.strong(text) if column.alarms(row) else text

    # ---- marks

    def heading(self, level: int, text: str) -> str:
        """A heading of level 1 to 3."""
        return f"{'#' * level} {self.plain(text)}"

    def strong(self, text: str) -> str:
        """What stands out."""
        return f"**{text}**"

    def code(self, text: str) -> str:
        """What is typed."""
        return f"`{text}`"

    def items(self, texts: Iterable[str]) -> str:
        """A list."""
        return "\n".join(f"- {text}" for text in texts)

    def table(self, table: Table) -> str:
        """All groups of columns beside each other."""
        columns = [("", key) for key in table.keys]
        columns += [(group.name, c) for group in table.groups for c in group.columns]
        lines = [
            [self.cell(f"{name} {column.head}".strip()) for name, column in columns],
            ["---" if column.word else "---:" for _, column in columns],
            *([self.value(column, row) for _, column in columns] for row in table.rows),
        ]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def cell(self, text: str) -> str:
        """The text of a cell, so that it ends none."""
        return text.replace("|", "\\|").replace("*", "\\*").replace("<", "\\<")

    def plain(self, text: str) -> str:
        """Text from outside, so that it neither marks up nor breaks out of its line."""
        escaped = " ".join(text.split())
        for sign in ("\\", "`", "*", "_", "<", "[", "|"):
            escaped = escaped.replace(sign, f"\\{sign}")
        return escaped
