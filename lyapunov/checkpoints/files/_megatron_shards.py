"""Megatron's checkpoints: tensors cut for several GPUs, put together as they are read.

Rank r of a tensor-parallel run holds a slice of each large tensor. Rows of in_proj and
of the convolution belong to components (z, x, B, C, dt) of which each rank holds its
share, so that ranks are joined component by component.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..._errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
)
from ._files import listing, quote
from ._tensors import DTYPES, StoredTensor
from ._torch_zip import read_training_archive


FILE = "model_optim_rng.pt"
TRACKER = "latest_checkpointed_iteration.txt"

_RANK = re.compile(r"mp_rank_(\d+)")
_FIRST_AXIS = (
    "word_embeddings.weight", "output_layer.weight", "A_log", "D", "dt_bias",
    "mixer.norm.weight", "linear_qkv.weight", "linear_qkv.bias", "linear_fc1.weight",
    "linear_fc1.bias", "mixer.in_proj.weight", "conv1d.weight", "conv1d.bias",
)  # fmt: skip
_SECOND_AXIS = ("out_proj.weight", "linear_proj.weight", "linear_fc2.weight")


@dataclass(frozen=True)
class JoinedTensor:
    """A tensor whose slices lie in several files.

    **Arguments:**

    - `parts`: its slices, rank by rank.
    - `axis`: along which they are cut.
    - `components`: rows of each slice that belong together, where there are several.
    """

    parts: tuple[StoredTensor, ...]
    axis: int
    components: tuple[int, ...] = ()

    @property
    def dtype(self) -> str:
        """A key of `DTYPES`."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return sum(part.size for part in self.parts)

    def read(self) -> np.ndarray:
        """The whole tensor, in its stored type."""
        slices = [part.read() for part in self.parts]
        if not self.components:
            return np.concatenate(slices, axis=self.axis)
        cuts = np.cumsum(self.components)[:-1]
        by_rank = [np.split(one, cuts, axis=0) for one in slices]
        return np.concatenate(
            [np.concatenate(of_ranks) for of_ranks in zip(*by_rank, strict=True)]
        )

    def read_rows(self, start: Any, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` of axis 0, or the rows that an array names."""
        rows = np.arange(start, stop) if stop is not None else np.asarray(start)
        if self.axis != 0 or self.components:
            return self.read()[rows]
        out = np.empty((*rows.shape, *self.shape[1:]), DTYPES[self.dtype])
        first = 0
        for part in self.parts:
            here = (rows >= first) & (rows < first + part.shape[0])
            out[here] = part.read_rows(rows[here] - first)
            first += part.shape[0]
        return out


def shard_files(path: Path) -> tuple[Path, ...] | None:
    """The shards of a Megatron checkpoint, rank by rank; None where there is none.

    **Arguments:**

    - `path`: a shard, a rank's folder, an iteration's, or the one with the tracker.
    """
    if path.name == FILE:
        return _ranks(path.parent.parent) if _RANK.match(path.parent.name) else (path,)
    if not path.is_dir():
        return None
    if (path / TRACKER).is_file():
        return _ranks(_latest(path))
    if (path / FILE).is_file():
        return shard_files(path / FILE)
    return _ranks(path) if any(path.glob("mp_rank_*")) else None


def _latest(path: Path) -> Path:
    word = (path / TRACKER).read_text(errors="replace")[:64].strip()
    name = f"iter_{int(word):07d}" if word.isdecimal() else word
    plain = word.isdecimal() or word == "release"
    if not plain or not (path / name).is_dir():
        raise CheckpointNotFoundError(
            f"{TRACKER} in {quote(path, 200)} names {quote(word)}, which is not there",
            hint="give the folder of an iteration",
        )
    return path / name


def _ranks(folder: Path) -> tuple[Path, ...]:
    names = sorted(one.name for one in folder.glob("mp_rank_*"))
    if not names or not all(_RANK.fullmatch(name) for name in names):
        raise UnsupportedCheckpointError(
            f"{quote(folder, 200)} holds {listing(names) or 'no rank'}: checkpoints cut"
            " by layers (pipeline parallelism) are not covered",
            hint="convert it to one pipeline stage with Megatron's tools",
        )
    numbers = [int(name.removeprefix("mp_rank_")) for name in names]
    if numbers != list(range(len(names))):
        raise CheckpointNotFoundError(
            f"{quote(folder, 200)} lacks ranks: it holds {listing(names)}",
            hint="download all of them",
        )
    files = tuple(folder / name / FILE for name in names)
    for file in files:
        if not file.is_file():
            raise CheckpointNotFoundError(
                f"no {FILE} in {quote(file.parent, 200)}",
                hint="distributed checkpoints (torch_dist) are not covered:"
                " convert them to the format torch",
            )
    return files


def read_shards(files: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the training run, and the tensors by name, put together."""
    read = [read_training_archive(file) for file in files]
    args = {str(key): value for key, value in read[0][1].items()}
    wanted = args.get("tensor_model_parallel_size", len(files))
    if wanted != len(files):
        raise CheckpointNotFoundError(
            f"a checkpoint of {quote(wanted, 20)} ranks, and {len(files)} are there",
            hint="give the folder above mp_rank_00, with all ranks in it",
        )
    shards = [
        {name: t for name, t in one.items() if not name.endswith("_extra_state")}
        for one, _ in read
    ]
    names = set().union(*shards)
    for file, one in zip(files, shards, strict=True):
        if set(one) != names:
            raise CorruptCheckpointError(
                f"{quote(file, 200)} lacks {listing(sorted(names - set(one)))},"
                " which another rank has",
                hint="take all ranks from the same place",
            )
    joined = {name: _joined(name, [one[name] for one in shards], shards[0], args)
              for name in shards[0]}  # fmt: skip
    return {**args, "model_type": "megatron"}, joined


def _joined(name: str, parts: list, first: dict[str, StoredTensor], args: dict) -> Any:
    """One tensor of all ranks; those that every rank has whole are taken from one."""
    if len(parts) == 1:
        return parts[0]
    end = name.removeprefix("decoder.").replace("conv1d_", "conv1d.")
    axis = 1 if end.endswith(_SECOND_AXIS) else 0 if end.endswith(_FIRST_AXIS) else None
    if axis is None or len(parts[0].shape) <= axis:
        return parts[0]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise CorruptCheckpointError(
            f"{quote(name)} has different shapes in different ranks",
            hint="take all ranks from the same place",
        )
    return JoinedTensor(tuple(parts), axis, _components(name, parts[0], first, args))


def _components(
    name: str, part: StoredTensor, first: dict[str, StoredTensor], args: dict
) -> tuple[int, ...]:
    """Rows of one rank's slice by what they are, where they are several things."""
    rows = part.shape[0]
    if "linear_fc1" in name and args.get("swiglu"):
        return (rows // 2, rows // 2)
    mixer, found, rest = name.partition("mixer.")
    out = first.get(f"{mixer}mixer.out_proj.weight")
    heads = first.get(f"{mixer}mixer.dt_bias")
    if not found or out is None or heads is None or len(out.shape) != 2:
        return ()
    inner = out.shape[1]
    if rest.startswith("conv1d"):
        wide = (rows - inner) // 2
        return (inner, wide, rows - inner - wide)
    if rest == "in_proj.weight":
        steps = heads.shape[0]
        wide = (rows - 2 * inner - steps) // 2
        return (inner, inner, wide, rows - 2 * inner - steps - wide, steps)
    return ()
