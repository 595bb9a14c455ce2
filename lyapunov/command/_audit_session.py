"""The command's part of an audit: what is refused, what is handed over."""

import os
from pathlib import Path
from typing import Any

import click

from lyapunov._errors import OutputError, UsageError
from lyapunov.implementations._registry import is_recorded, reproducible_names


OF_A_CHECK = (
    "layers",
    "against",
    "round_weights",
    "baseline",
    "plan",
    "device",
    "allow_partial",
    "tokens_are_text",
)
OF_A_DUMP = ("tokens", "text", "length", "batch", "precision", "state_precision")


def validate_audit(options: dict[str, Any], outputs: list[Path]) -> None:
    """Refuse what an audit does not look at, and what a dump has of its own.

    **Raises:** `UsageError`; `OutputError` for a script that cannot be written.
    """
    target = options.get("reproduce")
    if target is not None:
        shown = reproducible_names()
        if options["audit"] not in shown:
            raise UsageError(
                f"--reproduce shows what --audit {' or '.join(shown)} finds",
                hint=f"--audit {shown[0]} --reproduce {target}",
            )
        if target.suffix != ".py" or target.is_dir() or not target.parent.is_dir():
            raise OutputError(
                f"cannot write a script to {target}",
                hint="name a file that ends in .py, in a folder that is there",
            )
    if options["audit"] is None:
        return
    refused = [(name, "is not for --audit") for name in OF_A_CHECK]
    if is_recorded(options["audit"]):
        refused += [
            (name, "is not for a dump, which has its own") for name in OF_A_DUMP
        ]
    for name, why in refused:
        if options.get(name):
            raise UsageError(f"--{name.replace('_', '-')} {why}", hint="leave it out")
    pages = [path for path in outputs if path.suffix.lower() == ".html"]
    if pages:
        raise UsageError(
            f"an audit is not written as {pages[0].name}", hint="use .json or .md"
        )


def run_audit(model: Any, tokens: Any, options: dict[str, Any], progress: Any) -> Any:
    """Audit as the options say.

    **Arguments:**

    - `tokens`: ids and where they came from; None for a dump.
    """
    from lyapunov.questions._audit import audit

    place = None if options["reproduce"] is None else _place(model)
    report = audit(
        model,
        options["audit"],
        None if tokens is None else tokens.ids,
        precisions=options["precision"] or ("bf16",),
        state_precision=options["state_precision"],
        seed=options["seed"],
        progress=progress,
        token_source="" if tokens is None else tokens.source,
        fail_on=options["fail_on"],
        select=options["select"],
        ignore=options["ignore"],
        exit_zero=options["exit_zero"],
    )
    if place is not None and tokens is not None:
        _write_scripts(report, tokens.ids[0], place, options)
    return report


def _place(model: Any) -> tuple[str, str | None]:
    """What `from_pretrained` is to be given: a path, or a Hub id and its revision.

    **Raises:** `UsageError` where transformers does not read the checkpoint.
    """
    checkpoint = model.checkpoint
    if checkpoint is None or "model_type" not in checkpoint.config:
        raise UsageError(
            "--reproduce needs a checkpoint in transformers' layout; this is "
            f"{model.source}",
            hint="save it with save_pretrained first",
        )
    if checkpoint.revision is not None:
        return model.source.partition("@")[0], checkpoint.revision
    return os.path.abspath(checkpoint.folder), None


def _write_scripts(
    report: Any, tokens: Any, place: tuple[str, str | None], options: dict[str, Any]
) -> None:
    """A script for each kind of way that was found wrong: the first under the name
    that was given, the others with the kind behind it."""
    from lyapunov.report._reproduce import bugs, script
    from lyapunov.report._write import write

    target: Path = options["reproduce"]
    kinds: dict[str, str] = {}
    for way in bugs(report):
        kinds.setdefault(way.partition(":")[0], way)
    told = [] if kinds else ["no run is a bug: there is nothing to reproduce"]
    for i, (kind, way) in enumerate(kinds.items()):
        path = target.with_stem(f"{target.stem}-{kind}") if i else target
        source, revision = place
        write(path, script(report, tokens, way, model=source, revision=revision))
        told.append(f"wrote {path}, which shows {way}")
    if not options["quiet"]:
        click.echo("\n".join(told), err=True)
