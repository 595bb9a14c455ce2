"""A result on a terminal: facts, tables, findings, verdict."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lyapunov.findings._catalogue import ERROR
from lyapunov.report import _words as words
from lyapunov.report._sections import (
    MARKS,
    Column,
    Columns,
    Document,
    Form,
    Line,
    Section,
    Table as View,
    document_of,
    meant,
)


_ASCII_HEAD = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
_STYLES = {
    "held": "bold green",
    "findings": "bold red",
    "incomplete": "bold yellow",
    "": "bold",
}
_STAND_INS = {"λ": "exp", "×": "x", "–": "-", "✓": "+", "✗": "x", "±": "+-", "…": "~"}
_SIGNS = "".join(_STAND_INS) + "─╴"


def to_table(
    result: Any,
    *,
    width: int = 80,
    color: bool = False,
    encoding: str | None = "utf-8",
    quiet: bool = False,
    verbose: bool = False,
    rows: int | None = None,
) -> str:
    """Show a result as a terminal does.

    **Arguments:**

    - `result`: a `Report`, an `AuditReport` or a `Plan`.
    - `width`: columns at hand; 80 are enough for two precisions.
    - `color`: whether to write colour codes. Colour never says anything alone.
    - `encoding`: of the terminal; one without the signs gets ASCII.
    - `quiet`: findings, verdict and recommendation only.
    - `verbose`: also what was predicted and certified of the logits, and where each
      sublayer's error and bound come from.
    - `rows`: of tables the last so many alone; None is all.

    **Returns:**

    Text that ends in a newline.
    """
    try:
        _SIGNS.encode(encoding or "ascii")
        stand_ins = {}
    except (UnicodeEncodeError, LookupError):
        stand_ins = _STAND_INS
    stream = io.StringIO()
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
        safe_box=bool(stand_ins),
    )
    form = Form.TERMINAL | Form.VERBOSE if verbose else Form.TERMINAL
    _Terminal(console, stand_ins, form, rows).show(document_of(result), quiet)
    text = "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
    if stand_ins:
        text = text.replace("…", "~")
        text = text.encode(encoding or "ascii", "replace").decode(encoding or "ascii")
    return text


class _Terminal:
    """Writes a document to a console."""

    def __init__(
        self,
        console: Console,
        stand_ins: dict[str, str],
        form: Form,
        rows: int | None = None,
    ):
        self.console = console
        self.last = slice(None if rows is None else -rows, None)
        self.signs = str.maketrans(stand_ins)
        self.form = form

    def text(self, text: str, style: str = "") -> Text:
        return Text(text.translate(self.signs), style=style)

    def put(self, text: str, style: str = "") -> None:
        self.console.print(self.text(text, style))

    def show(self, document: Document, quiet: bool) -> None:
        if quiet:
            self.put(document.title, "bold")
        else:
            grid = Table.grid(padding=(0, 2))
            grid.add_column(style="bold", no_wrap=True)
            grid.add_column(overflow="fold")
            grid.add_row("checkpoint", self.text(document.title, "bold"))
            for fact in document.facts:
                grid.add_row(self.text(fact.label), self.text(fact.text))
            self.console.print(grid)
        if document.verdict:  # else nobody knows yet
            self.console.print()
            mark = MARKS[document.style]
            self.put(f"{mark} {document.sentence}".strip(), _STYLES[document.style])
            for advice in document.advice:
                self.put(advice)
            if document.given and not quiet:
                self.lines(self.given(document.given))
        if document.findings:
            self.console.print()
            self.findings(document.findings)
        for section in () if quiet else meant(document.sections, self.form):
            self.section(section)
        if document.aside:
            self.console.print()
            self.put(document.aside, "dim")

    def given(self, lines: Sequence[Line]) -> list[Line]:
        """What to type, a line a stack; why, and where nothing is needed, if asked."""
        if self.form & Form.VERBOSE:
            return list(lines)
        typed: dict[str, list[str]] = {}
        for line in lines:
            if not line.code.startswith("none"):
                typed.setdefault(line.label, []).append(line.code)
        return [Line(label, "", " ".join(codes)) for label, codes in typed.items()]

    def section(self, section: Section) -> None:
        self.console.print()
        self.put(section.title, "bold")
        if section.lines:
            self.lines(meant(section.lines, self.form))
        for i, table in enumerate(self.tables(section.table) if section.table else ()):
            if i:
                self.console.print()
            self.console.print(table)
        for note in meant(section.notes, self.form):
            self.put(note.text, "dim")

    def lines(self, lines: Sequence[Line]) -> None:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(max_width=26, overflow="fold")
        grid.add_column(overflow="fold")
        for line in lines:
            told = f"({line.text})" if line.code and line.text else line.text
            text = "  ".join(filter(None, [line.code, told]))
            grid.add_row(self.text(f"  {line.label}"), self.text(text))
        self.console.print(grid)

    def findings(self, groups: Sequence[words.Group]) -> None:
        """A line for each code and precision."""
        grid = Table.grid(padding=(0, 1))
        for _ in range(3):
            grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for group in groups:
            style = "bold red" if group.severity == ERROR else "bold yellow"
            where = self.text(f"{group.where}: ", "bold")
            grid.add_row(
                Text(group.severity, style=style),
                Text(group.code, style="bold"),
                self.text(group.precision or ""),
                Text.assemble(where, self.text(group.message)),
            )
        self.console.print(grid)

    def tables(self, view: View) -> list[Table]:
        """One table, airy or close, where everything fits, else one for each group of
        columns; with the paths where they fit too."""
        view = view.chosen(self.form)
        view = replace(view, rows=view.rows[self.last])
        paths = next((key for key in view.keys if key.path), None)
        shown: list[list[str] | None] = [None]
        if paths is not None:
            full = [paths.text(row) for row in view.rows]
            shown = [full, words.short_modules(full), None]
        for i, names in enumerate(shown):
            for gap in (1, 0) if i or paths is None else (1,):
                table = self.table(view, view.groups, names, gap)
                if self.fits(table):
                    return [table]
        made = (self.table(view, view.groups[:1], names) for names in shown)
        first = next(filter(self.fits, made), None)
        parts = view.groups[1:] if first else view.groups
        rest = [t for group in parts for t in self.split(view, group)]
        return [first, *rest] if first else rest

    def split(self, view: View, group: Columns) -> list[Table]:
        """A group of columns by itself, in as many tables as it needs to fit."""
        made, left = [], list(group.columns)
        while left:
            n = len(left)
            part = lambda: replace(group, columns=left[:n])  # noqa: B023
            while n > 1 and not self.fits(self.table(view, [part()], None)):
                n -= 1
            made.append(self.table(view, [part()], None))
            left = left[n:]
        return made

    def fits(self, table: Table) -> bool:
        unbounded = self.console.options.update(width=10_000)
        wide = Measurement.get(self.console, unbounded, table).maximum
        return wide <= self.console.width

    def table(
        self,
        view: View,
        groups: Sequence[Columns],
        paths: Sequence[str] | None,
        gap: int = 1,
        stacked: bool = False,
    ) -> Table:
        """Groups of columns behind the keys, the paths as given; heads in two lines
        where they have names, or where one line is too wide."""
        table = Table(
            box=_ASCII_HEAD if self.signs else SIMPLE_HEAD,
            padding=(0, gap, 0, 0),
            pad_edge=False,
            show_edge=False,
            header_style="bold",
            collapse_padding=True,
        )
        keys = [key for key in view.keys if paths is not None or not key.path]
        heads = [(key, "", key.head) for key in keys]
        for group in groups:
            # a name goes over the first of its columns, a little apart from the others
            for i, column in enumerate(group.columns):
                over, _, under = column.head.rpartition(" ")
                if group.name:
                    over, under = ("" if i else group.name), column.head
                    if not i and not column.word:
                        over, under = f" {over}", f" {under}"
                heads.append((column, over, under))
        named = any(group.name for group in groups)
        for column, over, under in heads:
            table.add_column(
                self.text(f"{over}\n{under}" if named or stacked else column.head),
                justify="left" if column.word else "right",
                no_wrap=not column.wrap,
            )
        for place, row in enumerate(view.rows):
            table.add_row(
                *(
                    self.text(paths[place])
                    if column.path and paths is not None
                    else self.cell(column, row)
                    for column, _, _ in heads
                )
            )
        if stacked or named or self.fits(table):
            return table
        return self.table(view, groups, paths, gap, stacked=True)

    def cell(self, column: Column, row: Any) -> Text:
        return self.text(column.text(row), "bold red" if column.alarms(row) else "")
