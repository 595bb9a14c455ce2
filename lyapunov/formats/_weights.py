r"""Weights as quantised checkpoints hold them: codes under scales, dequantised exactly.

A quantiser divides a matrix by a scale a tensor, a row, a block or a group of columns
and rounds the quotients to codes; whoever reads the file multiplies back. Quotients
and scales are computed in fp32, as the libraries do that write such files; code times
scale is formed in fp64, where it is exact for every format but nvfp4 (three factors of
4, 4 and 24 bits: exact as well).

With w the weights that share a scale:

| format | scale s | code | sources |
|---|---|---|---|
| fp8_e4m3, fp8_e5m2 | fp32(max abs w / largest) | nearest, ties to even, clipped | compressed-tensors, ModelOpt, DeepSeek's blocks |
| int8, int4 | fp32(2 max abs w / (2^b - 1)) | round(w/s) in -2^(b-1) to 2^(b-1) - 1 | compressed-tensors, GPTQ, both symmetric |
| int8_asym, int4_asym | fp32((hi - lo) / (2^b - 1)), lo = min(w, 0), hi = max(w, 0) | round(w/s + z), z = round(-2^(b-1) - lo/s), both in -2^(b-1) to 2^(b-1) - 1 | compressed-tensors, GPTQ, AWQ, all with zero points |
| nf4, fp4 | fp32(max abs w), 64 in a row of storage | nearest of 16 values | bitsandbytes (QLoRA, arXiv 2305.14314) |
| nvfp4 | e4m3(max abs w / 6 / t), 16 columns, t = max abs W / (6 * 448) in fp32 | e2m1 | ModelOpt |
| mxfp4, mxfp8 | 2^(floor log2 max abs w - 2 or 8), 32 columns | e2m1 or fp8_e4m3, clipped | OCP Microscaling 1.0 |

Every matrix is (rows, columns) = (outputs, inputs); the last block of a row may be short.
"""  # noqa: E501

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from ._weight_table import IN_STORAGE, WEIGHT_FORMAT_TABLE, WeightFormatRow


# Of 4 bits, ordered; the 16 quantiles of a normal distribution that bitsandbytes has.
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
     -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
     0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    np.float32,
)  # fmt: skip
E2M1_LARGEST = 6.0
_E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
E2M1_CODES = np.concatenate([_E2M1, -_E2M1])
# bitsandbytes' own 4 bits (a sign and 8 sizes in the order of their codes), as its
# kernels have them; no subnormals are between 0 and the smallest
FP4 = np.array([0.0, 0.0052083333, 0.6666667, 1.0, 0.33333334, 0.5, 0.16666667, 0.25])
FP4_CODES = np.concatenate([FP4, -FP4]).astype(np.float32)
_TABLES = {"nf4": NF4, "fp4": FP4_CODES}
NV_COLUMNS = WEIGHT_FORMAT_TABLE["nvfp4"].columns
MX_COLUMNS = WEIGHT_FORMAT_TABLE["mxfp4"].columns
_E4M3_LARGEST = 448.0


class Blocks(NamedTuple):
    """A matrix cut into blocks that share a scale.

    `values` is (blocks down, rows, blocks across, columns), padded with zeros.
    """

    values: Float[np.ndarray, "down rows across columns"]
    shape: tuple[int, int]

    def back(self, values: np.ndarray) -> Float[np.ndarray, "rows columns"]:
        """The matrix put together again, its padding cut off."""
        down, rows, across, columns = values.shape
        whole = values.reshape(down * rows, across * columns)
        return whole[: self.shape[0], : self.shape[1]]


def dequantised(
    matrix: Shaped[np.ndarray, "*stack rows columns"],
    name: str,
    largest: float | np.floating | None = None,
) -> Float[np.ndarray, "*stack rows columns"]:
    """Quantise a stored matrix and read it back, in fp64.

    **Arguments:**

    - `matrix`: as stored, (outputs, inputs); of a stack (experts) each has scales of
      its own. Rows of a larger matrix may be given, from a multiple of `row_period` on.
    - `name`: of `WEIGHT_FORMAT_TABLE`.
    - `largest`: the largest magnitude of the whole matrix, where rows of it are given
      and the format has a scale a tensor.

    **Returns:** the value of each code times its scale. Finite where the input is.

    **Raises:** `KeyError` for an unknown name.
    """
    row = WEIGHT_FORMAT_TABLE[name]
    # wider weights (a merged adapter's) are written in fp32 before they are quantised
    single = np.asarray(matrix).astype(np.float32)
    flat = single.reshape(-1, *single.shape[-2:])
    out = [_of_matrix(one, row, largest) for one in flat]
    return np.stack(out).reshape(single.shape)


def row_period(name: str, columns: int) -> int:
    """Count the rows after which the blocks of a format begin anew."""
    row = WEIGHT_FORMAT_TABLE[name]
    if row.element in IN_STORAGE:
        return row.columns // math.gcd(columns, row.columns)
    return row.rows or 1


def needs_largest(name: str) -> bool:
    """Tell whether a format has a scale that all rows of a matrix share."""
    row = WEIGHT_FORMAT_TABLE[name]
    return not row.rows or row.element == "nvfp4"


def _of_matrix(
    matrix: Float[np.ndarray, "rows columns"],
    row: WeightFormatRow,
    largest: float | np.floating | None,
) -> np.ndarray:
    if row.element in IN_STORAGE:
        blocks = _cut(matrix.reshape(1, -1), 1, row.columns)
        return _nearest(blocks, _TABLES[row.element]).reshape(matrix.shape)
    blocks = _cut(matrix, row.rows, row.columns)
    size = np.max(np.abs(blocks.values), axis=(1, 3), keepdims=True)
    whole = np.float32(size.max() if largest is None else largest)
    if not row.rows:
        size = np.broadcast_to(whole, size.shape)
    return blocks.back(_ELEMENTS[row.element](blocks.values, size, whole))


def _cut(matrix: np.ndarray, rows: int, columns: int) -> Blocks:
    """Blocks of so many rows and columns; 0 is all of them."""
    n, k = matrix.shape
    r, c = rows or n, columns or k
    padded = np.pad(matrix, ((0, -n % r), (0, -k % c)))
    values = padded.reshape(len(padded) // r, r, padded.shape[1] // c, c)
    return Blocks(values, (n, k))


def _divided(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Quotients in fp32; 0 where a block is all zeros, or its scale has underflowed."""
    safe = np.where(scale > 0, scale, np.float32(1))
    return np.where(scale > 0, values / safe, np.float32(0))


def _float8(name: str, largest: float):
    def element(values, size, _):
        import ml_dtypes

        dtype = getattr(ml_dtypes, name)
        scale = size / np.float32(largest)
        codes = np.clip(_divided(values, scale), -largest, largest).astype(dtype)
        return codes.astype(np.float64) * scale.astype(np.float64)

    return element


def _integer(bits: int):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def element(values, size, _):
        scale = size / np.float32((high - low) / 2)
        codes = np.clip(np.rint(_divided(values, scale)), low, high)
        return codes.astype(np.float64) * scale.astype(np.float64)

    return element


def _asymmetric(bits: int):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def element(values, size, _):
        del size
        # what pads a block is 0, and 0 has a code of its own
        least = np.minimum(values.min(axis=(1, 3), keepdims=True), np.float32(0))
        most = np.maximum(values.max(axis=(1, 3), keepdims=True), np.float32(0))
        scale = (most - least) / np.float32(high - low)
        zero = np.clip(np.rint(low - _divided(least, scale)), low, high)
        codes = np.clip(np.rint(_divided(values, scale) + zero), low, high)
        return (codes.astype(np.float64) - zero) * scale.astype(np.float64)

    return element


def _nearest(blocks: Blocks, table: Float[np.ndarray, " codes"]) -> np.ndarray:
    """Nearest of the table's values; a tie goes to the lower code of an ordered table,
    and towards 0 in one of sizes with a sign, as bitsandbytes compares."""
    size = np.max(np.abs(blocks.values), axis=(1, 3), keepdims=True)
    scaled = _divided(blocks.values, size).astype(np.float64)
    signed = bool(np.any(np.diff(table) < 0))
    ordered = np.sort(table[: len(table) // 2] if signed else table)
    middles = (ordered[1:].astype(np.float64) + ordered[:-1]) / 2
    sought = np.abs(scaled) if signed else scaled
    found = ordered[np.searchsorted(middles, sought, side="left")]
    if signed:
        found = np.copysign(found, scaled)
    return blocks.back(found.astype(np.float64) * size.astype(np.float64))


def _e2m1(x: np.ndarray) -> np.ndarray:
    """Nearest number of 4 bits (1 sign, 2 exponent, 1 fraction), ties to even."""
    size = np.minimum(np.abs(x), np.float32(E2M1_LARGEST))
    middles = (_E2M1[1:] + _E2M1[:-1]) / 2
    codes = np.searchsorted(middles, size, side="left")
    tie = (codes < len(middles)) & (size == middles[np.minimum(codes, 6)])
    codes = codes + (tie & (codes % 2 == 1))
    return np.copysign(_E2M1[codes], x).astype(np.float64)


def _nvfp4(values, size, whole):
    import ml_dtypes

    over = whole / np.float32(E2M1_LARGEST * _E4M3_LARGEST)
    of_block = _divided(
        size / np.float32(E2M1_LARGEST), np.broadcast_to(over, size.shape)
    )
    of_block = np.minimum(of_block, np.float32(_E4M3_LARGEST))
    of_block = of_block.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    codes = _e2m1(_divided(values, of_block * over))
    return codes * of_block.astype(np.float64) * np.float64(over)


def _power_of_two(size: np.ndarray, largest_exponent: int) -> np.ndarray:
    """Scales under which the largest number of a block has that exponent."""
    # frexp: size = m 2^e with m in [1/2, 1), so floor(log2 size) = e - 1
    _, exponents = np.frexp(size)
    least = exponents - 1 - largest_exponent
    return np.ldexp(1.0, np.clip(np.where(size > 0, least, -127), -127, 127))


def _mxfp4(values, size, _):
    scale = _power_of_two(size, 2)
    return _e2m1((values / scale).astype(np.float32)) * scale


def _mxfp8(values, size, _):
    import ml_dtypes

    scale = _power_of_two(size, 8)
    clipped = np.clip(values / scale, -_E4M3_LARGEST, _E4M3_LARGEST)
    codes = clipped.astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float64) * scale


_ELEMENTS = {
    "fp8_e4m3": _float8("float8_e4m3fn", _E4M3_LARGEST),
    "fp8_e5m2": _float8("float8_e5m2", 57344.0),
    "int8": _integer(8),
    "int4": _integer(4),
    "int8_asym": _asymmetric(8),
    "int4_asym": _asymmetric(4),
    "nvfp4": _nvfp4,
    "mxfp4": _mxfp4,
    "mxfp8": _mxfp8,
}
