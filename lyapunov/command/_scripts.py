"""What an audit found wrong, as scripts that need torch and transformers alone."""

import os
from pathlib import Path
from typing import Any

from lyapunov._errors import UsageError


def place_of(model: Any) -> tuple[str, str | None]:
    """What `from_pretrained` is to be given: a path, or a Hub id and its revision.

    **Raises:** `UsageError` where transformers does not read the checkpoint.
    """
    checkpoint = model.checkpoint
    known = checkpoint is not None and "model_type" in checkpoint.config
    if checkpoint is None or not known or checkpoint.is_gguf:
        raise UsageError(
            "--reproduce needs a checkpoint in transformers' layout; this is "
            f"{model.source}",
            hint="save it with save_pretrained first",
        )
    if checkpoint.revision is not None:
        return model.source.partition("@")[0], checkpoint.revision
    return os.path.abspath(checkpoint.folder), None


def write_scripts(
    report: Any, tokens: Any, place: tuple[str, str | None], target: Path
) -> list[str]:
    """Write a script for each kind of way that was found wrong: the first under the
    name that was given, the others with the kind behind it.

    **Returns:** what was written, one line each.
    """
    from lyapunov.report._reproduce import bugs, script
    from lyapunov.report._write import write

    kinds: dict[str, str] = {}
    for way in bugs(report):
        kinds.setdefault(way.partition(":")[0], way)
    told = [] if kinds else ["no run is a bug: there is nothing to reproduce"]
    for i, (kind, way) in enumerate(kinds.items()):
        path = target.with_stem(f"{target.stem}-{kind}") if i else target
        source, revision = place
        text = script(report, tokens, way, model=source, revision=revision)
        write(path, text.encode())
        told.append(f"wrote {path}, which shows {way}")
    return told
