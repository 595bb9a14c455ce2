"""Write a trace down in the form that `dump.file` reads."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..._arguments import shown
from ..._errors import DumpError
from .._registry import flow_names, followed
from .._trace import HeadRecord, Trace
from .._ways import parse_variant
from ._keys import FORMAT, narrowest, put
from .file import File


SLICE = 2048
"""Logits that are written at a time."""


def write_dump(
    path: str | os.PathLike,
    trace: Trace,
    tokens,
    *,
    implementation: str,
    precision: str,
    kind: str = "whole",
    name: str | None = None,
    append: bool = False,
    vocab_size: int | None = None,
) -> None:
    """Write one run of a text as a dump, one sublayer at a time.

    **Arguments:**

    - `path`: the .npz to write.
    - `trace`: records of sublayers; the residual, what is added to it, the output and
      the stored tensors of each are written, in the narrowest format that holds them.
    - `tokens`: (seq) or (batch, seq), what was run.
    - `implementation`, `precision`: whose execution it follows, as in the module
      `lyapunov.implementations.dump.file`.
    - `kind`: how the text was run, such as `chunks:64`.
    - `name`: of the run; None leaves it out where the file has this run alone.
    - `append`: add the run to a dump of the same tokens.
    - `vocab_size`: write that many logits, too.

    **Raises:** `DumpError` where there is nothing to append to, or of other tokens;
    where no flow has that name, or the file's name is of another format.
    """
    parse_variant(kind)
    if not followed(implementation):
        raise DumpError(
            f"no flow is known by the name {shown(implementation)}",
            hint=f"`implementation` is one of {', '.join(flow_names())}",
        )
    path = Path(path)
    if path.suffix.lower() == ".safetensors":
        raise DumpError(
            f"{path.name} would be a .npz",
            hint="a name in .npz; safetensors' save_file writes the other, in one go",
        )
    tokens = np.asarray(tokens)
    prefix = "" if name is None else f"run.{name}."
    settings = {
        "format": FORMAT,
        "implementation": implementation,
        "precision": precision,
        "tokens": tokens,
    }
    if append:
        _check_same(File(path), np.atleast_2d(tokens), implementation, precision)
        settings = {}
    with zipfile.ZipFile(path, "a" if append else "w", zipfile.ZIP_DEFLATED) as file:
        for key, value in (settings | {f"{prefix}kind": kind}).items():
            put(file, key, value)
        for record in trace:
            if isinstance(record, HeadRecord):
                if vocab_size is not None:
                    parts = [
                        np.asarray(record.logits(i, min(i + SLICE, vocab_size)))
                        for i in range(0, vocab_size, SLICE)
                    ]
                    put(file, f"{prefix}logits", np.concatenate(parts, axis=-1))
                break
            at = f"{prefix}layer.{record.layer}."
            arrays = {
                "residual": record.residual,
                "hidden": record.hidden,
                "output": record.output,
            } | {f"stored.{site}": x for site, x in _of_tokens(record).items()}
            for key, value in arrays.items():
                put(file, at + key, narrowest(np.asarray(value)))


def _of_tokens(record) -> dict[str, Any]:
    """Stored tensors of one row a token: what a dump holds.

    **Raises:** `DumpError` for a sublayer that reads more than the stream.
    """
    if record.aside is not None or record.embedded is not None:
        raise DumpError(
            f"sublayer {record.layer} reads more than the stream, which a dump does "
            "not hold",
            hint="--audit transformers runs its network here",
        )
    lead = record.output.shape[:-1]
    return {s: x for s, x in record.stored.items() if x.shape[:-1] == lead}


def _check_same(dump: File, tokens, implementation: str, precision: str) -> None:
    found = dump.implementation, dump.precision
    if found != (implementation, precision) or not np.array_equal(dump.tokens, tokens):
        raise DumpError(
            f"{dump.path.name} is of {' '.join(found)} or of other tokens",
            hint="one text, implementation and precision a file",
        )
