"""The header of a GGUF file: its metadata and where each tensor lies.

Nothing in it is trusted: every count, length and offset is held to the size of the
file before anything is read or reserved for it. The format is that of ggml's
`docs/gguf.md`, versions 2 and 3: magic, version, number of tensors, number of keys; the
keys, each with a type and a value; the tensors, each with a name, its axes (the fastest
first), a type and an offset; padding; the tensors' bytes.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ..files._files import broken, human_bytes, open_regular, quote
from ..files._tensors import MAX_ELEMENTS
from ._cursor import Cursor
from ._kinds import KINDS


MAGIC = b"GGUF"

_VERSIONS = (2, 3)
_MAX_KEYS = 2**16
_MAX_TENSORS = 2**20
_MAX_NAME = 2**16 - 1
_MAX_AXES = 4
_MAX_ELEMENTS_OF_ARRAY = 2**24
_KEPT_NUMBERS = 10_000
_KEPT_BYTES = 1024

_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9


class Skipped(NamedTuple):
    """A value that is too long for a setting: tokens, merges, a chat template."""

    length: int
    """Elements of the array, or bytes of the text."""


class Entry(NamedTuple):
    """A tensor as the header describes it."""

    name: str
    shape: tuple[int, ...]
    """The slowest axis first, as NumPy has it; the file has the fastest first."""
    kind: str
    """A name of `KINDS`."""
    offset: int
    """Byte of the file at which it begins."""
    size: int
    """In bytes."""


class Header(NamedTuple):
    """What stands before the tensors."""

    metadata: Mapping[str, Any]
    """Numbers, flags, short texts, and lists of numbers or flags; else `Skipped`."""
    tensors: tuple[Entry, ...]
    """In the order of the file."""


def read_header(path: Path) -> Header:
    """Read metadata and the places of tensors, without their bytes.

    **Raises:** `CorruptCheckpointError` where the file is cut off or says what cannot
    be, `UnsupportedCheckpointError` for versions and kinds that are not covered.
    """
    shown = quote(path, 200)
    with open_regular(path) as (file, size):
        cursor = Cursor(file, size, path)
        if cursor.take(4, "the magic") != MAGIC:
            raise broken(
                f"{shown} is no GGUF file: it does not begin with GGUF",
            )
        _demand_version(cursor.whole("I", "the version"), shown)
        n_tensors = cursor.whole("Q", "the number of tensors")
        n_keys = cursor.whole("Q", "the number of keys")
        # a tensor takes at least 24 bytes of the header, a key 13
        _demand_count(n_tensors, "tensors", _MAX_TENSORS, 24, cursor, shown)
        _demand_count(n_keys, "keys", _MAX_KEYS, 13, cursor, shown)
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = _text(cursor, "a key", _MAX_NAME, shown)
            if key in metadata:
                raise broken(f"{shown} has the key {quote(key)} twice")
            code = cursor.whole("I", f"the type of {quote(key)}")
            metadata[key] = _value(cursor, code, quote(key), shown)
        found = [_described(cursor, shown) for _ in range(n_tensors)]
        alignment = _alignment(metadata, shown)
        base = -(-cursor.at // alignment) * alignment
        return Header(metadata, _placed(found, base, alignment, size, shown))


def _demand_version(version: int, shown: str) -> None:
    if version in _VERSIONS:
        return
    if version == 1:
        raise UnsupportedCheckpointError(
            f"{shown} is of version 1 of GGUF, which was written in August 2023 alone",
            hint="convert the model again",
        )
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *_VERSIONS):
        raise UnsupportedCheckpointError(
            f"{shown} is in the byte order of big-endian machines",
            hint="turn it: gguf-convert-endian FILE little (of the gguf package)",
        )
    raise UnsupportedCheckpointError(
        f"{shown} is of version {version} of GGUF; covered are 2 and 3",
        hint="is lyapunov-check up to date?",
    )


def _demand_count(
    count: int, what: str, limit: int, least: int, cursor: Cursor, shown: str
) -> None:
    if count > limit:
        raise broken(
            f"{shown} claims {count} {what}; at most {limit} are plausible",
        )
    cursor.demand(count * least, f"a header of {count} {what}")


def _text(cursor: Cursor, what: str, limit: int, shown: str) -> str:
    n = cursor.whole("Q", f"the length of {what}")
    if n > limit:
        raise broken(
            f"{shown}: {what} claims {human_bytes(n)}; at most {human_bytes(limit)} is"
            " plausible",
        )
    try:
        return cursor.take(n, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptCheckpointError(
            f"{shown}: {what} is not UTF-8", hint="download the file again"
        ) from error


def _value(cursor: Cursor, code: int, key: str, shown: str) -> Any:
    """One value, or `Skipped`."""
    what = f"the value of {key}"
    if code in _NUMBERS:
        return cursor.value(_NUMBERS[code], what)
    if code == _BOOL:
        return _flag(cursor, what, shown)
    if code == _STRING:
        n = cursor.whole("Q", f"the length of {key}")
        if n > _KEPT_BYTES:
            cursor.skip(n, what)
            return Skipped(n)
        return cursor.take(n, what).decode("utf-8", "replace")
    if code == _ARRAY:
        return _array(cursor, key, shown)
    raise broken(
        f"{shown}: {key} has a value of type {code}, which GGUF does not know",
    )


def _flag(cursor: Cursor, what: str, shown: str) -> bool:
    found = cursor.whole("B", what)
    if found > 1:
        raise broken(f"{shown}: {what} is {found}, not true or false")
    return bool(found)


def _array(cursor: Cursor, key: str, shown: str) -> Any:
    what = f"the array {key}"
    code = cursor.whole("I", f"the type of {what}")
    count = cursor.whole("Q", f"the length of {what}")
    if count > _MAX_ELEMENTS_OF_ARRAY:
        raise broken(
            f"{shown}: {what} claims {count} elements; at most"
            f" {_MAX_ELEMENTS_OF_ARRAY} are plausible",
        )
    if code == _STRING:
        cursor.demand(8 * count, what)
        for _ in range(count):  # each says how long it is
            cursor.skip(cursor.whole("Q", what), what)
        return Skipped(count)
    if code != _BOOL and code not in _NUMBERS:
        raise broken(
            f"{shown}: {what} has elements of type {code}, which are not covered",
        )
    form = _NUMBERS.get(code, "B")
    size = count * struct.calcsize(f"<{form}")
    if count > _KEPT_NUMBERS:
        cursor.skip(size, what)
        return Skipped(count)
    if code == _BOOL:
        return [_flag(cursor, what, shown) for _ in range(count)]
    return list(struct.unpack(f"<{count}{form}", cursor.take(size, what)))


def _described(cursor: Cursor, shown: str) -> Entry:
    """One tensor, whose offset is still relative."""
    name = _text(cursor, "the name of a tensor", _MAX_NAME, shown)
    what = f"{shown}: {quote(name)}"
    axes = cursor.whole("I", f"the axes of {quote(name)}")
    if axes > _MAX_AXES:
        raise broken(
            f"{what} claims {axes} axes; GGUF has at most {_MAX_AXES}",
        )
    shape = [cursor.whole("Q", f"the shape of {quote(name)}") for _ in range(axes)]
    if any(not 1 <= n <= MAX_ELEMENTS for n in shape) or (
        math.prod(shape) > MAX_ELEMENTS
    ):
        raise broken(
            f"{what} has the shape {quote(shape, 100)}, which is not plausible",
        )
    code = cursor.whole("I", f"the type of {quote(name)}")
    if code not in KINDS:
        raise UnsupportedCheckpointError(
            f"{what} is stored in ggml's type {code}, which is not known here",
            hint="is lyapunov-check up to date? Or quantise the model anew",
        )
    kind = KINDS[code]
    row = shape[0] if shape else 1
    if row % kind.elements:
        raise CorruptCheckpointError(
            f"{what} has rows of {row} numbers, which blocks of {kind.elements}"
            f" ({kind.name}) do not divide",
            hint="download the file again, or quantise it anew",
        )
    size = math.prod(shape) // kind.elements * kind.bytes
    offset = cursor.whole("Q", f"the offset of {quote(name)}")
    return Entry(name, tuple(reversed(shape)), kind.name, offset, size)


def _alignment(metadata: Mapping[str, Any], shown: str) -> int:
    found = metadata.get("general.alignment", 32)
    if type(found) is not int or not 1 <= found <= 2**20 or found & (found - 1):
        raise broken(
            f"{shown} says general.alignment = {quote(found, 40)}, which is no power"
            " of 2",
        )
    return found


def _placed(
    found: list[Entry], base: int, alignment: int, size: int, shown: str
) -> tuple[Entry, ...]:
    """The tensors with their places in the file, one behind another and inside it."""
    names: set[str] = set()
    for entry in found:
        if entry.name in names:
            raise broken(
                f"{shown} has the tensor {quote(entry.name)} twice",
            )
        names.add(entry.name)
    due = 0
    for entry in sorted(found, key=lambda one: (one.offset, one.size)):
        what = f"{shown}: {quote(entry.name)}"
        end = base + entry.offset + entry.size
        if end > size:
            raise broken(
                f"{what} ends at byte {end}, and the file is {size} bytes long"
            )
        if entry.offset % alignment:
            raise broken(
                f"{what} begins at {entry.offset}, not at a multiple of {alignment}"
            )
        if entry.offset != due:
            how = "overlaps the tensor" if entry.offset < due else "leaves a gap to"
            one = " before it" if entry.offset < due else " the tensor before it"
            raise broken(f"{what} {how}{one}")
        due = -(-(entry.offset + entry.size) // alignment) * alignment
    return tuple(one._replace(offset=base + one.offset) for one in found)
