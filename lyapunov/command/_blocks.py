"""Blocks of a file of weights without a config: listed, checked, or asked for."""

import json
import textwrap
from pathlib import Path
from typing import Any

from lyapunov._errors import (
    CheckpointError,
    CheckpointNotFoundError,
    LyapunovError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
    UsageError,
)
from lyapunov.command._endings import put


SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Of files that blocks are looked for in where there is no configuration."""


def show_lists(checkpoints: tuple[str, ...], options: Any) -> int:
    """Print the blocks of every file, as a table or as one JSON document.

    **Returns:** the exit code, 0.

    **Raises:** `LyapunovError` for a file that cannot be read, or has no blocks.
    """
    from lyapunov.mixers import blocks_of_file
    from lyapunov.mixers._file import chosen_set

    if not checkpoints:
        raise UsageError(
            "--list lists the blocks of a file, and none is given",
            hint="lyapunov-check FILE.pth --list",
        )
    files = []
    for one in checkpoints:
        blocks = blocks_of_file(one)
        if options.weight_set is not None:
            blocks = chosen_set(blocks, options.weight_set)
        files.append((one, blocks))
    if options.json_output:
        document = [
            {"file": one, "blocks": [_entry(block) for block in blocks]}
            for one, blocks in files
        ]
        put(json.dumps({"files": document}, indent=2) + "\n")
    else:
        put("\n".join(_table(one, blocks) for one, blocks in files))
    return 0


def _entry(block: Any) -> dict[str, Any]:
    """A block as plain JSON types."""
    return {
        "weight_set": block.weight_set,
        "name": block.name,
        "kind": block.kind,
        "sizes": block.sizes,
        "n_params": block.n_params,
        "dtypes": list(block.dtypes),
        "others": list(block.others),
        "open": block.open,
    }


def _table(path: str, blocks: list[Any]) -> str:
    """Blocks, a line each, and below what is asked for by option."""
    sets = list(dict.fromkeys(one.weight_set for one in blocks))
    head = ["block", "kind", "sizes", "parameters", "dtype", "to be said"]
    lines = [path]
    for name in sets:
        if name:
            lines.append(f"\nweights under {name}")
        own = [one for one in blocks if one.weight_set == name]
        rows = [
            [
                one.title,
                one.kind,
                " ".join(f"{size}={n}" for size, n in one.sizes.items()),
                f"{one.n_params:,}",
                ", ".join(one.dtypes),
                ", ".join(one.open) or "nothing",
            ]
            for one in own
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            cells = [c.ljust(w) for c, w in zip(row, widths, strict=True)]
            lines.append("  " + "  ".join(cells).rstrip())
    meanings: dict[str, list[str]] = {}
    for one in blocks:
        for name, meaning in one.open.items():
            meanings.setdefault(name, [])
            if meaning not in meanings[name]:
                meanings[name].append(meaning)
    if meanings:
        lines.append("\nwhat the tensors do not say (--block-option NAME=VALUE):")
    for name, told in meanings.items():
        text = f"{name}: {' / '.join(told)}"
        lines.append(
            textwrap.fill(text, 86, initial_indent="  ", subsequent_indent="    ")
        )
    return "\n".join(lines) + "\n"


def checked(source: str | None, options: Any, progress: Any) -> Any:
    """The report of a file's blocks.

    **Raises:** `LyapunovError`.
    """
    from lyapunov.questions._check_blocks import check_blocks

    if source is None:
        raise UsageError(
            "blocks of a file are to be checked, and no file is given",
            hint="lyapunov-check FILE.pth --random-inputs 1",
        )
    return check_blocks(
        source,
        length=options.length,
        batch=options.batch,
        options=dict(options.block_option),
        progress=progress,
        **options.arguments(),
    )


def asking(source: str | None, error: CheckpointError) -> LyapunovError:
    """What is to be said of a file without a configuration: where it has blocks, how
    they are checked; else the error as it is.

    **Arguments:**

    - `error`: with which it was refused as a checkpoint.
    """
    told = CheckpointNotFoundError | UnsupportedCheckpointError | UnsafeCheckpointError
    if not isinstance(error, told):
        return error
    if source is None or not _may_have_blocks(Path(source)):
        return error
    from lyapunov.mixers import blocks_of_file

    try:
        blocks = blocks_of_file(source)
    except UnsafeCheckpointError as whole:  # says how it is saved without code
        return whole
    except LyapunovError:
        return error
    if len({one.weight_set for one in blocks}) > 1:
        return _several(source, blocks)
    kinds = ", ".join(dict.fromkeys(one.known.title for one in blocks))
    names = list(dict.fromkeys(name for one in blocks for name in one.open))
    typed = [f"--block-option {name}=..." for name in names]
    line = " ".join([f"lyapunov-check {source}", "--inputs captured.npz", *typed])
    return CheckpointNotFoundError(
        f"no config.json beside {source}; its {len(blocks)} blocks ({kinds}) can be "
        "checked alone",
        hint=f"{line} (or --random-inputs 1; --list says what is asked for)",
    )


def _several(source: str, blocks: list[Any]) -> LyapunovError:
    from lyapunov.mixers._file import chosen_set

    try:
        chosen_set(blocks, None)
    except UsageError as told:
        return told
    raise AssertionError(f"{source} has one set of weights")


def _may_have_blocks(path: Path) -> bool:
    path = path.expanduser()
    alone = not (path.parent / "config.json").exists()
    return path.suffix in SUFFIXES and path.is_file() and alone
