"""Reading a file from its beginning, never more than there is."""

import struct
from pathlib import Path
from typing import BinaryIO

from ..files._files import broken, human_bytes, quote, reading


_CHUNK = 2**20


class Cursor:
    """Read little-endian values one behind another.

    Nothing is held but the present megabyte, whatever a length in the file says.

    **Arguments:**

    - `size`: of the file, in bytes.
    """

    def __init__(self, file: BinaryIO, size: int, path: Path):
        self.at = 0
        self.size = size
        self._file = file
        self._path = path
        self._chunk = b""
        self._start = 0

    def demand(self, n: int, what: str) -> None:
        """Refuse a length that goes beyond the end of the file.

        **Raises:** `CorruptCheckpointError`.
        """
        left = self.size - self.at
        if n > left:
            raise broken(
                f"{quote(self._path, 200)}: {what} takes {human_bytes(n)} and"
                f" {human_bytes(left)} are left of the file"
            )

    def take(self, n: int, what: str) -> bytes:
        """Read n bytes; `what` they are is for the message.

        **Raises:** `CorruptCheckpointError` where the file ends before.
        """
        self.demand(n, what)
        begin = self.at - self._start
        if not 0 <= begin <= begin + n <= len(self._chunk):
            self._read(max(n, _CHUNK))
            begin = 0
            if len(self._chunk) < n:
                raise broken(f"{quote(self._path, 200)} ends inside {what}")
        self.at += n
        return self._chunk[begin : begin + n]

    def skip(self, n: int, what: str) -> None:
        """Go n bytes on without reading them.

        **Raises:** `CorruptCheckpointError` where the file ends before.
        """
        self.demand(n, what)
        self.at += n

    def value(self, form: str, what: str) -> int | float:
        """Read one number of a form of `struct`."""
        size = struct.calcsize(f"<{form}")
        return struct.unpack(f"<{form}", self.take(size, what))[0]

    def whole(self, form: str, what: str) -> int:
        """Read one integer of a form of `struct`."""
        return int(self.value(form, what))

    def _read(self, n: int) -> None:
        self._start, parts, left = self.at, [], min(n, self.size - self.at)
        with reading(self._path):
            self._file.seek(self.at)
            while left and (part := self._file.read(left)):
                parts.append(part)
                left -= len(part)
        self._chunk = b"".join(parts)
