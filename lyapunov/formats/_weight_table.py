"""Formats that weights can be rounded to, as plain data: names, scales, meanings.

Apart from `weight_formats` so that the command's options can name them without NumPy.
"""

import math
from typing import NamedTuple


class WeightFormatRow(NamedTuple):
    """A format with scales: `rows` and `columns` of the blocks that share one; 0 is
    all of them."""

    element: str
    rows: int
    columns: int
    meaning: str


PLAIN_FORMATS = {
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8_e4m3-unscaled": "fp8_e4m3",
    "fp8_e5m2-unscaled": "fp8_e5m2",
}
"""Formats that round each number by itself, and the floating-point format of each."""

EACH_BY_ITSELF = "each number by itself"

_SCALES = {"tensor": (0, 0), "row": (1, 0), "block128": (128, 128)}
_GROUPS = {"row": (1, 0), "group128": (1, 128), "group32": (1, 32)}
_WORDS = {
    "tensor": "one fp32 scale a matrix",
    "row": "one fp32 scale a row",
    "block128": "one fp32 scale a block of 128 x 128",
    "group128": "one fp32 scale for 128 columns of a row",
    "group32": "one fp32 scale for 32 columns of a row",
}

WEIGHT_FORMAT_TABLE = {
    **{
        f"{element}-{name}": WeightFormatRow(
            element, *shape, f"{element} with {_WORDS[name]}"
        )
        for element in ("fp8_e4m3", "fp8_e5m2")
        for name, shape in _SCALES.items()
    },
    **{
        f"{element}-{name}": WeightFormatRow(
            element, *shape, f"symmetric {element} with {_WORDS[name]}"
        )
        for element in ("int8", "int4")
        for name, shape in _GROUPS.items()
    },
    "int8-block128": WeightFormatRow(
        "int8", 128, 128, f"symmetric int8 with {_WORDS['block128']}"
    ),
    **{
        f"{element}_asym-{name}": WeightFormatRow(
            f"{element}_asym",
            *shape,
            f"{element} with {_WORDS[name]} and a zero point beside it",
        )
        for element in ("int8", "int4")
        for name, shape in _GROUPS.items()
    },
    "nf4": WeightFormatRow("nf4", 1, 64, "nf4 with one fp32 scale for 64 weights"),
    "fp4": WeightFormatRow(
        "fp4", 1, 64, "bitsandbytes' fp4 with one fp32 scale for 64 weights"
    ),
    "nvfp4": WeightFormatRow(
        "nvfp4", 1, 16, "e2m1 with an e4m3 scale for 16 columns and a fp32 one a matrix"
    ),
    "mxfp4": WeightFormatRow(
        "mxfp4", 1, 32, "e2m1 with a power of 2 as scale for 32 columns"
    ),
    "mxfp8": WeightFormatRow(
        "mxfp8", 1, 32, "fp8_e4m3 with a power of 2 as scale for 32 columns"
    ),
}
"""Formats with scales: codes of matrices, as files of weights hold them."""

SHORT_NAMES = {
    "fp8_e4m3": "fp8_e4m3-tensor",
    "fp8_e5m2": "fp8_e5m2-tensor",
    "int8": "int8-row",
    "int4": "int4-group128",
    "int8_asym": "int8_asym-row",
    "int4_asym": "int4_asym-group128",
}
"""What files mostly have, where no scale is named."""

WEIGHT_FORMATS = (*PLAIN_FORMATS, *SHORT_NAMES, *WEIGHT_FORMAT_TABLE)
"""Every name that `--round-weights` takes for a format."""


ELEMENT_BITS = {
    "bf16": 16,
    "fp16": 16,
    "fp8_e4m3": 8,
    "fp8_e5m2": 8,
    "int8": 8,
    "int4": 4,
    "int8_asym": 8,
    "int4_asym": 4,
    "nf4": 4,
    "fp4": 4,
    "nvfp4": 4,
    "mxfp4": 4,
    "mxfp8": 8,
}
"""Of one code."""

SCALE_BITS = {"nvfp4": 8, "mxfp4": 8, "mxfp8": 8, "int8_asym": 40, "int4_asym": 36}
"""Of one scale, where it is not in fp32; with the zero point beside it."""

IN_STORAGE = ("nf4", "fp4")
"""Of these a block is so many weights in the order of storage, not of one row."""


def stored_bytes(shape: tuple[int, ...], name: str) -> int:
    """Count the bytes that a tensor takes as codes and scales of a format.

    **Arguments:**

    - `shape`: as stored, (outputs, inputs); of a stack each has scales of its own.
    - `name`: of `PLAIN_FORMATS` or `WEIGHT_FORMAT_TABLE`.

    **Raises:** `KeyError` for an unknown name.
    """
    size = math.prod(shape)
    if name in PLAIN_FORMATS:
        return size * ELEMENT_BITS[PLAIN_FORMATS[name]] // 8
    row = WEIGHT_FORMAT_TABLE[name]
    n, k = shape[-2:] if len(shape) > 1 else (1, size)
    if row.element in IN_STORAGE:
        n, k = 1, n * k
    scales = -(-n // (row.rows or n)) * -(-k // (row.columns or k))
    scales *= math.prod(shape[:-2])
    codes = -(-size * ELEMENT_BITS[row.element] // 8)
    return codes + scales * SCALE_BITS.get(row.element, 32) // 8


def formats_in_words() -> str:
    """Every name once, variants behind what they are variants of, as in
    `int8 (-row, -group128)`."""
    variants: dict[str, list[str]] = {}
    for name in WEIGHT_FORMATS:
        element, dash, variant = name.partition("-")
        variants.setdefault(element, []).extend([f"-{variant}"] * bool(dash))
    told = [
        f"{element} ({', '.join(found)})" if found else element
        for element, found in variants.items()
    ]
    return ", ".join(told)
