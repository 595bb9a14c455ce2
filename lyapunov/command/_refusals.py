"""What goes together with nothing, or could not be written: refused before the work."""

import dataclasses
from pathlib import Path
from typing import Any

from lyapunov._errors import OutputError, UsageError
from lyapunov.command._declare import AUDIT, BLOCKS, DUMP, Declared, name_of
from lyapunov.implementations._registry import reproducible_names


def refuse(options: Any) -> None:
    """Refuse options that contradict each other, and those that nobody would look at.

    **Raises:** `UsageError`; `OutputError` for a file that cannot be written, and
    `BaselineError` for a baseline that cannot be read.
    """
    if options.quiet and options.verbose:
        raise UsageError("-q and -v exclude each other", hint="give one of them")
    if options.tokens is not None and options.text is not None:
        raise UsageError("--tokens and --text exclude each other", hint="give one")
    if options.reproduce is not None:
        _refuse_script(options.reproduce, options.source)
    for field in dataclasses.fields(options):
        said: Declared = field.metadata["declared"]
        if getattr(options, field.name) != field.default:
            _refuse_unread(name_of(field.name, said), said, options.question)
    _ = options.earlier
    if options.output:
        from lyapunov.report._write import check_target

        for path in options.output:
            check_target(path)


def _refuse_unread(shown: str, said: Declared, question: str) -> None:
    """Refuse an option that the question does not look at."""
    if question in said.of:
        return
    of_a_dump = question == DUMP and AUDIT in said.of
    asked = DUMP if of_a_dump else f"--{AUDIT if question == DUMP else question}"
    if question == BLOCKS:
        asked = question
    raise UsageError(f"{shown} is not for {asked}", hint="leave it out")


def _refuse_script(target: Path, source: str | None) -> None:
    """Refuse a script of what is not found, or where none can be written."""
    shown = reproducible_names()
    if source not in shown:
        raise UsageError(
            f"--reproduce shows what --audit {' or '.join(shown)} finds",
            hint=f"--audit {shown[0]} --reproduce {target}",
        )
    if target.suffix != ".py" or target.is_dir() or not target.parent.is_dir():
        raise OutputError(
            f"cannot write a script to {target}",
            hint="name a file that ends in .py, in a folder that is there",
        )
