"""The header of a safetensors file, checked before any memory is taken for tensors.

The format: 8 bytes with the length N of the header (little endian), N bytes of JSON
{name: {dtype, shape, data_offsets}}, then the tensors without gaps or overlaps.
"""

import math
from pathlib import Path

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ._files import broken, human_bytes, open_regular, parse_json_object, quote, reading
from ._tensors import DTYPES, StoredTensor, check_shape


MAX_HEADER_BYTES = 16 * 2**20

_NAMES = {
    "F64": "fp64",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "F8_E4M3": "fp8_e4m3",
    "F8_E5M2": "fp8_e5m2",
    "F8_E8M0": "fp8_e8m0",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, object]]:
    """Where each tensor of a safetensors file lies, and its `__metadata__`, in which
    there is what somebody wrote."""
    shown = quote(path, 200)
    with open_regular(path) as (file, size):
        with reading(path):
            prefix = file.read(8) or b""
        if len(prefix) < 8:
            raise broken(
                f"{shown} is {size} bytes long, too short for a safetensors file"
            )
        n = int.from_bytes(prefix, "little")
        if n > size - 8:
            raise broken(
                f"{shown} claims a header of {human_bytes(n)}"
                f" and is {human_bytes(size)} long"
            )
        if n > MAX_HEADER_BYTES:
            raise CorruptCheckpointError(
                f"{shown} claims a header of {human_bytes(n)};"
                f" at most {human_bytes(MAX_HEADER_BYTES)} is plausible"
            )
        with reading(path):
            data = file.read(n) or b""
    if len(data) < n:
        raise broken(f"{shown} ends inside its header")
    header = parse_json_object(data, f"the header of {shown}", strict=True)
    metadata = header.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in header.items():
        tensor, span = _entry(path, name, entry, 8 + n)
        tensors[name] = tensor
        spans.append((*span, name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            kind = "overlaps the tensor" if start < end else "leaves a gap to the one"
            raise broken(f"{shown}: {quote(name)} {kind} before it")
        end = stop
    if end != size - 8 - n:
        short = end - (size - 8 - n)
        what = f"{short} bytes are missing" if short > 0 else f"{-short} bytes too many"
        raise broken(f"{shown} does not have the length that its header claims: {what}")
    return tensors, metadata if isinstance(metadata, dict) else {}


def _entry(
    path: Path, name: str, entry: object, base: int
) -> tuple[StoredTensor, tuple[int, int]]:
    what = f"{quote(path, 200)}: {quote(name)}"
    if not isinstance(entry, dict):
        raise CorruptCheckpointError(f"{what} is not described by an object")
    code = entry.get("dtype")
    if not isinstance(code, str):
        raise CorruptCheckpointError(f"{what} has no dtype")
    if code not in _NAMES:
        raise UnsupportedCheckpointError(
            f"{what} is stored as {quote(code, 20)}, which is not covered",
            hint="store the weights as F32, BF16 or F16",
        )
    shape = check_shape(entry.get("shape"), what)
    offsets = entry.get("data_offsets")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(x) is int and 0 <= x < 2**63 for x in offsets)
        or offsets[0] > offsets[1]
    ):
        raise CorruptCheckpointError(f"{what} has no plausible data_offsets")
    dtype = _NAMES[code]
    start, stop = offsets
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if needed != stop - start:
        raise broken(
            f"{what} of shape {shape} in {dtype} takes {needed} bytes;"
            f" its header gives it {stop - start}"
        )
    return StoredTensor(path, dtype, shape, base + start), (start, stop)
