"""A tensor that is stored as codes under scales, and reads as the numbers they mean.

To whoever reads it is like one of a file (`files._tensors.StoredTensor`) of its logical
shape, but its numbers come in fp64: code times scale, rounded to no 16-bit format.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..._errors import CheckpointError, CorruptCheckpointError
from ..files._files import human_bytes, quote
from ..files._tensors import DTYPES, StoredTensor, physical_memory


_ELEMENTS = 2**22  # that are made at once, of a layout whose rows can be read apart


class Format(NamedTuple):
    """Say how a matrix is stored."""

    element: str
    """Of the codes: int4, fp8_e4m3, e2m1, nf4, ..."""
    scaling: str
    """Which weights share a scale: a tensor, a row, groups of 128, ..."""
    method: str
    """Whose layout it is."""

    def __str__(self) -> str:
        return f"{self.element} ({self.method}, {self.scaling})"


@runtime_checkable
class Coded(Protocol):
    """Whatever is stored as codes, and reads as the numbers that they mean."""

    @property
    def format(self) -> Format | None:
        """Say how it is stored; None: its numbers stand there themselves."""
        ...

    @property
    def stored_bytes(self) -> int:
        """Bytes of codes and scales in the file."""
        ...


def coded(tensor: Any) -> Coded | None:
    """The tensor itself if it is stored as codes; None of any other."""
    return None if getattr(tensor, "format", None) is None else tensor


@dataclass(frozen=True, eq=False)
class QuantisedTensor:
    """Hold where codes and scales of one matrix lie, and how they become numbers.

    **Arguments:**

    - `name`: of the parameter that it is.
    - `shape`: of the matrix, (outputs, inputs).
    - `values`: from rows `start` to `stop` their numbers, (rows, columns) in fp64.
    - `stored`: everything that it is made of, for its size.
    - `by_rows`: whether rows are read without the others.
    - `scale`: the one fp32 scale of the whole, where there is one: of a tensor, or of
      NVFP4's blocks.
    """

    name: str
    shape: tuple[int, int]
    format: Format
    values: Callable[[int, int], np.ndarray] = field(repr=False)
    stored: tuple[StoredTensor, ...] = field(repr=False)
    by_rows: bool = True
    scale: StoredTensor | None = field(repr=False, default=None)

    @property
    def dtype(self) -> str:
        """How it is stored, in words."""
        return str(self.format)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.shape[0] * self.shape[1]

    @property
    def stored_bytes(self) -> int:
        """Bytes of codes and scales in the file."""
        return sum(one.size * DTYPES[one.dtype].itemsize for one in self.stored)

    def read(self) -> np.ndarray:
        """The whole matrix, in fp64."""
        return self._rows(0, self.shape[0])

    def read_rows(self, start, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop`, or the rows that an array names, in fp64."""
        n_rows = self.shape[0]
        if stop is not None:
            if not 0 <= start <= stop <= n_rows:
                raise IndexError(f"rows {start} to {stop} of {n_rows}")
            return self._rows(int(start), int(stop))
        rows = np.asarray(start)
        if rows.dtype.kind not in "iu" and rows.size:
            raise IndexError(f"rows are named by integers, not {rows.dtype}")
        if rows.size and not (rows.min() >= 0 and rows.max() < n_rows):
            raise IndexError(f"a row beyond a tensor of {n_rows} rows")
        unique, inverse = np.unique(rows.astype(np.int64), return_inverse=True)
        if not self.by_rows and len(unique):
            found = self._rows(0, n_rows)[unique]
        else:
            found = np.empty((len(unique), self.shape[1]))
            breaks = np.flatnonzero(np.diff(unique) != 1) + 1
            for run in np.split(np.arange(len(unique)), breaks):
                if len(run):
                    first, last = int(unique[run[0]]), int(unique[run[-1]])
                    found[run[0] : run[-1] + 1] = self._rows(first, last + 1)
        return found[inverse].reshape(*rows.shape, self.shape[1])

    def _rows(self, start: int, stop: int) -> np.ndarray:
        needed = (stop - start) * self.shape[1] * 8
        if needed > physical_memory():
            raise CheckpointError(
                f"{quote(self.name)} takes {human_bytes(needed)} in fp64, more than"
                " this machine's memory"
            )
        if not self.by_rows:
            return self.values(start, stop)
        return in_steps(start, stop, self.shape[1], self.values)


def in_steps(
    start: int, stop: int, columns: int, values: Callable[[int, int], np.ndarray]
) -> np.ndarray:
    """Rows made some at a time, so that what they are made of takes little beside."""
    step = max(1, _ELEMENTS // max(columns, 1))
    found = np.empty((stop - start, columns))
    for first in range(start, stop, step):
        last = min(first + step, stop)
        found[first - start : last - start] = values(first, last)
    return found


class Grid(NamedTuple):
    """Numbers of which each belongs to a block of a matrix: scales or zero points."""

    read: Callable[[int, int], np.ndarray]
    """From a range of rows of blocks their numbers, (rows, blocks across) in fp64."""
    rows: int
    columns: int
    """Of one block; the last may be short."""

    def over(self, start: int, stop: int, columns: int) -> np.ndarray:
        """The number of each element of these rows, (stop - start, columns)."""
        first, last = start // self.rows, -(-stop // self.rows)
        tall = np.repeat(self.read(first, last), self.rows, axis=0)
        here = tall[start - first * self.rows : stop - first * self.rows]
        return np.repeat(here, self.columns, axis=1)[:, :columns]


def sound_scales(values: np.ndarray, name: str, *, zero: bool = False) -> np.ndarray:
    """Scales in fp64, which have to be finite, and not 0.

    **Arguments:**

    - `zero`: whether 0 is a scale like any other: of NVFP4's blocks, whose scale in
      e4m3 may underflow.

    **Raises:** `CorruptCheckpointError`.
    """
    found = values.astype(np.float64)
    if not np.all(np.isfinite(found)):
        bad = int(np.count_nonzero(~np.isfinite(found)))
        raise CorruptCheckpointError(
            f"{quote(name)} holds {bad} scales that are NaN or infinite, of"
            f" {found.size}",
            hint="quantise again, with weights that are finite, or take an earlier"
            " save",
        )
    if not zero and not np.all(found):
        bad = int(np.count_nonzero(found == 0))
        raise CorruptCheckpointError(
            f"{quote(name)} holds {bad} scales of 0, of {found.size}: codes under them"
            " mean nothing",
            hint="a row of zeros is stored as codes of 0 under any other scale:"
            " quantise again with a smallest scale (eps)",
        )
    return found


def sound_float_codes(codes: np.ndarray, name: str) -> np.ndarray:
    """Codes of 8-bit floating point as fp64 numbers; NaN and inf are refused.

    **Raises:** `CorruptCheckpointError`.
    """
    found = codes.astype(np.float64)
    bad = int(np.count_nonzero(~np.isfinite(found)))
    if bad:
        raise CorruptCheckpointError(
            f"{quote(name)} holds {bad} codes of {codes.dtype.name} that are no number"
            f" (NaN or inf), of {codes.size}",
            hint="the format has no room above its largest number: clip before the"
            " cast, and quantise again",
        )
    return found
