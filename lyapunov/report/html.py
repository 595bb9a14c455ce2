"""A result as one self-contained HTML page: no script, nothing from the network."""

import importlib.resources
from collections.abc import Sequence
from typing import Any

from lyapunov.report._sections import (
    MARKS,
    Column,
    Columns,
    Document,
    Form,
    Section,
    Table,
    documents_of,
    meant,
)
from lyapunov.report._write import require


PAGE, GAP = 150, 3
"""Characters that a page of 1280 pixels has room for, and those between columns."""


def to_html(results: Any) -> str:
    """Write a page of one result, or of several one after the other.

    **Arguments:**

    - `results`: a `Report`, an `AuditReport` or a `Plan`, or a sequence of them and
        of `{"checkpoint": ..., "error": ...}`.

    **Returns:**

    A complete HTML document.

    **Raises:** `MissingExtraError` where jinja2 or matplotlib is not installed.
    """
    require(".html")
    import jinja2

    documents = documents_of(results)
    views = [
        (document, _drawn(meant(document.sections, Form.PAGE), f"r{i}-"))
        for i, document in enumerate(documents)
    ]
    home = importlib.resources.files("lyapunov.report")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.from_string(home.joinpath("page.html.j2").read_text("utf-8"))
    return template.render(
        views=views,
        css=home.joinpath("page.css").read_text("utf-8"),
        title=_title(documents),
        marks=MARKS,
        page=Form.PAGE,
        pieces=_pieces,
    )


def _pieces(table: Table, group: Columns) -> list[list[Column]]:
    def width(column: Column) -> int:
        head = max(map(len, (column.long or column.head).split()))
        return GAP + max([head, *(len(column.text(row, 3)) for row in table.rows)])

    return table.pieces(group, width, PAGE)


def _drawn(
    sections: Sequence[Section], prefix: str
) -> list[tuple[Section, Sequence[Any]]]:
    """Sections with their pictures, without those that were to have some and have
    none."""
    drawn = [(one, one.pictures(prefix) if one.pictures else ()) for one in sections]
    return [(one, found) for one, found in drawn if found or not one.pictures]


def _title(documents: Sequence[Document]) -> str:
    if len(documents) != 1:
        return f"lyapunov-check: {len(documents)} checkpoints"
    return f"{documents[0].title}: {documents[0].word}"
