"""Tensors of a GGUF file, and what they are under a family's own names."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files._tensors import StoredTensor
from ._header import Entry
from ._kinds import KINDS, PLAIN, values


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
    def dtype(self) -> str:
        """Name the type in which the numbers are read."""
        return PLAIN.get(self.kind, "fp32")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self) -> np.ndarray:
        """Read the whole tensor."""
        return self._values(self.stored.read())

    def read_rows(self, start, stop: int | None = None) -> np.ndarray:
        """Read rows `start` to `stop` of axis 0, or the rows that an array names."""
        if len(self.shape) < 2:  # the only row is the tensor
            rows = self.read()
            return rows[start] if stop is None else rows[start:stop]
        return self._values(self.stored.read_rows(start, stop))

    def _values(self, stored: np.ndarray) -> np.ndarray:
        if self.kind in PLAIN:
            return stored
        return values(self.kind, stored, f"{self.stored.path}: {self.name}")


Arrays = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class MadeTensor:
    """Make a tensor of a family's own layout of those that a file holds.

    **Arguments:**

    - `sources`: what it is made of.
    - `dtype`: of what `make` gives.
    - `make`: from the sources, read whole.
    """

    sources: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: str
    make: Arrays = field(repr=False)

    @property
    def name(self) -> str:
        """Name it as the file does, by the first that it is made of."""
        return self.sources[0].name

    @property
    def kind(self) -> str:
        """Name the formats that it is stored in."""
        return ", ".join(dict.fromkeys(one.kind for one in self.sources))

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
