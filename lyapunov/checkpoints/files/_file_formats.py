"""Which of the two formats a file of weights has, told by its first bytes."""

from pathlib import Path

from ..._errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
)
from ._files import quote, read_start
from ._safetensors import read_header
from ._tensors import StoredTensor
from ._torch_zip import read_archive, refuse_plain_pickle


_SUFFIXES = {  # what a suffix promises
    ".safetensors": "safetensors",
    ".bin": "torch",
    ".pt": "torch",
    ".pth": "torch",
}
_WORDS = {"safetensors": "a safetensors file", "torch": "a file that torch saved"}


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Where the tensors of one file lie, whichever of the two formats it has."""
    kind = check_kind(path)
    return read_header(path)[0] if kind == "safetensors" else read_archive(path)


def check_kind(path: Path) -> str:
    """Tell by its first bytes what a file is, and hold it to its suffix."""
    shown = quote(path, 200)
    start = read_start(path)
    promised = _SUFFIXES.get(path.suffix)
    _refuse_foreign(path, start)
    found = None
    if start[:4] == b"PK\x03\x04":
        found = "torch"
    elif start[8:9] == b"{":
        found = "safetensors"
    if found is None and start[:1] == b"\x80" and promised != "safetensors":
        refuse_plain_pickle(path)
    if found is None and promised is None:
        raise UnsupportedCheckpointError(
            f"{shown} is not a file of weights that is known here",
            hint="give a .safetensors file, a pytorch_model.bin, or their folder",
        )
    if found is None and promised == "torch":
        raise CorruptCheckpointError(
            f"{shown} is not {_WORDS['torch']}: it begins with {_shown_start(start)}",
            hint="download the file again",
        )
    if found is None or promised is None:
        return found or "safetensors"  # its reader says what is wrong
    if found != promised:
        raise CorruptCheckpointError(
            f"{shown} is not what its suffix says: it is {_WORDS[found]}",
            hint="rename it to"
            f" {path.stem}{'.bin' if found == 'torch' else '.safetensors'}",
        )
    return found


def _shown_start(start: bytes) -> str:
    return repr(start[:12])[1:] if start else "nothing (it is empty)"


def _refuse_foreign(path: Path, start: bytes) -> None:
    shown = quote(path, 200)
    lower = start.lstrip().lower()
    if start[:4] == b"GGUF":
        raise UnsupportedCheckpointError(
            f"{shown} is a GGUF file (llama.cpp) under another name",
            hint=f"rename it to {path.stem}.gguf",
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{shown} is a Git LFS pointer; the weights themselves are not there",
            hint="fetch them: git lfs pull",
        )
    if lower.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CorruptCheckpointError(
            f"{shown} is a web page, not weights",
            hint="the download went wrong (a login or an error page?); try again",
        )
    if start.startswith(b"\x89HDF"):
        raise UnsupportedCheckpointError(
            f"{shown} is an HDF5 file, which is not covered",
            hint="convert the weights to safetensors",
        )
