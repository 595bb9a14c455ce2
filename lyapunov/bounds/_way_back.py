"""What every reverse pass through a network holds on its way back."""

import tempfile
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float


# Streams of the reference that are kept in memory for the way back; the rest goes to
# a temporary file.
KEPT_BYTES = 2**28


class Pulls(NamedTuple):
    """Adjoints of what a sublayer's neighbours read, for each read-out."""

    stream: Float[Array, "readouts seq d_model"]
    """Of the stream behind it."""
    aside: Float[Array, "readouts seq d_model"]
    """Of what the next sublayer alone reads on top of it."""
    out: Any = None
    """Of the outputs of the sublayers side by side that are being gone through."""

    def in_front_of(self, aside: bool) -> "Pulls":
        """Before the last of those side by side; `aside` as in `Sublayer`."""
        nothing: Any = np.zeros(self.aside.shape)
        return Pulls(self.stream, nothing, self.aside if aside else self.stream)


class Streams:
    """The reference's streams in front of each sublayer, last in first out."""

    def __init__(self):
        self._held: list[np.ndarray] = []
        self._bytes = 0
        self._file = None
        self._spilled = 0
        self._shape: tuple[int, ...] = ()

    def append(self, stream) -> None:
        """Keep one more."""
        stream = np.asarray(stream)
        self._shape = stream.shape
        if self._bytes + stream.nbytes <= KEPT_BYTES:
            self._held.append(stream)
            self._bytes += stream.nbytes
            return
        if self._file is None:
            # closed where its last stream is read
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._file.write(stream.tobytes())
        self._spilled += 1

    def pop(self) -> Float[np.ndarray, "sequences seq d_model"]:
        """Give the last that was kept."""
        if not self._spilled:
            return self._held.pop()
        assert self._file is not None
        self._spilled -= 1
        size = int(np.prod(self._shape)) * 8
        self._file.seek(self._spilled * size)
        stream = np.frombuffer(self._file.read(size)).reshape(self._shape)
        if not self._spilled:
            self._file.close()
            self._file = None
        return stream
