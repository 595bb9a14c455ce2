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

from lyapunov._errors import CheckpointError, UsageError
from lyapunov._version import __version__
from lyapunov._xla import compile_sooner
from lyapunov.command import _blocks
from lyapunov.command._compile_cache import Compiled, where_compiled_is_kept
from lyapunov.command._declare import BLOCKS, CHECK, DUMP, LIST, RANK
from lyapunov.command._endings import (
    INTERRUPTED,
    STOPPED,
    Interrupted,
    error_document,
    put,
    say_error,
)
from lyapunov.command._interrupt import interruptible
from lyapunov.command._job import joined
from lyapunov.command._options import Options
from lyapunov.command._quiet import hush
from lyapunov.questions._effort import EFFORTS, Effort


BUNDLED = "the bundled model"
# Parameters times tokens times precisions. Of the bundled model, at four times as many,
# loops that nobody optimised cost half of what not optimising them saves.
SMALL = 2.5e8


# --- The run ---------------------------------------------------------------------


@dataclass
class _Outcome:
    """What became of one checkpoint: a report, an audit or a plan, or an error."""

    source: str
    report: Any = None
    error: dict[str, str] | None = None

    @property
    def code(self) -> int:
        """Of a plan always 0."""
        if self.report is None:
            return 2
        summary = getattr(self.report, "summary", None)
        return 0 if summary is None else summary.exit_code

    @property
    def entry(self) -> Any:
        if self.report is not None:
            return self.report
        return {"checkpoint": {"source": self.source}, "error": self.error}


def run_checks(checkpoints: tuple[str, ...], options: Options) -> int:
    """Check one checkpoint after the other, or this process' share of them; the exit
    code is the worst.

    **Arguments:**

    - `checkpoints`: as on the command line; none is the bundled model.
    - `options`: all that was typed beside them.

    **Returns:**

    0, 1, 2 or 130.

    **Raises:** `LyapunovError` where there is one checkpoint and it cannot be
    checked, and for what is wrong with the request itself.
    """
    if options.show is not None:
        return _show_again(options.show, checkpoints, options)
    if options.question == LIST:
        return _blocks.show_lists(checkpoints, options)
    if not options.verbose:
        hush()
    everything: list[str | None] = list(checkpoints) or [None]
    if options.baseline is not None and len(everything) > 1:
        raise UsageError(
            f"--baseline is one report, and there are {len(everything)} checkpoints",
            hint="check them one by one",
        )
    compile_sooner()
    if options.distributed is not None:
        _prepare_jax()
    job = joined(options.distributed)
    alone = job.processes == 1
    compiled = where_compiled_is_kept(not options.no_compile_cache)
    if options.verbose or (compiled.reason and not options.quiet):
        click.echo(compiled.told(), err=True)
    outcomes: list[_Outcome] = []
    interrupted = False
    for source in job.share(everything):
        name = source or BUNDLED
        try:
            report = _answer(source, options, compiled, told=job.reports)
        except KeyboardInterrupt:
            if not (outcomes and alone):
                raise Interrupted from None
            interrupted = True
            outcomes.append(_Outcome(name, error=STOPPED))
            say_error(STOPPED, name)
            break
        except Exception as error:
            if len(everything) == 1 and alone:
                raise
            if options.debug:
                traceback.print_exc(file=sys.stderr)
            outcomes.append(_Outcome(name, error=error_document(error)))
            say_error(error_document(error), name)
            continue
        outcomes.append(_Outcome(name, report))
        if not options.plan_alone and options.question != RANK:
            _say_what_is_not_there(report, options)
        if alone:
            _show(outcomes[-1], options, first=len(outcomes) == 1)
    if compiled.failed and not options.quiet:
        click.echo(compiled.told_of_failures(), err=True)
    try:
        outcomes = job.gathered([source or BUNDLED for source in everything], outcomes)
        for i, outcome in enumerate(() if alone else outcomes):
            _show(outcome, options, first=not i)
        if job.reports:
            _deliver(outcomes, options)
    except KeyboardInterrupt:
        raise Interrupted from None
    return INTERRUPTED if interrupted else max((o.code for o in outcomes), default=0)


def _show_again(path: Path, checkpoints: tuple[str, ...], options: Options) -> int:
    """Show what an earlier run found, as it would have been shown then."""
    from lyapunov.report._read import read_results, showing

    if checkpoints:
        raise UsageError(
            f"--show {path} checks nothing, and {checkpoints[0]} is to be checked",
            hint="leave one of them out",
        )
    results, written_by = read_results(path)
    if written_by != __version__ and not options.quiet:
        text = f"{path} was written by version {written_by}, this is {__version__}"
        click.echo(text, err=True)
    outcomes = [
        _Outcome(one["checkpoint"]["source"], error=one["error"])
        if isinstance(one, dict)
        else _Outcome(one.checkpoint.source, one)
        for one in results
    ]
    with showing(path):
        for i, outcome in enumerate(outcomes):
            if outcome.error is not None:
                say_error(outcome.error, outcome.source)
            _show(outcome, options, first=not i)
        _deliver(outcomes, options)
    return 0


def _say_what_is_not_there(report: Any, options: Options) -> None:
    """On stderr: sublayers without bounds, and what the effort left out."""
    if report.summary.verdict == "incomplete" and report.summary.checked:
        click.echo("hint: --allow-partial accepts skipped sublayers", err=True)
    elif report.summary.verdict == "unbounded":
        text = "hint: another precision may have bounds; --allow-partial accepts few"
        click.echo(text, err=True)
    left_out = EFFORTS[options.effort].tiers_left_out()
    # of the default only to whom everything is told
    told = options.verbose or options.effort != Effort().name
    if options.question == CHECK and left_out and told and not options.quiet:
        click.echo(f"--effort {options.effort} left out {left_out}", err=True)


def _answer(
    source: str | None, options: Options, compiled: Compiled, *, told: bool
) -> Any:
    """Load, choose the tokens, check, in a thread that Ctrl-C does not wait for; the
    report has the line that made it. Progress is shown where it is `told`."""
    with _progress(options, told) as progress:
        report = interruptible(lambda: _kept(compiled, source, options, progress))
    if options.plan_alone:
        return report
    if options.earlier is not None:
        from lyapunov.findings._baseline import with_baseline

        report, outcome = with_baseline(report, options.earlier)
        if not options.quiet:
            click.echo(f"baseline: {outcome}", err=True)
    line = shlex.join(["lyapunov-check", *click.get_current_context().obj])
    return dataclasses.replace(
        report, environment={**report.environment, "command": line}
    )


def _kept(compiled: Compiled, *asked: Any) -> Any:
    _prepare_jax()
    with compiled.used():
        return _checked(*asked)


def _checked(source: str | None, options: Options, progress: Any) -> Any:
    """The seam to the library: a check, an audit, a ranking, a plan, or blocks."""
    if options.question == BLOCKS:
        return _blocks.checked(source, options, progress)
    try:
        model = _open(source, options.revision)
    except CheckpointError as error:
        told = _blocks.asking(source, error)
        raise told from (None if told is error else error)
    tokens: Any = None if options.question == DUMP else _chosen_tokens(model, options)
    compile_sooner(lightly=_is_small(model, tokens, options))
    if options.question == RANK:
        return _ranked(model, tokens, options, progress)
    if options.plan_alone:
        from lyapunov.questions._plan import planned
        from lyapunov.questions._request import Request

        return planned(model, tokens, Request.of(**options.arguments()))
    if options.source is not None:
        return _audited(model, tokens, options, progress)
    if options.earlier is not None and tokens is not None:
        from lyapunov.findings._baseline import check_tokens
        from lyapunov.questions._request import tokens_facts

        check_tokens(dataclasses.asdict(tokens_facts(tokens)), options.earlier)
    from lyapunov.questions._check import check

    return check(model, tokens, progress=progress, **options.arguments())


def _chosen_tokens(model: Any, options: Options) -> Any:
    """The tokens that the options ask for, as `models.Tokens`."""
    from lyapunov.models._tokens import choose_tokens

    checkpoint = getattr(model, "checkpoint", None)
    return choose_tokens(
        vocab_size=model.config.vocab_size,
        tokens=options.tokens,
        text=options.text,
        length=options.length,
        batch=options.batch,
        seed=options.seed,
        config=getattr(checkpoint, "config", None),
        folder=getattr(checkpoint, "folder", None),
        are_text=options.tokens_are_text,
    )


def _ranked(model: Any, tokens: Any, options: Options, progress: Any) -> Any:
    """The ranking of matrices, or what it would cost."""
    if options.plan_alone:
        from lyapunov.questions._plan_ranking import planned_ranking

        return planned_ranking(model, tokens, **options.arguments())
    from lyapunov.questions._rank_weights import rank_weights

    return rank_weights(model, tokens, progress=progress, **options.arguments())


def _is_small(model: Any, tokens: Any, options: Options) -> bool:
    """Whether compiling takes longer than all that is run."""
    if tokens is None:
        return False
    runs = (len(options.precision) or 2) * tokens.ids.size
    return runs * model.layout.n_params <= SMALL


def _audited(model: Any, tokens: Any, options: Options, progress: Any) -> Any:
    """The audit, with a script of what is wrong where one is asked for."""
    from lyapunov.command._scripts import place_of, write_scripts
    from lyapunov.questions._audit import audit

    place = None if options.reproduce is None else place_of(model)
    report = audit(model, tokens=tokens, progress=progress, **options.arguments())
    if options.reproduce is None or place is None:
        return report
    told = write_scripts(report, tokens.ids[0], place, options.reproduce)
    if not options.quiet:
        click.echo("\n".join(told), err=True)
    return report


def _open(source: str | None, revision: str | None) -> Any:
    """The model: a path, a Hub id, or the bundled one."""
    import lyapunov

    return lyapunov.load(source, revision=revision)


def _prepare_jax() -> None:
    """fp64, before JAX is imported; and JAX tells what it compiles."""
    # on a GPU torch may run beside JAX, which would take most of the memory at once
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from lyapunov.command._progress import COMPILATIONS

    jax.config.update("jax_enable_x64", True)
    COMPILATIONS.watch()


@contextlib.contextmanager
def _progress(options: Options, told: bool) -> Iterator[Any]:
    from lyapunov.command._progress import choose_progress

    progress = choose_progress(
        wanted=told and not options.no_progress,
        quiet=options.quiet,
        verbose=options.verbose,
        color=wants_color(options.color, sys.stderr),
    )
    try:
        yield progress
    finally:
        progress.close()


def _show(outcome: _Outcome, options: Options, *, first: bool) -> None:
    if outcome.report is None or options.json_output:
        return
    if not first:
        put("\n")
    from lyapunov.report import to_table

    color = wants_color(options.color, sys.stdout)
    text = to_table(
        outcome.report,
        width=shutil.get_terminal_size((80, 24)).columns,
        color=color,
        encoding=sys.stdout.encoding,
        quiet=options.quiet,
        verbose=options.verbose,
    )
    put(text, color=color)


def _deliver(outcomes: list[_Outcome], options: Options) -> None:
    """The document on stdout, then the files. Without any report, no file."""
    entries = [outcome.entry for outcome in outcomes]
    if options.annotations:
        from lyapunov.report._annotations import annotations

        click.echo(annotations(entries), err=True, nl=False)
    document = ""
    if options.json_output:
        from lyapunov.report.json import combined, dump

        document = dump(combined(entries))
    if any(outcome.report is not None for outcome in outcomes):
        for path in options.output:
            from lyapunov.report._write import save

            for written in save(path, entries):
                if not options.quiet:
                    click.echo(f"wrote {written}", err=True)
    if options.json_output:
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
