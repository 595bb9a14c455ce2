"""Results into files: the form by suffix, the whole file or none of it."""

import contextlib
import importlib.util
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lyapunov._errors import MissingExtraError, OutputError


PICTURES = (".pdf", ".svg", ".png")
NEEDS = {
    ".html": ("an HTML report", ("jinja2", "matplotlib")),
    **dict.fromkeys(PICTURES, ("a figure", ("matplotlib",))),
}
SUFFIXES = (".json", ".html", ".md", ".tex", ".csv", *PICTURES)


def check_target(path: Path) -> None:
    """Make sure, before any work, that a report can be written there.

    **Raises:** `OutputError` for an unknown suffix, a folder, and a folder that is
    missing or read-only; `MissingExtraError` where a library of the form is missing.
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
    require(path.suffix.lower())
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


def require(suffix: str) -> None:
    """**Raises:** `MissingExtraError` where a library of a form is not installed."""
    what, names = NEEDS.get(suffix, ("", ()))
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{what} needs {' and '.join(missing)}, not installed here",
            hint="pip install 'lyapunov-check[report]'",
        )


def files(path: Path, entries: Sequence[Any]) -> dict[Path, bytes]:
    """What a target becomes: one file, or one for each figure.

    **Arguments:**

    - `entries`: results, and `{"checkpoint": ..., "error": ...}` for checkpoints that
        could not be checked.

    **Raises:** `OutputError` where figures are asked for and there are none.
    """
    suffix = path.suffix.lower()
    if suffix not in PICTURES:
        return {path: _text(suffix, entries).encode()}
    from lyapunov.report._drawing import pages
    from lyapunov.report._sections import pictures_of

    drawn = pictures_of(entries)
    if not drawn:
        raise OutputError(
            f"there are no figures for {path}",
            hint="only what a check measured is drawn: use .html or .md",
        )
    if suffix == ".pdf":
        return {path: pages(drawn)}
    return {path.with_stem(f"{path.stem}-{p.name}"): p.file(suffix) for p in drawn}


def _text(suffix: str, entries: Sequence[Any]) -> str:
    if suffix == ".json":
        from lyapunov.report.json import combined, dump

        return dump(combined(entries))
    if suffix == ".csv":
        from lyapunov.report._records import to_csv

        return to_csv(entries)
    if suffix == ".md":
        from lyapunov.report.markdown import to_markdown

        return to_markdown(entries)
    if suffix == ".tex":
        from lyapunov.report.latex import to_latex

        return to_latex(entries)
    from lyapunov.report.html import to_html

    return to_html(entries)


def save(path: Path, entries: Sequence[Any]) -> list[Path]:
    """Write results to a target that was checked; returns the files."""
    made = files(path, entries)
    for one, content in made.items():
        write(one, content)
    return list(made)


def write(path: Path, content: bytes) -> None:
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
        with os.fdopen(handle, "wb") as file:
            file.write(content)
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
