"""A tensor that lies in a file: where, of which type and shape, and how to read it."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from ..._errors import CheckpointError, CorruptCheckpointError
from ._files import broken, human_bytes, open_regular, quote, reading


DTYPES: dict[str, np.dtype] = {
    "fp64": np.dtype("<f8"),
    "fp32": np.dtype("<f4"),
    "fp16": np.dtype("<f2"),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "fp8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "fp8_e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint64": np.dtype("<u8"),
    "uint32": np.dtype("<u4"),
    "uint16": np.dtype("<u2"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
}
"""Types by the names that the report uses."""

WEIGHT_DTYPES = ("fp64", "fp32", "fp16", "bf16")
"""Types that weights may be stored in without being called quantised."""

MAX_AXES = 16
MAX_ELEMENTS = 2**48


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    **Arguments:**

    - `path`: the file.
    - `dtype`: a key of `DTYPES`.
    - `shape`: lengths of the axes.
    - `offset`: byte of the file at which element 0 lies.
    - `strides`: in elements; `None` for row-major order without gaps.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self) -> np.ndarray:
        """The whole tensor, in its stored type."""
        if self.strides is None:
            return self._stretch(self.offset, self.shape)
        if 0 in self.shape:
            return np.empty(self.shape, DTYPES[self.dtype])
        span = 1 + sum(
            (n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)
        )
        flat = self._stretch(self.offset, (span,))
        strides = tuple(s * flat.itemsize for s in self.strides)
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides)
        return np.ascontiguousarray(view)

    def read_rows(self, start, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` of axis 0, or the rows that an array names.

        Only these rows are read from the file; a row that is named twice is read
        once.
        """
        if not self.shape:
            raise IndexError("a tensor without axes has no rows")
        if stop is not None:
            return self._read_range(int(start), int(stop))
        rows = np.asarray(start)
        if rows.dtype.kind not in "iu" and rows.size:
            raise IndexError(f"rows are named by integers, not {rows.dtype}")
        n_rows = self.shape[0]
        if rows.size and not (rows.min() >= 0 and rows.max() < n_rows):
            raise IndexError(
                f"row {rows.min() if rows.min() < 0 else rows.max()}"
                f" of a tensor of {n_rows} rows"
            )
        unique, inverse = np.unique(rows.astype(np.int64), return_inverse=True)
        if self.strides is not None:
            return self.read()[unique][inverse].reshape(*rows.shape, *self.shape[1:])
        found = _reserve((len(unique), *self.shape[1:]), self.dtype, self.path)
        breaks = np.flatnonzero(np.diff(unique) != 1) + 1
        runs = np.split(np.arange(len(unique)), breaks) if len(unique) else []
        with open_regular(self.path) as (file, _):
            for run in runs:
                first, last = int(run[0]), int(run[-1])
                where = self.offset + int(unique[first]) * self._row_bytes
                _fill(file, where, found[first : last + 1], self.path)
        return found[inverse].reshape(*rows.shape, *self.shape[1:])

    def _read_range(self, start: int, stop: int) -> np.ndarray:
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(
                f"rows {start} to {stop} of a tensor of {self.shape[0]} rows"
            )
        if self.strides is not None:
            return self.read()[start:stop]
        where = self.offset + start * self._row_bytes
        return self._stretch(where, (stop - start, *self.shape[1:]))

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * DTYPES[self.dtype].itemsize

    def _stretch(self, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        """Elements that lie one behind another in the file."""
        out = _reserve(shape, self.dtype, self.path)
        with open_regular(self.path) as (file, _):
            _fill(file, offset, out, self.path)
        return out


def check_shape(shape: object, what: str) -> tuple[int, ...]:
    """Refuse a shape that no tensor has."""
    if not isinstance(shape, list | tuple) or len(shape) > MAX_AXES:
        raise broken(f"{what} has no plausible shape")
    for n in shape:
        if type(n) is not int or not 0 <= n <= MAX_ELEMENTS:
            raise broken(f"{what} has an axis of length {quote(n, 40)} in its shape")
    return tuple(shape)


def _reserve(shape: tuple[int, ...], dtype: str, path: Path) -> np.ndarray:
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if needed > physical_memory():
        raise CheckpointError(
            f"a tensor of shape {shape} in {quote(path, 200)} takes"
            f" {human_bytes(needed)}, more than this machine's memory"
        )
    try:
        return np.empty(shape, DTYPES[dtype])
    except (MemoryError, ValueError) as e:
        raise CheckpointError(
            f"no memory for a tensor of {human_bytes(needed)} of {quote(path, 200)}"
        ) from e


def physical_memory() -> int:
    """Bytes of memory in this machine; a large number where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**48


def _fill(file: BinaryIO, offset: int, out: np.ndarray, path: Path) -> None:
    view = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    with reading(path):
        file.seek(offset)
        done = 0
        while done < len(view):
            n = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not n:
                raise CorruptCheckpointError(
                    f"{quote(path, 200)} ends {len(view) - done} bytes too soon",
                    hint="was it being written? Download or copy it again",
                )
            done += n
