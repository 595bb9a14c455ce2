"""Named arrays and words in a file that nobody vouches for: sizes before memory."""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..._errors import CheckpointError, DumpError
from ...checkpoints.files._safetensors import read_header
from ...checkpoints.files._tensors import DTYPES
from ._keys import BF16


MOST_ARRAYS = 100_000


class AbstractArrays(abc.ABC):
    """The arrays of one file by name. Nothing is unpickled.

    **Raises:** `DumpError` for whatever is no such file, lies about its sizes, or
    holds too many arrays.
    """

    path: Path

    @abc.abstractmethod
    def __iter__(self) -> Iterator[str]:
        """Names of arrays and words, in the file's order."""

    @abc.abstractmethod
    def __contains__(self, name: str) -> bool: ...

    @abc.abstractmethod
    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """What the header says of an array."""

    @abc.abstractmethod
    def text(self, name: str, hint: str) -> str:
        """A word; `hint` is said where there is none.

        **Raises:** `DumpError`.
        """

    def flag(self, name: str) -> bool:
        """True or False.

        **Raises:** `DumpError`.
        """
        array = self.read(name, kinds="biu", most=1, hint="True or False")
        if array.size != 1:
            raise DumpError(f"{name} has shape {array.shape}", hint="True or False")
        return bool(array.reshape(-1)[0])

    @abc.abstractmethod
    def _loaded(self, name: str) -> np.ndarray:
        """The array, once its header was found plausible."""

    def read(
        self, name: str, *, kinds: str = "fu", most: int | None = None, hint: str = ""
    ) -> np.ndarray:
        """One array.

        **Arguments:**

        - `kinds`: allowed kinds of dtype, as NumPy names them; bf16 is an f.
        - `most`: elements (or characters of a text) at most.

        **Raises:** `DumpError` where it is not there, or of another kind.
        """
        if name not in self:
            raise DumpError(f"{self.path.name} has no {name!r}", hint=hint)
        shape, dtype = self.shape_and_dtype(name)
        size = int(np.prod(shape, dtype=object)) * (
            dtype.itemsize if dtype.kind in "US" else 1
        )
        kind = "f" if dtype == BF16 else dtype.kind
        if kind not in kinds or (most is not None and size > 4 * most):
            raise DumpError(
                f"{name} is of dtype {dtype} and shape {shape}",
                hint=hint or "floats",
            )
        return self._loaded(name)


class Safetensors(AbstractArrays):
    """A .safetensors: tensors in the file, words in its `__metadata__`."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._tensors, words = read_header(path)
        except CheckpointError as error:
            raise DumpError(error.message, hint="write the dump again") from None
        if not all(isinstance(word, str) for word in words.values()):
            raise DumpError(
                f"{path.name} has metadata that is no text",
                hint="save_file(tensors, path, metadata={...}) takes texts alone",
            )
        self._words: dict[str, Any] = words
        doubled = sorted(set(self._tensors) & set(words))
        if doubled or len(self._tensors) > MOST_ARRAYS:
            wrong = f"{doubled[0][:80]!r} twice" if doubled else "too many tensors"
            raise DumpError(f"{path.name} has {wrong}", hint="each key once")

    def __iter__(self) -> Iterator[str]:
        yield from self._words
        yield from self._tensors

    def __contains__(self, name: str) -> bool:
        return name in self._words or name in self._tensors

    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """What the header says, which is what the file's length agrees with."""
        if name not in self._tensors:
            raise DumpError(f"{name} is a text", hint="a tensor of that name")
        tensor = self._tensors[name]
        return tensor.shape, DTYPES[tensor.dtype]

    def text(self, name: str, hint: str) -> str:
        """A word of the metadata."""
        if name not in self._words:
            what = "a tensor, not a text" if name in self else "not there"
            raise DumpError(f"{name} in {self.path.name} is {what}", hint=hint)
        return self._words[name]

    def flag(self, name: str) -> bool:
        """True or False, as a word or as a tensor of one element."""
        if name not in self._words:
            return super().flag(name)
        word = self._words[name].lower()
        if word not in ("true", "false"):
            raise DumpError(f"{name} is {word[:40]!r}", hint="True or False")
        return word == "true"

    def _loaded(self, name: str) -> np.ndarray:
        try:
            return self._tensors[name].read()
        except CheckpointError as error:
            raise DumpError(error.message, hint="write the dump again") from None
