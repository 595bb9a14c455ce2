"""A .npz that nobody vouches for: headers first, memory after."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..._errors import DumpError
from ._arrays import MOST_ARRAYS, AbstractArrays


MOST_HEADER = 10_000
"""Bytes of a .npy header; NumPy's own limit."""


class Npz(AbstractArrays):
    """A .npz, whose words are arrays without axes.

    **Raises:** `DumpError` as well where two arrays have one name.
    """

    def __init__(self, path: Path):
        self.path = path
        self._members: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        try:
            if not path.is_file():
                raise DumpError(
                    f"there is no file {path}", hint="the path of a dump, a .npz"
                )
            with zipfile.ZipFile(path) as file:
                members = file.infolist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise DumpError(
                f"{path.name} is no .npz ({error})", hint="np.savez writes one"
            ) from None
        if len(members) > MOST_ARRAYS:
            raise DumpError(
                f"{path.name} has {len(members)} arrays",
                hint=f"at most {MOST_ARRAYS}; fewer runs in a file",
            )
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in self._members or name == member.filename:
                wrong = "twice" if name in self._members else "as no .npy"
                raise DumpError(
                    f"{path.name} has {name[:80]!r} {wrong}",
                    hint="np.savez writes each array once",
                )
            if member.flag_bits & 1:
                raise DumpError(f"{path.name} is encrypted", hint="np.savez is not")
            self._members[name] = member.filename
            self._sizes[name] = member.file_size
        self._headers: dict[str, tuple[tuple[int, ...], np.dtype]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """What the header says, which is what the member's size must be."""
        if name not in self._headers:
            with self._open(name) as stream:
                shape, _, dtype = self._header(name, stream)
            self._headers[name] = shape, dtype
        return self._headers[name]

    def text(self, name: str, hint: str) -> str:
        """A text without axes."""
        array = self.read(name, kinds="US", most=200, hint=hint)
        value = array.item() if array.shape == () else None
        if isinstance(value, bytes):
            value = value.decode("ascii", "replace")
        if value is None:
            raise DumpError(f"{name} has shape {array.shape}", hint="a single text")
        return value

    def _loaded(self, name: str) -> np.ndarray:
        with self._open(name) as stream:
            shape, fortran, dtype = self._header(name, stream)
            try:
                data = stream.read()
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
                raise self._damaged(name, str(error)) from None
        count = int(np.prod(shape, dtype=object))
        if len(data) != count * dtype.itemsize:
            raise self._damaged(name, "shorter than its header says")
        array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        return array.astype(dtype.newbyteorder("="))

    def _open(self, name: str) -> Any:
        try:
            file = zipfile.ZipFile(self.path)
            stream = file.open(self._members[name])
        except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
            raise self._damaged(name, str(error)) from None
        # the stream keeps the file open as long as it needs it
        file.close()
        return stream

    def _header(self, name: str, stream) -> tuple[tuple[int, ...], bool, np.dtype]:
        """Read a .npy header; hold the size that it implies to the member's."""
        reader = np.lib.format
        try:
            version = reader.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version}")
            read = (
                reader.read_array_header_1_0
                if version == (1, 0)
                else reader.read_array_header_2_0
            )
            shape, fortran, dtype = read(stream, max_header_size=MOST_HEADER)
        except (
            ValueError,
            TypeError,
            EOFError,
            OSError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise self._damaged(name, " ".join(str(error).split())[:120]) from None
        if dtype.hasobject or dtype.names or dtype.subdtype:
            raise DumpError(
                f"{name} is of dtype {dtype}, which may run code when it is read",
                hint="plain numbers or a text",
            )
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if any(n < 0 for n in shape) or stream.tell() + size != self._sizes[name]:
            raise self._damaged(
                name, f"its header says shape {shape} of {dtype}, its size does not"
            )
        return shape, fortran, dtype

    def _damaged(self, name: str, reason: str) -> DumpError:
        return DumpError(
            f"{name[:80]} in {self.path.name} cannot be read ({reason})",
            hint="write the dump again",
        )
