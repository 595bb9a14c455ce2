"""A report as text: terminal table, JSON, Markdown, one self-contained HTML page.

Everything here shows; nothing here computes. Imports happen on first use, so that
no one pays for a format that is not asked for.
"""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from lyapunov.report.audit import (
        audit_to_json as audit_to_json,
        audit_to_markdown as audit_to_markdown,
        audit_to_table as audit_to_table,
    )
    from lyapunov.report.html import to_html as to_html
    from lyapunov.report.json import to_json as to_json
    from lyapunov.report.markdown import to_markdown as to_markdown
    from lyapunov.report.table import to_table as to_table

__all__ = [
    "audit_to_json",
    "audit_to_markdown",
    "audit_to_table",
    "to_html",
    "to_json",
    "to_markdown",
    "to_table",
]

_HOMES = {"to_html": "html", "to_json": "json", "to_markdown": "markdown"}
_HOMES["to_table"] = "table"
_HOMES |= {f"audit_to_{form}": "audit" for form in ("json", "markdown", "table")}


def __getattr__(name: str):
    """Look a public name up where it lives (PEP 562)."""
    if name in _HOMES:
        home = importlib.import_module(f"lyapunov.report.{_HOMES[name]}")
        return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
