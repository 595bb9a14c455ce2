"""How a command ends: a message, a document and an exit code for whatever happens."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import click

from lyapunov._errors import LyapunovError


INTERRUPTED = 130
STOPPED = {"code": "interrupted", "message": "interrupted", "hint": ""}


def guard(run: Callable[[], int], arguments: Sequence[str]) -> int:
    """Run; turn whatever goes wrong into a message, a document and an exit code."""
    options = (
        arguments[: list(arguments).index("--")] if "--" in arguments else arguments
    )
    debug = "--debug" in options or os.environ.get("LYAPUNOV_DEBUG", "") not in (
        "",
        "0",
    )
    as_json = "--json" in options
    try:
        code = run()
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        return code
    except (KeyboardInterrupt, Interrupted, click.Abort):
        return _end(STOPPED, as_json, INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exc(file=sys.stderr)
        return _end(error_document(error), as_json, 2)


def error_document(error: Exception) -> dict[str, str]:
    """An exception as `code`, `message` and `hint`."""
    if isinstance(error, LyapunovError):
        return error.to_dict()
    if isinstance(error, click.ClickException):
        message = error.format_message().rstrip(".")
        return {
            "code": "usage",
            "message": message[:1].lower() + message[1:],
            "hint": _of_a_server(error) or "`lyapunov-check --help` lists the options",
        }
    if isinstance(error, MemoryError):
        return {
            "code": "memory",
            "message": f"out of memory{f': {error}' if str(error) else ''}",
            "hint": "lower --length or --batch",
        }
    reason = " ".join(str(error).split())
    return {
        "code": "internal",
        "message": f"internal error: {type(error).__name__}"
        + (f": {reason[:300]}" if reason else ""),
        "hint": "run again with --debug, and report the traceback",
    }


def _of_a_server(error: click.ClickException) -> str | None:
    """How to give a server's flag, where one was taken for an option."""
    from lyapunov.implementations._registry import IMPLEMENTATIONS

    given = getattr(error, "option_name", None)
    for one in IMPLEMENTATIONS.values():
        if given in one.launch_flags and not one.needs_gpu:
            return f"flags of a server stand in quotes: --measure '{one.name} {given}'"
    return None


def _end(document: dict[str, str], as_json: bool, code: int) -> int:
    say_error(document)
    if as_json:
        from lyapunov.report.json import dump

        put(dump({"error": document}))
    return code


def say_error(document: dict[str, str], place: str = "") -> None:
    """The two lines of an error on stderr."""
    where = f"{place}: " if place else ""
    if document["code"] == "interrupted":
        # A terminal has just shown ^C.
        start = "\n" if sys.stderr.isatty() else ""
        return click.echo(f"{start}{where}interrupted", err=True)
    click.echo(f"error: {where}{document['message']}", err=True)
    if document["hint"]:
        click.echo(f"hint: {document['hint']}", err=True)
    return None


def put(text: str, color: bool = False) -> None:
    """Write to stdout; a reader that has gone away is no error."""
    try:
        click.echo(text, nl=False, color=color)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain when it flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Interrupted(Exception):
    """Ctrl-C, under a name that click does not answer with a line of its own."""
