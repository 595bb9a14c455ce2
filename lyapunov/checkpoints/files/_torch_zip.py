"""`pytorch_model.bin` and its kin, read without torch and without unpickling.

torch (1.6 on) writes a zip archive of uncompressed members: NAME/data.pkl describes
the tensors, NAME/data/KEY holds the memory of each. The members lie in the file as
they are, so a tensor is read where it lies, a slice at a time.
"""

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..._errors import (
    CorruptCheckpointError,
    LyapunovError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from ._files import broken, human_bytes, listing, open_regular, quote, reading
from ._pickle import Global, Inert, TensorRecord, read_pickle
from ._tensors import DTYPES, StoredTensor, check_shape


MAX_PICKLE_BYTES = 16 * 2**20
MAX_DIRECTORY_BYTES = 32 * 2**20
MAX_DEPTH = 4
"""Of dictionaries in dictionaries; an optimiser's state of a parameter is at 4."""
SAVE_STATE = "save the weights alone: torch.save(model.state_dict(), ...)"

T = TypeVar("T")
_Stored = Callable[[dict], dict[str, StoredTensor]]
_Found = Callable[[Any, _Stored, str], T]
"""Makes what is wanted of what the pickle describes and what finds tensors."""
_Trained = tuple[dict[str, StoredTensor], dict]

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    OverflowError,
    IndexError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    OSError,
)


def read_archive(path: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a file that torch saved lies."""
    return _read(path, training=False)[0]


def read_training_archive(path: Path) -> tuple[dict[str, StoredTensor], dict]:
    """Where the tensors of a training checkpoint's model lie, and its arguments.

    Megatron's `model_optim_rng.pt` is meant: a dictionary with `model`, the tensors by
    name, and `args`, a namespace of plain values. What else it holds is passed over.
    """
    return _read(path, training=True)


def read_weight_sets(path: Path) -> dict[str, dict[str, StoredTensor]]:
    """Where the tensors of every dictionary of tensors in a file that torch saved lie.

    A training loop saves dictionaries in a dictionary: `state_dict`, `model`, `ema`,
    and an optimiser's. What is no dictionary, and no tensor under a name, is passed
    over; whatever the file names is never imported.

    **Returns:** tensors by name, by the keys that lead to them with dots between, which
    is empty for the outermost.

    **Raises:** `UnsupportedCheckpointError` for a whole module, and where there is no
    tensor by name.
    """
    return _opened(path, True, _weight_sets)


def _read(path: Path, training: bool) -> tuple[dict[str, StoredTensor], dict]:
    return _opened(path, training, _trained if training else _plain)


def _opened(path: Path, training: bool, found: _Found[T]) -> T:
    shown = quote(path, 200)
    with open_regular(path) as (file, size):
        try:
            with zipfile.ZipFile(_Bounded(file)) as archive:  # type: ignore[arg-type]
                return _read_members(path, file, size, archive, training, found)
        except LyapunovError:
            raise
        except _ZIP_ERRORS as e:
            raise broken(f"{shown} is a broken zip archive: {quote(e)}") from e


class _Bounded:
    """A file whose reads at once are limited: a directory of 4 GB is no checkpoint."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, n: int = -1) -> bytes:
        """Read `n` bytes, or to the end of the file."""
        if n < 0:
            here = self._file.tell()
            n = self._file.seek(0, 2) - here
            self._file.seek(here)
        if n > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a record of {human_bytes(n)}")
        chunks = []
        while n > 0 and (chunk := self._file.read(n)):
            chunks.append(chunk)
            n -= len(chunk)
        return b"".join(chunks)


def _read_members(
    path: Path,
    file: BinaryIO,
    size: int,
    archive: zipfile.ZipFile,
    training: bool,
    found: _Found[T],
) -> T:
    shown = quote(path, 200)
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in members:
            raise CorruptCheckpointError(
                f"{shown} holds two members named {quote(info.filename)}"
            )
        members[info.filename] = info
    pickles = [
        name for name in members if name == "data.pkl" or name.endswith("/data.pkl")
    ]
    if len(pickles) != 1:
        what = "no data.pkl" if not pickles else "more than one data.pkl"
        raise UnsupportedCheckpointError(
            f"{shown} is a zip archive with {what}, so not weights saved by torch",
            hint=f"it holds {listing(list(members))}" if members else "it is empty",
        )
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        raise UnsupportedCheckpointError(
            f"{shown} is a TorchScript program, not a state dict",
            hint=SAVE_STATE,
        )

    def content(name: str, limit: int) -> bytes:
        start = _where(path, file, size, members[name])
        length = members[name].file_size
        if length > limit:
            raise CorruptCheckpointError(
                f"{shown}: {quote(name)} is {human_bytes(length)} long;"
                f" at most {human_bytes(limit)} is plausible"
            )
        with reading(path):
            file.seek(start)
            data = file.read(length) or b""
        if len(data) != length or zlib.crc32(data) != members[name].CRC:
            raise broken(f"{shown}: {quote(name)} does not match its checksum")
        return data

    if f"{root}byteorder" in members and content(f"{root}byteorder", 64) != b"little":
        raise UnsupportedCheckpointError(
            f"{shown} was saved on a big-endian machine, which is not covered",
            hint="save it again on a little-endian one",
        )
    described = content(pickles[0], MAX_PICKLE_BYTES)
    state, _ = read_pickle(described, shown, training=training)

    def stored(state: dict) -> dict[str, StoredTensor]:
        return {
            str(name): _tensor(path, file, size, members, root, name, record)
            for name, record in state.items()
            if isinstance(record, TensorRecord)
        }

    return found(state, stored, shown)


def _no_state_dict(state: Any, shown: str) -> UnsupportedCheckpointError:
    what = f"a {type(state).__name__}"
    if isinstance(state, Inert) and isinstance(state.kind, Global):
        what = f"a pickled {quote(f'{state.kind.module}.{state.kind.name}')}"
    return UnsupportedCheckpointError(
        f"{shown} holds {what} where a state dict is needed", hint=SAVE_STATE
    )


def _plain(state: Any, stored: _Stored, shown: str) -> _Trained:
    if not isinstance(state, dict):
        raise _no_state_dict(state, shown)
    return _some(stored(state), state, shown), {}


def _trained(state: Any, stored: _Stored, shown: str) -> _Trained:
    if not isinstance(state, dict):
        raise _no_state_dict(state, shown)
    args, state = state.get("args"), state.get("model")
    settings = args.attributes if isinstance(args, Inert) else {}
    if not isinstance(state, dict) or not settings:
        raise UnsupportedCheckpointError(
            f"{shown} holds no model with the arguments that it was trained with",
            hint="Megatron's model_optim_rng.pt has model and args",
        )
    return _some(stored(state), state, shown), settings


def _some(
    tensors: dict[str, StoredTensor], state: dict, shown: str
) -> dict[str, StoredTensor]:
    if not tensors:
        keys = listing([str(key) for key in state]) or "nothing"
        raise UnsupportedCheckpointError(
            f"{shown} holds no tensor by name; it holds {keys}",
            hint=SAVE_STATE,
        )
    return tensors


def _weight_sets(
    state: Any, stored: _Stored, shown: str
) -> dict[str, dict[str, StoredTensor]]:
    """Every dictionary of tensors, at most `MAX_DEPTH` deep, each once."""
    if not isinstance(state, dict):
        raise _no_state_dict(state, shown)
    sets: dict[str, dict[str, StoredTensor]] = {}
    level, seen = [("", state)], {id(state)}
    for _ in range(MAX_DEPTH):
        below = []
        for name, one in level:
            if tensors := stored(one):
                sets[name] = tensors
            for key, value in one.items():
                if isinstance(value, dict) and id(value) not in seen:
                    seen.add(id(value))
                    below.append((f"{name}.{key}" if name else str(key), value))
        level = below
    if not sets:
        inside = [v for v in state.values() if isinstance(v, Inert)]
        if inside and isinstance(inside[0].kind, Global):
            raise _no_state_dict(inside[0], shown)
        _some({}, state, shown)
    return sets


def _where(path: Path, file: BinaryIO, size: int, info: zipfile.ZipInfo) -> int:
    """The byte at which a member's content begins; refuses all but stored members."""
    what = f"{quote(path, 200)}: {quote(info.filename)}"
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
        raise UnsupportedCheckpointError(
            f"{what} is compressed or encrypted; torch stores weights as they are",
            hint="save it again with torch.save",
        )
    if info.compress_size != info.file_size:
        raise broken(f"{what} has two different sizes")
    if not 0 <= info.header_offset < size:
        raise broken(f"{what} is not in the file")
    with reading(path):
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER.size) or b""
    if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise broken(f"{what} is not where it should be")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if start + info.file_size > size:
        raise broken(f"{what} runs past the end")
    return start


def _tensor(
    path: Path,
    file: BinaryIO,
    size: int,
    members: dict[str, zipfile.ZipInfo],
    root: str,
    name: object,
    record: TensorRecord,
) -> StoredTensor:
    what = f"{quote(path, 200)}: {quote(name)}"
    storage = record.storage
    info = members.get(f"{root}data/{storage.key}")
    if info is None:
        raise broken(f"{what} has no data in the archive")
    itemsize = DTYPES[storage.dtype].itemsize
    if storage.size < 0 or storage.size * itemsize != info.file_size:
        raise broken(
            f"{what} claims {storage.size} elements of {storage.dtype};"
            f" the archive holds {info.file_size} bytes of them"
        )
    shape = check_shape(record.shape, what)
    strides = check_shape(record.strides, what)
    start = _where(path, file, size, info) + record.offset * itemsize
    n, dense = 1, []
    for length in reversed(shape):
        dense.append(n)
        n *= length
    if len(strides) != len(shape):
        raise CorruptCheckpointError(f"{what} has as many strides as it should not")
    last = record.offset + sum(
        (length - 1) * stride for length, stride in zip(shape, strides, strict=True)
    )
    if n and (record.offset < 0 or last >= storage.size or n > storage.size):
        raise broken(f"{what} of shape {shape} reaches outside of its storage")
    plain = n == 0 or all(
        length == 1 or stride == unit
        for length, stride, unit in zip(shape, strides, reversed(dense), strict=True)
    )
    return StoredTensor(path, storage.dtype, shape, start, None if plain else strides)


def refuse_plain_pickle(path: Path) -> None:
    """Say what is wrong with a file that is a bare pickle; always raises."""
    shown = quote(path, 200)
    with open_regular(path) as (file, size), reading(path):
        data = file.read(min(size, MAX_PICKLE_BYTES)) or b""
    at = 0
    try:
        for _ in range(4):  # torch before 1.6: magic number, protocol, system, weights
            _, at = read_pickle(data, shown, at)
    except UnsafeCheckpointError:
        raise
    except LyapunovError:
        pass
    raise UnsupportedCheckpointError(
        f"{shown} is a pickle in the layout of torch before 1.6, which is not covered",
        hint="save it again: torch.save(torch.load(path, weights_only=True), path)",
    )
