"""Reading files that nobody vouches for: every failure becomes one clear line."""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..._errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError


MAX_CONFIG_BYTES = 4 * 2**20
MAX_INDEX_BYTES = 32 * 2**20


def quote(text: object, limit: int = 80) -> str:
    """Show a name found in a file on one line, however long or odd it is."""
    shown = repr(str(text))[1:-1]
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def listing(names: list[str] | tuple[str, ...], limit: int = 3) -> str:
    """Name the first few and count the rest."""
    shown = ", ".join(quote(name, 60) for name in names[:limit])
    rest = len(names) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def human_bytes(n: int) -> str:
    """A size with a unit, for people."""
    if n < 1000:
        return f"{n} B"
    power = min((len(str(n)) - 1) // 3, 6)
    return f"{n / 1000**power:.3g} {'kMGTPE'[power - 1]}B"


def broken(what: str) -> CorruptCheckpointError:
    """The error for a file that is not as it was written."""
    hint = "download the file again; its size should match the source's"
    return CorruptCheckpointError(what, hint=hint)


def disagreeing(what: str) -> CorruptCheckpointError:
    """The error for settings and weights that are not of one model."""
    hint = "take config.json and weights from the same place"
    return CorruptCheckpointError(what, hint=hint)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an error for people."""
    try:
        yield
    except OSError as e:
        shown = quote(path, 200)
        if e.errno == errno.ENOENT:
            raise CheckpointNotFoundError(
                f"no such file: {shown}", hint="check the path"
            ) from e
        if e.errno in (errno.EACCES, errno.EPERM):
            raise CheckpointError(
                f"permission denied: {shown}",
                hint=f"make it readable: chmod u+r {shown}",
            ) from e
        if e.errno == errno.ELOOP:
            raise CheckpointError(
                f"symbolic links that lead in a circle: {shown}",
                hint="replace the link by the file or folder that it should name",
            ) from e
        reason = os.strerror(e.errno) if e.errno else str(e)
        raise CheckpointError(f"cannot read {shown}: {quote(reason)}") from e


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file for reading and say how long it is.

    A pipe or a device is refused before it is opened, for opening could wait for
    ever.
    """
    with reading(path):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(
                f"a folder where a file is needed: {quote(path, 200)}"
            )
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"not a regular file: {quote(path, 200)}")
        with open(path, "rb", buffering=0) as file:
            yield file, os.fstat(file.fileno()).st_size  # type: ignore[misc]


def read_start(path: Path, n: int = 64) -> bytes:
    """The first bytes of a file, fewer where it is shorter."""
    with open_regular(path) as (file, _):
        return file.read(n) or b""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key that stands twice")
    return found


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")


def parse_json_object(
    data: bytes, what: str, *, strict: bool = False
) -> dict[str, Any]:
    """Parse a JSON object; `strict` refuses doubled keys, NaN and infinity."""
    try:
        text = data.decode("utf-8")
        if strict:
            parsed = json.loads(
                text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant
            )
        else:
            parsed = json.loads(text)
    except RecursionError as e:
        raise CorruptCheckpointError(f"{what} is nested too deeply") from e
    except ValueError as e:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CorruptCheckpointError(
            f"{what} is not valid JSON: {quote(e)}", hint="download the file again"
        ) from e
    if not isinstance(parsed, dict):
        raise CorruptCheckpointError(
            f"{what} holds a JSON {type(parsed).__name__} where an object is needed"
        )
    return parsed


def read_json_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read a JSON file that is small for a file of its kind."""
    with open_regular(path) as (file, size):
        if size > max_bytes:
            raise CorruptCheckpointError(
                f"{quote(path, 200)} is {human_bytes(size)} long;"
                f" at most {human_bytes(max_bytes)} is plausible"
            )
        with reading(path):
            data = file.read(size) or b""
    return parse_json_object(data, quote(path, 200))
