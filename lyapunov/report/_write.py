"""Reports into files: the form by suffix, the whole file or none of it."""

import contextlib
import importlib.util
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lyapunov._errors import MissingExtraError, OutputError
from lyapunov.results._audit import AuditReport
from lyapunov.results._check import Report


SUFFIXES = (".json", ".html", ".md")


def check_target(path: Path) -> None:
    """Make sure, before any work, that a report can be written there.

    **Raises:** `OutputError` for an unknown suffix, a folder, and a folder that is
    missing or read-only; `MissingExtraError` where HTML's libraries are missing.
    """
    if path.is_dir():
        raise OutputError(
            f"cannot write the report: {path} is a folder",
            hint=f"name a file in it: {path / 'report.html'}",
        )
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(
            f"the suffix of {path} names no form of the report",
            hint=f"use one of {', '.join(SUFFIXES)}",
        )
    if path.suffix.lower() == ".html":
        require_html()
    folder = path.resolve().parent
    if not folder.is_dir():
        raise OutputError(
            f"cannot write {path}: no folder {folder}", hint=f"mkdir -p {folder}"
        )
    try:
        handle, probe = tempfile.mkstemp(prefix=".lyapunov-", dir=folder)
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror} ({folder})",
            hint="choose a folder that you may write to",
        ) from error


def require_html() -> None:
    """**Raises:** `MissingExtraError` where jinja2 or matplotlib is missing."""
    missing = [
        name
        for name in ("jinja2", "matplotlib")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise MissingExtraError(
            f"an HTML report needs {' and '.join(missing)}, not installed here",
            hint="pip install 'lyapunov-check[report]'",
        )


def render(
    suffix: str, entries: Sequence[Report | AuditReport | Mapping[str, Any]]
) -> str:
    """The text of a report file.

    **Arguments:**

    - `suffix`: `.json`, `.html` or `.md`.
    - `entries`: reports, and `{"checkpoint": ..., "error": ...}` for checkpoints
        that could not be checked.
    """
    if suffix == ".json":
        from lyapunov.report.json import combined, dump

        return dump(combined(entries))
    if suffix == ".md":
        from lyapunov.report.markdown import to_markdown

        return to_markdown(entries)
    from lyapunov.report.html import to_html

    return to_html(entries)


def write(path: Path, text: str) -> None:
    """Write the whole file or leave what was there: a temporary file in the same
    folder, then a rename. The temporary file goes whatever happens, Ctrl-C too.

    **Raises:** `OutputError` where the disk refuses.
    """
    target = path.resolve()
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=f".{target.name}-", suffix=".part", dir=target.parent
        )
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}",
            hint="the file that was there is unchanged",
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _mode(target: Path) -> int:
    """The mode that the file has, or that a new file would get."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
