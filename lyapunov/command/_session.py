"""One run of the command: check the request, run the checks, show, exit code.

Apart from `_cli` so that parsing stays light: the imports of the work are inside.
"""

import contextlib
import dataclasses
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from lyapunov._errors import UsageError
from lyapunov.command._endings import (
    INTERRUPTED,
    STOPPED,
    Interrupted,
    error_document,
    put,
    say_error,
)
from lyapunov.command._interrupt import interruptible
from lyapunov.command._quiet import hush
from lyapunov.results._check import Report


BUNDLED = "the bundled model"


# --- The run ---------------------------------------------------------------------


@dataclass
class _Outcome:
    """What became of one checkpoint."""

    source: str
    report: Report | None = None
    error: dict[str, str] | None = None

    @property
    def code(self) -> int:
        return 2 if self.report is None else self.report.summary.exit_code

    @property
    def entry(self) -> Report | dict[str, Any]:
        if self.report is not None:
            return self.report
        return {"checkpoint": {"source": self.source}, "error": self.error}


def run_checks(checkpoints: tuple[str, ...], **options: Any) -> int:
    """Check one checkpoint after the other; the exit code is the worst.

    **Arguments:**

    - `checkpoints`: as on the command line; none is the bundled model.
    - `options`: the command's options by name.

    **Returns:**

    0, 1, 2 or 130.

    **Raises:** `LyapunovError` where there is one checkpoint and it cannot be
    checked, and for what is wrong with the request itself.
    """
    if not options["verbose"]:
        hush()
    outputs = _validate(options)
    sources: list[str | None] = list(checkpoints) or [None]
    if options["baseline"] is not None and len(sources) > 1:
        raise UsageError(
            f"--baseline is one report, and there are {len(sources)} checkpoints",
            hint="check them one by one",
        )
    if options["plan"]:
        return _plan(sources, options)
    outcomes: list[_Outcome] = []
    interrupted = False
    for source in sources:
        name = source or BUNDLED
        try:
            report = _with_command(_check(source, options))
        except KeyboardInterrupt:
            if not outcomes:
                raise Interrupted from None
            interrupted = True
            outcomes.append(_Outcome(name, error=STOPPED))
            say_error(STOPPED, name)
            break
        except Exception as error:
            if len(sources) == 1:
                raise
            if options["debug"]:
                traceback.print_exc(file=sys.stderr)
            outcomes.append(_Outcome(name, error=error_document(error)))
            say_error(error_document(error), name)
            continue
        if outcomes and not options["json_output"]:
            put("\n")
        outcomes.append(_Outcome(name, report))
        if report.summary.verdict == "incomplete" and report.summary.checked:
            click.echo("hint: --allow-partial accepts skipped sublayers", err=True)
        elif report.summary.verdict == "unbounded":
            click.echo(
                "hint: another precision may have bounds; --allow-partial accepts few",
                err=True,
            )
        if not options["json_output"]:
            _show(report, options)
    try:
        _deliver(outcomes, outputs, options)
    except KeyboardInterrupt:
        raise Interrupted from None
    return INTERRUPTED if interrupted else max(outcome.code for outcome in outcomes)


def _validate(options: dict[str, Any]) -> list[Path]:
    """Refuse before the long work what would fail after it. Fills in defaults.

    **Returns:** the files to write, each once.
    """
    if options["quiet"] and options["verbose"]:
        raise UsageError("-q and -v exclude each other", hint="give one of them")
    if options["tokens"] is not None and options["text"] is not None:
        raise UsageError("--tokens and --text exclude each other", hint="give one")
    options["precision"] = tuple(dict.fromkeys(options["precision"]))
    from lyapunov.command._audit_session import validate_audit

    validate_audit(options, options["output"])
    if options["audit"] is None:
        options["precision"] = options["precision"] or ("bf16", "fp16")
    if options["round_weights"]:
        from lyapunov.sublayers.groups import rounded_group

        options["round_weights"] = tuple(
            dict.fromkeys(str(rounded_group(text)) for text in options["round_weights"])
        )
    if options["select"] or options["ignore"]:
        from lyapunov.findings._rules import check_codes

        options["select"] = check_codes(options["select"])
        options["ignore"] = check_codes(options["ignore"])
    for option in ("baseline", "output") if options["plan"] else ():
        if options[option]:
            raise UsageError(f"--{option} is not for --plan", hint="leave it out")
    if options["baseline"] is not None:
        from lyapunov.findings._baseline_file import read_baseline

        options["baseline"] = read_baseline(options["baseline"])
    outputs = list(dict.fromkeys(options["output"]))
    if outputs:
        from lyapunov.report._write import check_target

        for path in outputs:
            check_target(path)
    return outputs


def _check(source: str | None, options: dict[str, Any]) -> Any:
    """Load, choose the tokens, check, in a thread that Ctrl-C does not wait for."""
    work = _checked if options["audit"] is None else _audit
    with _progress(options) as progress:
        report = interruptible(lambda: work(source, options, progress))
    if options["baseline"] is None:
        return report
    from lyapunov.findings._baseline import with_baseline

    report, outcome = with_baseline(report, options["baseline"])
    if not options["quiet"]:
        click.echo(f"baseline: {outcome}", err=True)
    return report


def _with_command(report: Any) -> Any:
    """The report with the line that made it."""
    line = shlex.join(["lyapunov-check", *click.get_current_context().obj])
    return dataclasses.replace(
        report, environment={**report.environment, "command": line}
    )


def _checked(source: str | None, options: dict[str, Any], progress: Any) -> Any:
    """The seam to the library."""
    _prepare_jax()
    from lyapunov.questions._check import check

    model = _open(source, options["revision"])
    tokens = _tokens(model, options)
    if options["baseline"] is not None:
        from lyapunov.findings._baseline import check_tokens
        from lyapunov.questions._request import tokens_facts

        facts = dataclasses.asdict(tokens_facts(tokens.ids, tokens.source))
        check_tokens(facts, options["baseline"])
    return check(
        model,
        tokens.ids,
        precisions=options["precision"],
        state_precision=options["state_precision"],
        mode=options["mode"],
        layers=options["layers"],
        measure=options["measure"],
        constants=options["constants"],
        device=options["device"],
        against=options["against"],
        round_weights=options["round_weights"],
        seed=options["seed"],
        progress=progress,
        token_source=tokens.source,
        tokens_are_text=tokens.is_text,
        token_bytes=tokens.n_bytes,
        fail_on=options["fail_on"],
        select=options["select"],
        ignore=options["ignore"],
        allow_partial=options["allow_partial"],
        exit_zero=options["exit_zero"],
    )


def _plan(sources: list[str | None], options: dict[str, Any]) -> int:
    """What checking each would cost, shown; always 0."""

    def planned_one(source: str | None) -> Any:
        _prepare_jax()
        from lyapunov.command._plan_session import planned

        model = _open(source, options["revision"])
        return planned(model, _tokens(model, options).ids, options)

    documents = []
    for source in sources:
        try:
            with _progress(options):
                made = interruptible(lambda source=source: planned_one(source))
        except KeyboardInterrupt:
            raise Interrupted from None
        documents.append(made.to_dict())
        if not options["json_output"]:
            from lyapunov.report.plan import to_plan_table

            color = wants_color(options["color"], sys.stdout)
            width = shutil.get_terminal_size((80, 24)).columns
            encoding = sys.stdout.encoding
            put(to_plan_table(made, width=width, color=color, encoding=encoding), color)
    if options["json_output"]:
        from lyapunov.report.json import combined, dump

        put(dump(combined(documents)))
    return 0


def _audit(source: str | None, options: dict[str, Any], progress: Any) -> Any:
    """Load, choose the tokens where a dump has none, audit."""
    _prepare_jax()
    from lyapunov.command._audit_session import run_audit
    from lyapunov.implementations._registry import is_recorded

    model = _open(source, options["revision"])
    tokens = None if is_recorded(options["audit"]) else _tokens(model, options)
    return run_audit(model, tokens, options, progress)


def _tokens(model: Any, options: dict[str, Any]) -> Any:
    """The tokens that the options ask for."""
    from lyapunov.models._tokens import choose_tokens

    checkpoint = getattr(model, "checkpoint", None)
    return choose_tokens(
        vocab_size=model.config.vocab_size,
        tokens=options["tokens"],
        text=options["text"],
        length=options["length"],
        batch=options["batch"],
        seed=options["seed"],
        config=getattr(checkpoint, "config", None),
        folder=getattr(checkpoint, "folder", None),
        are_text=options["tokens_are_text"],
    )


def _open(source: str | None, revision: str | None) -> Any:
    """The model: a path, a Hub id, or the bundled one."""
    import lyapunov

    return lyapunov.load(source, revision=revision)


def _prepare_jax() -> None:
    """fp64, before JAX is imported."""
    # on a GPU torch may run beside JAX, which would take most of the memory at once
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    jax.config.update("jax_enable_x64", True)


@contextlib.contextmanager
def _progress(options: dict[str, Any]) -> Iterator[Any]:
    from lyapunov.command._progress import choose_progress

    progress = choose_progress(
        wanted=not options["no_progress"],
        quiet=options["quiet"],
        verbose=options["verbose"],
        color=wants_color(options["color"], sys.stderr),
    )
    try:
        yield progress
    finally:
        progress.close()


def _show(report: Any, options: dict[str, Any]) -> None:
    from lyapunov.report import audit_to_table, to_table

    show: Any = to_table if isinstance(report, Report) else audit_to_table
    color = wants_color(options["color"], sys.stdout)
    put(
        show(
            report,
            width=shutil.get_terminal_size((80, 24)).columns,
            color=color,
            encoding=sys.stdout.encoding,
            quiet=options["quiet"],
            verbose=options["verbose"],
        ),
        color=color,
    )


def _deliver(
    outcomes: list[_Outcome], outputs: list[Path], options: dict[str, Any]
) -> None:
    """The document on stdout, then the files. Without any report, no file."""
    entries = [outcome.entry for outcome in outcomes]
    if options["json_output"]:
        from lyapunov.report.json import combined, dump

        document = dump(combined(entries))
    if any(outcome.report is not None for outcome in outcomes):
        for path in outputs:
            from lyapunov.report._write import render, write

            write(path, render(path.suffix.lower(), entries))
            if not options["quiet"]:
                click.echo(f"wrote {path}", err=True)
    if options["json_output"]:
        put(document)


def wants_color(choice: str, stream: Any) -> bool:
    """Whether to write colour codes: the option, NO_COLOR, FORCE_COLOR, a terminal."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
