"""Tensors of a GGUF file, and what they are under a family's own names."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..._errors import CheckpointError
from ..files._files import human_bytes, quote
from ..files._tensors import DTYPES, StoredTensor, physical_memory
from ..quantised._tensor import Format
from ._header import Entry
from ._kinds import KINDS, PLAIN, values


METHOD = "gguf"

_BY_NAME = {kind.name: kind for kind in KINDS.values()}


@dataclass(frozen=True)
class GgufTensor:
    """Read one tensor of a file, row by row where that is asked.

    Numbers in blocks come in fp32, which holds what the gguf package makes of them.

    **Arguments:**

    - `name`: in the file.
    - `kind`: ggml's name of the format.
    - `stored`: the tensor itself, or the bytes of its blocks, (..., bytes of a row).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    stored: StoredTensor

    @classmethod
    def of(cls, path: Path, entry: Entry) -> "GgufTensor":
        """Find the tensor that a header describes."""
        if entry.kind in PLAIN:
            stored = StoredTensor(path, PLAIN[entry.kind], entry.shape, entry.offset)
        else:
            kind = _BY_NAME[entry.kind]
            row = entry.shape[-1] // kind.elements * kind.bytes
            shape = (*entry.shape[:-1], row)
            stored = StoredTensor(path, "uint8", shape, entry.offset)
        return cls(entry.name, entry.kind, entry.shape, stored)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Name the kinds that it is stored in."""
        return (self.kind,)

    @property
    def format(self) -> Format | None:
        """Say how its blocks are stored; None where it has none."""
        return format_of(self.kinds)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        return self.stored.size * DTYPES[self.stored.dtype].itemsize

    @property
    def dtype(self) -> str:
        """How it is stored, in words."""
        return PLAIN.get(self.kind, str(self.format))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self) -> np.ndarray:
        """Read the whole tensor."""
        self._demand_memory(self.size)
        return self._values(self.stored.read())

    def read_rows(self, start, stop: int | None = None) -> np.ndarray:
        """Read rows `start` to `stop` of axis 0, or the rows that an array names."""
        if len(self.shape) < 2:  # the only row is the tensor
            rows = self.read()
            return rows[start] if stop is None else rows[start:stop]
        count = np.size(start) if stop is None else max(stop - start, 0)
        self._demand_memory(count * math.prod(self.shape[1:]))
        return self._values(self.stored.read_rows(start, stop))

    def _demand_memory(self, elements: int) -> None:
        """Refuse, before anything is read, numbers that take more than there is."""
        needed = 4 * elements
        if self.kind not in PLAIN and needed > physical_memory():
            raise CheckpointError(
                f"{quote(self.name)} takes {human_bytes(needed)} in fp32, more than"
                " this machine's memory"
            )

    def _values(self, stored: np.ndarray) -> np.ndarray:
        if self.kind in PLAIN:
            return stored
        return values(self.kind, stored, f"{self.stored.path}: {self.name}")


def format_of(kinds: Iterable[str]) -> Format | None:
    """How tensors of these kinds are stored, of those that are blocks; None of none."""
    found = [kind for kind in dict.fromkeys(kinds) if kind not in PLAIN]
    if not found:
        return None
    sizes = dict.fromkeys(_BY_NAME[kind].elements for kind in found)
    blocks = " and ".join(map(str, sizes))
    return Format(" and ".join(found), f"blocks of {blocks}", METHOD)


Arrays = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class MadeTensor:
    """Make a tensor of a family's own layout of those that a file holds.

    **Arguments:**

    - `sources`: what it is made of.
    - `make`: from the sources, read whole.
    """

    sources: tuple[Any, ...]
    shape: tuple[int, ...]
    make: Arrays = field(repr=False)

    @property
    def name(self) -> str:
        """Name it as the file does, by the first that it is made of."""
        return self.sources[0].name

    @property
    def kinds(self) -> tuple[str, ...]:
        """Name the kinds that it is stored in."""
        return tuple(kind for one in self.sources for kind in one.kinds)

    @property
    def format(self) -> Format | None:
        """Say how its blocks are stored; None where it has none."""
        return format_of(self.kinds)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file of what it is made of."""
        return sum(one.stored_bytes for one in self.sources)

    @property
    def dtype(self) -> str:
        """How it is stored, in words; not the type in which it is read."""
        return str(self.format or PLAIN[self.kinds[0]])

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self) -> np.ndarray:
        """Read the whole tensor."""
        return self.make([one.read() for one in self.sources])

    def read_rows(self, start, stop: int | None = None) -> np.ndarray:
        """Read it whole, and take rows of it."""
        whole = self.read()
        return whole[start] if stop is None else whole[start:stop]
