"""How arrays and words are put into a dump, without JAX or torch."""

import zipfile
from typing import Any

import ml_dtypes
import numpy as np


FORMAT = "lyapunov-dump-1"
BF16 = np.dtype(ml_dtypes.bfloat16)
INT8 = "prefix hit through int8"
"""A hand-over whose state was kept as integers of 8 bits in between."""


def put(file: zipfile.ZipFile, key: str, array: Any) -> None:
    """Write one array or word as a member of a .npz; bf16 as its bits."""
    array = np.asarray(array)
    if array.dtype == BF16:
        array = array.view(np.uint16)
    with file.open(f"{key}.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)


def narrowest(array: np.ndarray) -> np.ndarray:
    """The array in the narrowest format that holds every number of it."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = array.astype(np.float32)
        bits = single.view(np.uint32)
        if not _same(single, array):
            return array
        if not np.any(bits & 0xFFFF):
            return (bits >> 16).astype(np.uint16)
        half = single.astype(np.float16)
        return half if _same(half, array) else single


def _same(narrow: np.ndarray, wide: np.ndarray) -> bool:
    return bool(np.array_equal(narrow.astype(wide.dtype), wide, equal_nan=True))
