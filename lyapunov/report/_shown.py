"""What `print(result)` and a notebook show of a result."""

import html
import shutil
import sys
from typing import Any

from lyapunov._errors import MissingExtraError
from lyapunov.report.html import to_html
from lyapunov.report.table import to_table


def as_text(result: Any) -> str:
    """Show the table, as wide as the terminal and in what its encoding can take."""
    width = shutil.get_terminal_size((80, 24)).columns
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return to_table(result, width=width, encoding=encoding).rstrip("\n")


def as_html(result: Any) -> str:
    """Show the page in a frame, whose styles stay inside; without the libraries of the
    page the table."""
    try:
        page = to_html(result)
    except MissingExtraError:
        return f"<pre>{html.escape(to_table(result, width=120))}</pre>"
    style = "width: 100%; height: 80vh; border: 0"
    return f'<iframe srcdoc="{html.escape(page)}" style="{style}"></iframe>'
