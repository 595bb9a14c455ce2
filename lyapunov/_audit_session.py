"""The command's part of an audit: what is refused, what is handed over."""

from pathlib import Path
from typing import Any

from lyapunov._errors import UsageError


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

    **Raises:** `UsageError`.
    """
    refused = [(name, "is not for --audit") for name in OF_A_CHECK]
    if is_dump(options["audit"]):
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


def is_dump(source: str) -> bool:
    """Whether the source of an audit is a file."""
    return source.lower().endswith(".npz")


def run_audit(model: Any, tokens: Any, options: dict[str, Any], progress: Any) -> Any:
    """Audit as the options say.

    **Arguments:**

    - `tokens`: ids and where they came from; None for a dump.
    """
    from lyapunov._audit import audit

    return audit(
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
