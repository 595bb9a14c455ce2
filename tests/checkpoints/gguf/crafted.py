"""GGUF files written byte by byte, so that anything in them can be a lie."""

import struct

import numpy as np


NUMBERS = {
    "B": 0, "b": 1, "H": 2, "h": 3, "I": 4, "i": 5, "f": 6, "Q": 10, "q": 11, "d": 12,
}  # fmt: skip
"""GGUF's numbers of types, by letters of `struct`."""


def text(value: str | bytes) -> bytes:
    """A length and so many bytes."""
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def number(key: str, value, form: str = "I") -> bytes:
    """A key with one number."""
    return text(key) + struct.pack(f"<I{form}", NUMBERS[form], value)


def word(key: str, value: str) -> bytes:
    """A key with a text."""
    return text(key) + struct.pack("<I", 8) + text(value)


def flag(key: str, value: int) -> bytes:
    """A key with true or false."""
    return text(key) + struct.pack("<IB", 7, value)


def numbers(key: str, values, form: str = "i", claim: int | None = None) -> bytes:
    """A key with a list of numbers, which may claim another length."""
    count = len(values) if claim is None else claim
    head = text(key) + struct.pack("<IIQ", 9, NUMBERS[form], count)
    return head + struct.pack(f"<{len(values)}{form}", *values)


def words(key: str, values, claim: int | None = None) -> bytes:
    """A key with a list of texts, which may claim another length."""
    count = len(values) if claim is None else claim
    head = text(key) + struct.pack("<IIQ", 9, 8, count)
    return head + b"".join(text(one) for one in values)


def described(name, dims, code: int = 0, offset: int = 0, axes=None) -> bytes:
    """A tensor as the header describes it, the fastest axis first."""
    count = len(dims) if axes is None else axes
    shape = struct.pack(f"<{len(dims)}Q", *dims)
    return (
        text(name) + struct.pack("<I", count) + shape + struct.pack("<IQ", code, offset)
    )


def file_bytes(
    keys: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file, whose counts may be others than there are."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    head += b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + data


WIDTH, INNER, STATES, TAPS, RANK, VOCABULARY = 8, 16, 4, 4, 2, 6


def mamba_keys(**changes: bytes | None) -> list[bytes]:
    """The metadata of a Mamba-1 model of one layer; a change of None leaves one out."""
    keys: dict[str, bytes | None] = {
        "architecture": word("general.architecture", "mamba"),
        "block_count": number("mamba.block_count", 1),
        "embedding_length": number("mamba.embedding_length", WIDTH),
        "conv_kernel": number("mamba.ssm.conv_kernel", TAPS),
        "inner_size": number("mamba.ssm.inner_size", INNER),
        "state_size": number("mamba.ssm.state_size", STATES),
        "time_step_rank": number("mamba.ssm.time_step_rank", RANK),
        "epsilon": number("mamba.attention.layer_norm_rms_epsilon", 2.0**-17, "f"),
    }
    keys |= changes
    return [one for one in keys.values() if one is not None]


def mamba_tensors(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """Its tensors in fp32, by llama.cpp's names; a change of None leaves one out.

    A name that no keyword can be is given with `__` for each dot.
    """
    rng = np.random.default_rng(3)
    shapes = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ssm_in.weight": (2 * INNER, WIDTH),
        "blk.0.ssm_conv1d.weight": (INNER, TAPS),
        "blk.0.ssm_conv1d.bias": (INNER,),
        "blk.0.ssm_x.weight": (RANK + 2 * STATES, INNER),
        "blk.0.ssm_dt.weight": (INNER, RANK),
        "blk.0.ssm_dt.bias": (INNER,),
        "blk.0.ssm_a": (INNER, STATES),
        "blk.0.ssm_d": (INNER,),
        "blk.0.ssm_out.weight": (WIDTH, INNER),
    }
    found: dict[str, np.ndarray | None] = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    found["blk.0.ssm_a"] = -np.exp(rng.standard_normal((INNER, STATES))).astype("f4")
    found |= {name.replace("__", "."): array for name, array in changes.items()}
    return {name: array for name, array in found.items() if array is not None}


def model_bytes(keys=None, tensors=None, alignment: int = 32, **others) -> bytes:
    """The file of such a model."""
    keys = mamba_keys() if keys is None else keys
    tensors = mamba_tensors() if tensors is None else tensors
    told, data = [], b""
    for name, array in tensors.items():
        told.append(described(name, array.shape[::-1], 0, len(data)))
        data += array.tobytes()
        data += b"\0" * (-len(data) % alignment)
    return file_bytes(keys, told, data, alignment=alignment, **others)
