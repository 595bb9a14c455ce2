"""An opened checkpoint: its configuration and its tensors, each read when asked for."""

import difflib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import CorruptCheckpointError
from .families._mistral import mistral_config
from .files._file_formats import read_tensors
from .files._files import (
    MAX_CONFIG_BYTES,
    listing,
    open_regular,
    quote,
    read_json_object,
    reading,
)
from .files._locate import GGUF, PARAMS, locate
from .files._megatron_shards import read_shards
from .files._tensors import StoredTensor
from .gguf._open import read_gguf
from .quantised._recognise import BESIDE, Quantisation, dequantised_tensors


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Hold a checkpoint on disk. Opening reads names and shapes, never a tensor.

    **Arguments:**

    - `source`: what the user gave.
    - `revision`: the commit, for a model of the Hub; else `None`.
    - `config`: `config.json`, or what says the same.
    - `files`: configuration, index where there is one, and weights.
    - `folder`: where a tokenizer may lie.
    - `root`: what every name in the files begins with beside (Mistral's `model.`).
    - `quantisation`: of a quantised model, what is to be said of it; its `tensors` are
        matrices of their logical shape, whose numbers come in fp64.
    - `assumptions`: what a model of it rests on that its files do not say.
    """

    source: str
    revision: str | None
    config: dict[str, Any] = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    folder: Path = field(repr=False)
    tensors: dict[str, StoredTensor] = field(repr=False)
    root: str = ""
    quantisation: Quantisation | None = None
    assumptions: tuple[str, ...] = ()

    @property
    def is_gguf(self) -> bool:
        """Tell whether it lies in llama.cpp's files, which few others read."""
        return bool(self.files) and self.files[0].suffix == GGUF

    def names(self) -> tuple[str, ...]:
        """List the names of the tensors."""
        return tuple(self.tensors)

    def tensor(self, name: str) -> StoredTensor:
        """Find where a tensor lies; a `CorruptCheckpointError` where there is none."""
        if name not in self.tensors:
            near = difflib.get_close_matches(name, list(self.tensors)[:10_000], n=1)
            raise CorruptCheckpointError(
                f"no tensor {quote(name)} in {quote(self.source, 200)}",
                hint=f"nearest: {quote(near[0])}" if near else "is the file whole?",
            )
        return self.tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Tell the shape of a tensor."""
        return self.tensor(name).shape

    def dtype(self, name: str) -> str:
        """Tell the type that a tensor is stored in: fp32, fp16, bf16, fp64, ..."""
        return self.tensor(name).dtype

    def read(self, name: str) -> np.ndarray:
        """Read a whole tensor, in its stored type (`ml_dtypes.bfloat16` for bf16)."""
        return self.tensor(name).read()

    def read_rows(self, name: str, start, stop: int | None = None) -> np.ndarray:
        """Read some rows of a tensor, without the others.

        **Arguments:**

        - `name`: the tensor, (rows, ...).
        - `start`: the first row; or, without `stop`, an integer array (any shape)
            that names the rows.
        - `stop`: the row after the last.

        **Returns:** (stop - start, ...), or (*start.shape, ...) for an array; in the
        stored type.
        """
        return self.tensor(name).read_rows(start, stop)

    def hashes(self) -> list[dict[str, str]]:
        """List `name` and `sha256` of each file; reads them whole."""
        return file_hashes(self.files)


def file_hashes(files: Iterable[Path]) -> list[dict[str, str]]:
    """`name` and `sha256` of each file; reads them whole."""
    found = []
    for path in files:
        with open_regular(path) as (file, _), reading(path):
            digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
        found.append({"name": path.name, "sha256": digest.hexdigest()})
    return found


def open_checkpoint(
    source: str | os.PathLike, *, revision: str | None = None
) -> Checkpoint:
    """Open a checkpoint without reading its tensors or running anything in it.

    **Arguments:**

    - `source`: a folder, a file of weights with its `config.json` beside it, a GGUF
        file, or `org/name[@revision]` of the Hugging Face Hub. A path that exists wins.
    - `revision`: a branch, tag or commit of the Hub.

    **Returns:** a `Checkpoint`.

    **Raises:** a `CheckpointError` of the kind that fits: not found, corrupt, unsafe
    or unsupported; `MissingExtraError` for a Hub id without huggingface_hub.
    """
    located = locate(source, revision)
    if located.config is None:
        files = located.weights
        own: dict[str, Any] = {"source": os.fsdecode(os.fspath(source))}
        own |= {"revision": located.revision, "folder": located.folder, "files": files}
        if files[0].suffix == GGUF:
            return Checkpoint(**own, **read_gguf(files)._asdict())
        config, joined = read_shards(files)
        return Checkpoint(**own, config=config, tensors=joined)
    config = read_json_object(located.config, MAX_CONFIG_BYTES)
    tensors: dict[str, StoredTensor] = {}
    for path in located.weights:
        held = read_tensors(path)
        if located.index is not None:
            named = {n for n, where in located.index.items() if where == path}
            missing = sorted(named - held.keys())
            if missing:
                raise CorruptCheckpointError(
                    f"{quote(path, 200)} lacks {listing(missing)},"
                    " which the index places there",
                    hint="download the shards and the index again",
                )
            held = {n: t for n, t in held.items() if located.index.get(n, path) == path}
        doubled = sorted(held.keys() & tensors.keys())
        if doubled:
            raise CorruptCheckpointError(
                f"{listing(doubled)} in more than one file of {quote(source, 200)}",
                hint="download the shards and the index again",
            )
        tensors.update(held)
    root = ""
    if located.config.name == PARAMS:
        config = mistral_config(config)
        root = "model." if all(n.startswith("model.") for n in tensors) else ""
        tensors = {name.removeprefix("model."): t for name, t in tensors.items()}
    beside = _beside(located.config)
    read = {path.name: read_json_object(path, MAX_CONFIG_BYTES) for path in beside}
    made, quantisation = dequantised_tensors(config, read, tensors)
    files = (located.config, *beside, located.index_file, *located.weights)
    return Checkpoint(
        source=os.fsdecode(os.fspath(source)),
        revision=located.revision,
        config=config,
        files=tuple(path for path in files if path is not None),
        folder=located.folder,
        tensors=made,
        root=root,
        quantisation=quantisation,
    )


def _beside(config: Path) -> tuple[Path, ...]:
    """What there is beside config.json that says how a model was quantised."""
    there = (config.parent / name for name in BESIDE)
    return tuple(path for path in there if os.path.lexists(path))
