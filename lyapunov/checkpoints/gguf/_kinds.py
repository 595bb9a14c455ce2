"""Formats that ggml stores tensors in, and the values that their bytes stand for.

Sizes as in ggml's `ggml-common.h` (the gguf package's `GGML_QUANT_SIZES`, 0.19.0).
Q8_0 is read here: a code of eight bits times an fp16 scale has 19 bits, which fp32
holds. All other blocks are left to the gguf package, whose arithmetic is fp32: a
scale, a product and a minimum, so that up to three roundings of fp32 are part of its
values (of Q4_K one, the difference: the products have 21 bits).
"""

import importlib
from typing import Any, NamedTuple

import numpy as np

from ..._errors import MissingExtraError, UnsupportedCheckpointError


class Kind(NamedTuple):
    """How a row of numbers is stored: in blocks, each of so many bytes."""

    name: str
    elements: int
    """Of a block."""
    bytes: int
    """Of a block."""


KINDS = {
    code: Kind(name, elements, size)
    for code, name, elements, size in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    )
}
"""By the number that stands in a file."""

PLAIN = {
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "F64": "fp64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
"""Kinds that are no blocks, by the names that the report uses."""

OWN = (*PLAIN, "Q8_0")
"""What is read without the gguf package."""

BY_PACKAGE = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS"),
    *("IQ1_M", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
)
"""What `gguf.quants.dequantize` reads (0.19.0)."""


def demand_readable(kind: str, what: str) -> None:
    """Refuse a kind that nobody here reads.

    **Arguments:**

    - `what`: the file and the tensor, for the message.

    **Raises:** `UnsupportedCheckpointError` for a kind that is not covered,
    `MissingExtraError` for one that needs the gguf package, which is not there.
    """
    if kind in OWN:
        return
    if kind not in BY_PACKAGE:
        raise UnsupportedCheckpointError(
            f"{what} is stored as {kind}, which is not covered",
            hint=f"quantise it anew; covered are {', '.join((*OWN, *BY_PACKAGE))}",
        )
    _package(kind, what)


def values(kind: str, stored: np.ndarray, what: str) -> np.ndarray:
    """Make the numbers of blocks: uint8 (..., bytes of a row) to fp32 (..., row).

    **Raises:** as `demand_readable`.
    """
    with np.errstate(all="ignore"):  # what is not finite is told by who asked
        if kind == "Q8_0":
            return _q8_0(stored)
        quants = _package(kind, what)
        import gguf

        code = gguf.GGMLQuantizationType[kind]
        return np.asarray(quants.dequantize(stored, code), np.float32)


def _q8_0(stored: np.ndarray) -> np.ndarray:
    """A block is an fp16 scale d and 32 codes q of int8; a value is q*d, exact."""
    blocks = stored.reshape(-1, 34)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    codes = blocks[:, 2:].view(np.int8).astype(np.float32)
    return (codes * scales).reshape(*stored.shape[:-1], -1)


def _package(kind: str, what: str) -> Any:
    try:
        return importlib.import_module("gguf.quants")
    except ImportError as error:
        raise MissingExtraError(
            f"{what} is stored as {kind}, which the gguf package reads ({error})",
            hint="pip install 'lyapunov-check[gguf]'",
        ) from None
