"""What a result shows of itself, in memory and as files."""

import html
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from lyapunov._errors import MissingExtraError, UsageError
from lyapunov.findings._catalogue import ERROR
from lyapunov.findings._verdict import Verdict, judged
from lyapunov.report import _write as files
from lyapunov.report._records import records
from lyapunov.report._sections import document_of, pictures_of
from lyapunov.report.html import to_html
from lyapunov.report.table import to_table


MOST_LINES = 8
MOST_FINDINGS = 5


def as_text(result: Any) -> str:
    """Show the table, as wide as the terminal and in what its encoding can take."""
    width = shutil.get_terminal_size((80, 24)).columns
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return to_table(result, width=width, encoding=encoding).rstrip("\n")


def as_lines(result: Any) -> str:
    """Show what `repr` does: verdict, advice and facts, in at most 8 lines."""
    document = document_of(result)
    told = [document.sentence, " ".join(document.advice)]
    told = [text for text in told if text]
    room = MOST_LINES - 1 - len(told)
    if len(document.facts) > room:
        room -= 1
    told += [f"{line.label}: {line.text}" for line in document.facts[:room]]
    if left := [line.label for line in document.facts[room:]]:
        told.append(f"and of {', '.join(left)}")
    told = [shorten(line, 100, placeholder=" ...") for line in told]
    return "\n  ".join([f"{type(result).__name__}({document.title})", *told])


def as_html(result: Any) -> str:
    """Show the page in a frame, whose styles stay inside; without the libraries of the
    page the table."""
    try:
        page = to_html(result)
    except MissingExtraError:
        return f"<pre>{html.escape(to_table(result, width=120))}</pre>"
    except UsageError:  # of several trajectories there is a line alone
        return f"<pre>{html.escape(repr(result))}</pre>"
    style = "width: 100%; height: 80vh; border: 0"
    return f'<iframe srcdoc="{html.escape(page)}" style="{style}"></iframe>'


def save(result: Any, path: Path) -> list[Path]:
    """Write a file; the arguments are those of `Shown.save`."""
    files.check_target(path)
    return files.save(path, [result])


def figures(result: Any) -> dict[str, Any]:
    """Draw all figures, each under its name and with its title."""
    files.require(".pdf")
    return {picture.name: picture.titled() for picture in pictures_of(result)}


def to_pandas(result: Any) -> Any:
    """Make a table of plain columns."""
    try:
        import pandas
    except ImportError:
        raise MissingExtraError(
            "a DataFrame needs pandas, not installed here",
            hint="pip install pandas, or save('rows.csv')",
        ) from None
    return pandas.DataFrame.from_records(records(result))


def assert_held(result: Any, fail_on: str) -> None:
    """Raise `AssertionError` for what the command would end with 1 or 2 for."""
    __tracebackhide__ = True
    rules = Verdict.among(result.settings)
    rules = replace(rules, fail_on=fail_on, exit_zero=False)
    word, code = judged(result, rules)
    if code == 0:
        return
    document = document_of(result)
    told = [
        f"{group.severity} {group.code} {group.precision or ''} {group.where}: "
        f"{group.message}"
        for group in document.findings or ()
        if group.severity == ERROR or fail_on != ERROR
    ]
    more = len(told) - MOST_FINDINGS
    told = [*told[:MOST_FINDINGS], *([f"and {more} more"] if more > 0 else [])]
    head = f"{document.title}: {word} (fail_on={fail_on!r})"
    raise AssertionError("\n".join([head, *(" ".join(x.split()) for x in told)]))
