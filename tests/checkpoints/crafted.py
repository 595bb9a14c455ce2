"""Files made by hand, where a library would write no such thing."""

import json
import struct
import zipfile


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def pickled(folder, data: bytes, compression=zipfile.ZIP_STORED, **members: bytes):
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", compression) as archive:
        archive.writestr("model/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
