"""What every form of a result is made from: a document of sections.

A document is made once from a result, by the module that knows its fields (`_of_check`,
`_of_audit`, `_of_plan`); a form (terminal, Markdown, page) knows sections alone.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lyapunov.report import _words as words
from lyapunov.report._drawing import Picture


MARKS = {"held": "✓", "findings": "✗", "incomplete": "!", "": ""}
"""Before a verdict, by its style."""


class Form(enum.Flag):
    """Where a section, column or note is meant to be shown."""

    TERMINAL = enum.auto()
    VERBOSE = enum.auto()
    """On a terminal that was asked for more."""
    MARKDOWN = enum.auto()
    PAGE = enum.auto()
    SHORT = TERMINAL | MARKDOWN
    WRITTEN = MARKDOWN | PAGE
    EVERY = TERMINAL | MARKDOWN | PAGE


class Meant:
    """What has a `forms`."""

    forms: Form

    def for_form(self, form: Form) -> bool:
        """Whether it is meant for a form."""
        return bool(self.forms & form)


Kind = TypeVar("Kind", bound=Meant)


def meant(things: Sequence[Kind], form: Form) -> list[Kind]:
    """Those that are meant for a form."""
    return [thing for thing in things if thing.for_form(form)]


def as_it_is(value: Any, digits: int = 0) -> str:
    """Names, and whatever else is no number; a dash for nothing."""
    del digits
    return words.NOTHING if value is None else str(value)


def whole(value: int | None, digits: int = 0) -> str:
    """A count in full: `393,216`."""
    del digits
    return words.NOTHING if value is None else f"{value:,}"


def undigited(show: Callable[[Any], str]) -> Callable[[Any, int], str]:
    """A way of showing that has digits of its own."""
    return lambda value, digits: show(value)


@dataclass(frozen=True)
class Column(Meant):
    """One column of a table: where its values come from and how they are shown."""

    head: str
    of: Callable[[Any], Any]
    """The value in a row; None where the row has none."""
    show: Callable[[Any, int], str] = words.number
    """The text of a value, with so many significant digits."""
    alarm: Callable[[Any], bool] = lambda value: False
    """Whether a value is to be seen at once: `!37`."""
    word: bool = False
    """Whether it holds words, which stand to the left."""
    wrap: bool = False
    """Whether its words may go on in a second line."""
    path: bool = False
    """Whether it holds dotted paths, which may be shortened or left out."""
    long: str = ""
    """The head where there is room."""
    forms: Form = Form.EVERY
    figure: str = ""
    """The field of the report without which it is left out."""

    def text(self, row: Any, digits: int = 2) -> str:
        """What the table says of a row."""
        value = self.of(row)
        return f"{'!' if self.alarms(row) else ''}{self.show(value, digits)}"

    def alarms(self, row: Any) -> bool:
        """Whether the row's value is to be seen at once."""
        value = self.of(row)
        return value is not None and self.alarm(value)


@dataclass(frozen=True)
class Columns:
    """Columns that belong together, of one execution say; a form may show each such
    group beside the others or in a table of its own."""

    columns: Sequence[Column]
    name: str = ""
    """Goes over them where they stand beside others."""
    title: str = ""
    """Goes over them where they stand alone."""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows, the columns that say which row it is, and groups of columns."""

    rows: Sequence[Any]
    keys: Sequence[Column]
    groups: Sequence[Columns]

    def chosen(self, form: Form) -> "Table":
        """The table as a form is to show it: its own columns, and no empty paths."""
        keys = [
            key
            for key in meant(self.keys, form)
            if not key.path or any(key.of(row) is not None for row in self.rows)
        ]
        groups = [
            Columns(meant(g.columns, form), g.name, g.title, g.note)
            for g in self.groups
        ]
        return Table(self.rows, keys, groups)

    def pieces(
        self, group: Columns, width: Callable[[Column], int], room: int
    ) -> list[list[Column]]:
        """The columns of tables one under the other, none wider than there is room.

        The first has all that says which row it is, the others what is short of it.
        """
        keys = list(self.keys)
        short = [key for key in keys if not key.path]
        found = [keys]
        for column in group.columns:
            whole = sum(map(width, [*found[-1], column])) > room
            if whole and len(found[-1]) > len(keys):
                found.append(short.copy())
            found[-1] = [*found[-1], column]
        return found


@dataclass(frozen=True)
class Line(Meant):
    """A sentence with what it is about before it, or a text to be typed."""

    label: str
    text: str
    code: str = ""
    forms: Form = Form.EVERY


@dataclass(frozen=True)
class Note(Meant):
    """How the section is to be read."""

    text: str
    forms: Form = Form.EVERY


@dataclass(frozen=True)
class Section(Meant):
    """A part of a document, in the order: lines, table, notes, pictures."""

    title: str
    lines: Sequence[Line] = ()
    table: Table | None = None
    notes: Sequence[Note] = ()
    pictures: Callable[[str], Sequence[Picture]] | None = None
    """Draws them, with a prefix for their ids."""
    level: int = 2
    """Of the heading; 3 belongs to the section before."""
    forms: Form = Form.EVERY

    @property
    def empty(self) -> bool:
        """Whether it would be a heading alone."""
        return not (self.lines or self.table or self.pictures)

    def for_form(self, form: Form) -> bool:
        """Whether it is meant for a form, and something in it, too."""
        said = self.table or self.pictures or meant(self.lines, form)
        return super().for_form(form) and bool(said)


@dataclass(frozen=True)
class Document:
    """A result in words and tables, of which a form leaves out what is not for it."""

    title: str
    """The checkpoint."""
    verdict: str
    word: str
    """The verdict in a word or two, for the title of a window."""
    style: str = ""
    """held, findings, incomplete: a mark and a colour; empty has none."""
    counts: str = ""
    advice: Sequence[str] = ()
    given: Sequence[Line] = ()
    """What follows for serving stacks: their names, and what to type."""
    aside: str = ""
    """Advice that may be overlooked."""
    facts: Sequence[Line] = ()
    findings: Sequence[words.Group] | None = None
    """None where nobody looked for any."""
    sections: Sequence[Section] = field(default_factory=list)
    tool: str = ""

    @property
    def sentence(self) -> str:
        """The verdict with its counts."""
        return f"{self.verdict} ({self.counts})" if self.counts else self.verdict


def document_of(result: Any) -> Document:
    """The document of a report, an audit, a ranking, a plan, a spectrum, or of a
    checkpoint of which there is none: `{"checkpoint": ..., "error": ...}`."""
    from lyapunov.results._audit import AuditReport
    from lyapunov.results._check import Report
    from lyapunov.results._ranking import WeightRanking

    if isinstance(result, Mapping):
        message = result["error"]["message"]
        told = "Could not be checked"
        return Document(
            result["checkpoint"]["source"],
            f"{told}: {message}",
            told.lower(),
            "incomplete",
        )
    if isinstance(result, Report):
        from lyapunov.report import _of_check

        return _of_check.document(result)
    if isinstance(result, AuditReport):
        from lyapunov.report import _of_audit

        return _of_audit.document(result)
    if isinstance(result, WeightRanking):
        from lyapunov.report import _of_ranking

        return _of_ranking.document(result)
    if hasattr(result, "exponents"):
        from lyapunov.report import _of_spectrum

        return _of_spectrum.document(result)
    from lyapunov.report import _of_plan

    return _of_plan.document(result)


def documents_of(results: Any) -> list[Document]:
    """The documents of one result, or of several."""
    several = isinstance(results, Sequence)
    return [document_of(one) for one in (results if several else [results])]


def pictures_of(results: Any) -> list[Picture]:
    """The figures of one result, or of several under names of their own."""
    documents = documents_of(results)
    return [
        picture
        for i, document in enumerate(documents)
        for section in document.sections
        if section.pictures
        for picture in section.pictures(f"r{i}-" if len(documents) > 1 else "")
    ]


def written(result: Any) -> list[Section]:
    """What a report or an audit rests on: sections for a form that is kept."""
    told = [Line("", text) for text in result.assumptions or ["None given."]]
    sums = [Line(file["name"], "", file["sha256"]) for file in result.checkpoint.files]
    return [
        Section(title, lines=lines, forms=Form.WRITTEN)
        for title, lines in (
            ("Assumptions", told),
            ("Settings", _pairs(result.settings, "default")),
            ("Environment", _pairs(result.environment, "none")),
            ("Files", [*sums, Line("tokens", "", result.tokens.sha256)]),
        )
    ]


def _pairs(values: Mapping[str, Any], nothing: str) -> list[Line]:
    return [Line(key, setting(value, nothing)) for key, value in values.items()]


def setting(value: Any, nothing: str = "default") -> str:
    """A setting's value in words, and what to say for None."""
    if isinstance(value, Mapping):
        told = ", ".join(f"{key} {setting(item)}" for key, item in value.items())
        return told or "none"
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value) or "none"
    return nothing if value is None else str(value)
