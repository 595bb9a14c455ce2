"""From what the user gave to files: a folder, a file, or a model of the Hub."""

import contextlib
import difflib
import itertools
import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from ..._errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
    UsageError,
)
from ..gguf._shards import models_among, shards_of
from ._file_formats import check_kind, read_tensors
from ._files import (
    MAX_INDEX_BYTES,
    listing,
    quote,
    read_json_object,
    read_start,
    reading,
)
from ._megatron_shards import shard_files


CONFIG = "config.json"
GGUF = ".gguf"
PARAMS = "params.json"
"""What Mistral calls its own."""
CONSOLIDATED = "consolidated.safetensors"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In the order in which transformers looks for them; each may have an index."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)

_HUB_ID = re.compile(
    r"(?P<id>[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95})(@(?P<revision>[^@\s]+))?",
    re.ASCII,
)
_FOREIGN = {  # suffix: what it is, what to do
    GGUF: ("a GGUF file (llama.cpp)", "download it, and give its path"),
    ".onnx": ("an ONNX graph", "check the checkpoint that it was exported from"),
    ".h5": ("an HDF5 file (Keras)", "convert the weights to safetensors"),
    ".msgpack": ("a Flax file", "convert the weights to safetensors"),
    ".npz": ("a NumPy archive", "convert the weights to safetensors"),
    ".ckpt": ("a training checkpoint", "save the state dict as safetensors"),
    ".distcp": (
        "a distributed training checkpoint",
        "join it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch",
    ),
    ".pt": ("a file of unknown layout", "give the file itself"),
    ".pth": ("a file of unknown layout", "give the file itself"),
}


@dataclass(frozen=True)
class Located:
    """Where a checkpoint lies; nothing of it is read but an index.

    **Arguments:**

    - `folder`: holds the configuration, and a tokenizer where there is one.
    - `config`: `config.json`, or Mistral's `params.json`; None for Megatron and
        llama.cpp, whose weights hold it.
    - `weights`: the files with tensors, in order; for Megatron rank by rank.
    - `index`: the file that each tensor lies in, by name, for sharded weights.
    - `index_file`: where the index stands.
    - `revision`: the commit, for a model of the Hub.
    """

    folder: Path
    config: Path | None
    weights: tuple[Path, ...]
    index: dict[str, Path] | None = None
    index_file: Path | None = None
    revision: str | None = None


def locate(source: str | os.PathLike, revision: str | None = None) -> Located:
    """Find a checkpoint: a path that exists wins over a Hub id."""
    text = os.fspath(source)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text.strip() or "\0" in text:
        raise UsageError(
            f"not a path and not a Hub id: {text!r}",
            hint="give a folder, a file, or org/name",
        )
    path = Path(text).expanduser() if text.startswith("~") else Path(text)
    if os.path.lexists(path):
        if revision is not None:
            raise UsageError(
                f"a revision ({quote(revision)}) was given, and {quote(text, 200)}"
                " is a path that exists",
                hint="leave the revision out, or move the folder of that name away",
            )
        return _local(path)
    match = _HUB_ID.fullmatch(text) if isinstance(source, str) else None
    if match is None or Path(text).suffix in (".safetensors", ".bin", *_FOREIGN):
        raise CheckpointNotFoundError(
            f"no such file or folder: {quote(text, 200)}", hint=_near(path)
        )
    asked = match["revision"]
    if asked and revision and asked != revision:
        raise UsageError(
            f"two revisions: {quote(asked)} behind the @, and {quote(revision)}",
            hint="give one of them",
        )
    from ._hub import fetch

    folder, commit = fetch(match["id"], revision or asked)
    return replace(_folder(folder), revision=commit)


def _near(path: Path) -> str:
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        names = sorted(os.listdir(path.parent))[:10_000]
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f"did you mean {quote(path.parent / close[0], 200)}?"
    return "give a folder, a file, or org/name of the Hugging Face Hub"


def _local(path: Path) -> Located:
    with reading(path):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError as e:
            raise CheckpointNotFoundError(
                f"a symbolic link to nowhere: {quote(path, 200)}",
                hint=f"it names {quote(os.readlink(path), 200)}",
            ) from e
    shards = shard_files(path)
    if shards is not None:
        return Located(shards[0].parent, None, shards)
    return _folder(path) if stat.S_ISDIR(mode) else _file(path)


def _file(path: Path) -> Located:
    shown = quote(path, 200)
    if path.name == CONFIG or path.name.endswith(".index.json"):
        raise UsageError(
            f"{shown} describes weights and holds none",
            hint=f"give the folder: {quote(path.parent, 200)}",
        )
    if path.name == CONSOLIDATED and not os.path.lexists(path.parent / CONFIG):
        return _folder(path.parent)
    if path.suffix == GGUF:
        if not b"GGUF".startswith(read_start(path, 4)):
            check_kind(path)  # a web page, a pointer: called that
        with reading(path.parent):
            names = os.listdir(path.parent)
        return Located(path.parent, None, shards_of(path, names))
    if path.suffix in _FOREIGN and path.suffix not in (".pt", ".pth"):
        what, hint = _FOREIGN[path.suffix]
        raise UnsupportedCheckpointError(f"{shown} is {what}", hint=hint)
    check_kind(path)
    config = path.parent / CONFIG
    if not os.path.lexists(config):
        read_tensors(path)  # a file that is of no use is called that
        raise CheckpointNotFoundError(
            f"no {CONFIG} beside {shown}",
            hint="the sizes of the model stand in it; copy it from where the"
            " weights come from",
        )
    return Located(path.parent, config, (path,))


def _folder(folder: Path) -> Located:
    shown = quote(folder, 200)
    with reading(folder):
        names = sorted(os.listdir(folder))
    if not names:
        raise CheckpointNotFoundError(
            f"an empty folder: {shown}", hint="download the checkpoint into it"
        )
    if CONFIG not in names and {PARAMS, CONSOLIDATED} <= set(names):
        return Located(folder, folder / PARAMS, (folder / CONSOLIDATED,))
    models = [] if _has_weights(names) else models_among(names)
    if len(models) > 1:
        raise UsageError(
            f"{len(models)} GGUF files in {shown}: {listing(models)}",
            hint=f"give one of them, as {quote(folder / models[0], 200)}",
        )
    if models:
        return Located(folder, None, shards_of(folder / models[0], names))
    inner = None if CONFIG in names else _inner(folder)
    if inner is not None:
        raise CheckpointNotFoundError(
            f"no checkpoint in {shown}, but one below it",
            hint=f"did you mean {quote(inner, 200)}?",
        )
    chosen = folder / choose_weights(names, shown)
    if CONFIG not in names:
        raise CheckpointNotFoundError(
            f"weights but no {CONFIG} in {shown}",
            hint="copy it from where the weights come from",
        )
    if chosen.suffix != ".json":
        return Located(folder, folder / CONFIG, (chosen,))
    index = _read_index(chosen, names)
    weights = tuple(sorted(set(index.values())))
    return Located(folder, folder / CONFIG, weights, index, chosen)


def _inner(folder: Path) -> Path | None:
    """The last checkpoint one or two folders below (training runs, the Hub's cache)."""
    for pattern in (f"*/{CONFIG}", f"snapshots/*/{CONFIG}"):
        try:
            found = sorted(itertools.islice(folder.glob(pattern), 1000))
        except OSError:
            continue
        if found:
            return found[-1].parent
    return None


def _has_weights(names: list[str]) -> bool:
    """Whether there are weights that are chosen before a GGUF file."""
    return any(name.endswith((".safetensors", ".bin")) for name in names) or any(
        f"{name}.index.json" in names for name in WEIGHTS
    )


def choose_weights(names: list[str], shown: str) -> str:
    """The file of weights among `names`, or its index; `shown` is where they lie."""
    for name in WEIGHTS:
        for candidate in (name, f"{name}.index.json"):
            if candidate in names:
                return candidate
    if "adapter_config.json" in names or "adapter_model.safetensors" in names:
        raise UnsupportedCheckpointError(
            f"{shown} holds an adapter (LoRA), not a model",
            hint=f"give its base as the checkpoint, and --against {shown}",
        )
    loose = [name for name in names if name.endswith(".safetensors")]
    if len(loose) == 1:
        return loose[0]
    if loose:
        raise CheckpointNotFoundError(
            f"{len(loose)} safetensors files and no index in {shown}"
            f" ({listing(loose)})",
            hint="give one of the files, or add model.safetensors.index.json",
        )
    for name in names:
        suffix = Path(name).suffix
        if suffix in _FOREIGN:
            what, hint = _FOREIGN[suffix]
            raise UnsupportedCheckpointError(
                f"{shown} holds no weights but {quote(name)}, {what}", hint=hint
            )
    bins = [name for name in names if name.endswith(".bin")]
    if len(bins) == 1:
        return bins[0]
    raise CheckpointNotFoundError(
        f"no weights in {shown} (it holds {listing(names)})",
        hint=f"expected {' or '.join(WEIGHTS)}, or an index of one",
    )


def _read_index(index_file: Path, names: list[str]) -> dict[str, Path]:
    weight_map = read_weight_map(index_file)
    present = set(names)
    for shard in weight_map.values():
        if shard not in present:
            raise CheckpointNotFoundError(
                f"{quote(index_file, 200)} names {quote(shard)}, which is not there",
                hint="download the missing file",
            )
    folder = index_file.parent
    return {tensor: folder / shard for tensor, shard in weight_map.items()}


def read_weight_map(index_file: Path) -> dict[str, str]:
    """Which shard each tensor lies in; every shard is a plain file name."""
    shown = quote(index_file, 200)
    weight_map = read_json_object(index_file, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpointError(
            f"{shown} has no weight_map", hint="download it again"
        )
    for tensor, shard in weight_map.items():
        # a plain name of a file beside it: anything else would lead out of the folder
        if (
            not isinstance(shard, str)
            or shard in ("", ".", "..")
            or any(c in shard for c in "/\\\0:")
        ):
            raise CorruptCheckpointError(
                f"{shown} places {quote(tensor)} outside of its folder: {quote(shard)}",
                hint="an index names files beside it; get it from the source again",
            )
    return weight_map
