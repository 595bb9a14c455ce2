"""Matrices as quantisers store them, packed bit by bit with Python's integers.

Written from the layouts' descriptions (compressed-tensors 0.20, vLLM 0.33's readers of
ModelOpt and FP8 blocks, AutoGPTQ, AutoAWQ, bitsandbytes, torchao): slow and plain. Each
function takes a matrix (outputs, inputs) and gives what is stored under the module's
name, and the numbers that it means, in fp64, from codes and scales before they were
packed.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np


E4M3 = ml_dtypes.float8_e4m3fn
BF16 = ml_dtypes.bfloat16
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FP4 = [0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4]
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


class Packed(NamedTuple):
    """What is stored of a matrix, by what follows the module's name, and what it
    means."""

    tensors: dict[str, np.ndarray]
    meant: np.ndarray


class Recipe(NamedTuple):
    """A way to store a matrix, and the configuration that names it."""

    pack: Callable[[np.ndarray], Packed]
    config: dict
    element: str
    """The beginning of what the report calls it."""
    beside: str | None = None
    """The file that holds the configuration, where it is not config.json."""


def words(codes, bits: int, n_words: int) -> list[int]:
    """Codes one behind another from the lowest bit up, as int32."""
    whole = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    found = [(whole >> (32 * i)) & 0xFFFFFFFF for i in range(n_words)]
    return [word - 2**32 if word >= 2**31 else word for word in found]


def packed_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Each row's codes in words of 32 bits."""
    n_words = -(-codes.shape[1] * bits // 32)
    return np.array([words(row, bits, n_words) for row in codes], np.int32)


def _spread(scales: np.ndarray, rows: int, columns: int, shape) -> np.ndarray:
    wide = np.kron(scales.astype(np.float64), np.ones((rows, columns)))
    return wide[: shape[0], : shape[1]]


def _largest(w: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Largest magnitude of each block; the last may be short."""
    n, k = w.shape
    return np.array(
        [
            [
                np.abs(w[i : i + rows, j : j + columns]).max()
                for j in range(0, k, columns)
            ]
            for i in range(0, n, rows)
        ],
        np.float32,
    )


def eight_bits(
    kind: str, rows: int, columns: int, scale_type: Any = np.float32, **names: Any
):
    """FP8 or int8, a scale a block; 0 is all rows or columns."""
    suffix, shaped = names.get("scale", ".weight_scale"), names.get("shaped")
    code_suffix = names.get("codes", ".weight")

    def pack(w: np.ndarray) -> Packed:
        r, c = rows or w.shape[0], columns or w.shape[1]
        top = np.float32(448.0 if kind == "fp8" else 127.0)
        scales = (_largest(w, r, c) / top).astype(scale_type)
        wide = _spread(scales, r, c, w.shape)
        if kind == "fp8":
            codes = np.clip(w / wide, -448, 448).astype(np.float32).astype(E4M3)
        else:
            codes = np.clip(np.rint(w / wide), -128, 127).astype(np.int8)
        meant = codes.astype(np.float64) * wide
        stored = scales if shaped is None else scales.reshape(shaped(scales.shape))
        return Packed({code_suffix: codes, suffix: stored}, meant)

    return pack


def beside(pack: Callable[[np.ndarray], Packed], suffix: str, value: float, *shape):
    """The same with one fp32 scale of activations beside each matrix."""

    def packed(w: np.ndarray) -> Packed:
        tensors, meant = pack(w)
        scale = np.full(shape, value, np.float32)
        return Packed({**tensors, suffix: scale}, meant)

    return packed


def asymmetric_int8(w: np.ndarray) -> Packed:
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    scales = ((high - low) / np.float32(255)).astype(BF16)
    wide = scales.astype(np.float64)
    zeros = np.clip(np.rint(-128 - low / wide), -128, 127).astype(np.int8)
    codes = np.clip(np.rint(w / wide) + zeros, -128, 127).astype(np.int8)
    stored = {".weight": codes, ".weight_scale": scales, ".weight_zero_point": zeros}
    return Packed(stored, (codes.astype(np.float64) - zeros) * wide)


def packed_integers(bits: int, group: int, asymmetric: bool, shuffled: bool = False):
    """compressed-tensors' pack-quantized."""

    def pack(w: np.ndarray) -> Packed:
        n, k = w.shape
        size = group or k
        index = np.arange(k) // size
        if shuffled:
            index = np.random.default_rng(3).permutation(index)
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        scales = np.empty((n, k // size), BF16)
        zeros = np.zeros((n, k // size), np.int64)
        for g in range(k // size):
            own = w[:, index == g]
            if asymmetric:
                span = own.max(1) - own.min(1)
                scales[:, g] = (span / (high - low)).astype(BF16)
                zeros[:, g] = np.clip(
                    np.rint(low - own.min(1) / scales[:, g].astype(np.float64)),
                    low,
                    high,
                )
            else:
                scales[:, g] = (np.abs(own).max(1) * 2 / (high - low)).astype(BF16)
        wide = scales.astype(np.float64)[:, index]
        codes = np.clip(np.rint(w / wide) + zeros[:, index], low, high).astype(np.int64)
        stored = {
            ".weight_packed": packed_rows(codes - low, bits),
            ".weight_scale": scales,
            ".weight_shape": np.array([n, k], np.int64),
        }
        if asymmetric:
            packed = packed_rows((zeros - low).T, bits).T
            stored[".weight_zero_point"] = np.ascontiguousarray(packed)
        if shuffled:
            stored[".weight_g_idx"] = index.astype(np.int32)
        return Packed(stored, (codes - zeros[:, index]) * wide)

    return pack


def nearest(values: np.ndarray, table) -> np.ndarray:
    """The code of the nearest number of a table."""
    return np.abs(values[..., None] - np.asarray(table)).argmin(-1)


def _e2m1_codes(values: np.ndarray) -> np.ndarray:
    return nearest(np.abs(values), E2M1) + 8 * (values < 0)


def _pairs(codes: np.ndarray, high_first: bool = False) -> np.ndarray:
    first, second = codes[..., 0::2], codes[..., 1::2]
    low, high = (second, first) if high_first else (first, second)
    return (low + 16 * high).astype(np.uint8)


def _signed(table, codes: np.ndarray) -> np.ndarray:
    return np.concatenate([table, np.negative(table)])[codes]


def nvfp4(divided: bool, codes=".weight_packed", over=".weight_global_scale"):
    """Both conventions: compressed-tensors' divides, ModelOpt's multiplies."""

    def pack(w: np.ndarray) -> Packed:
        factor = np.float32(448 * 6 / np.abs(w).max())
        scales = (_largest(w, 1, 16) / np.float32(6) * factor).astype(E4M3)
        wide = _spread(scales, 1, 16, w.shape)
        found = _e2m1_codes(w * np.float64(factor) / np.where(wide == 0, 1, wide))
        stored = factor if divided else np.float32(1) / factor
        blocks = _signed(E2M1, found) * wide
        meant = blocks / np.float64(stored) if divided else blocks * np.float64(stored)
        one = np.array([stored]) if divided else np.array(stored)
        return Packed({codes: _pairs(found), ".weight_scale": scales, over: one}, meant)

    return pack


def mxfp4(w: np.ndarray) -> Packed:
    exponents = np.floor(np.log2(_largest(w, 1, 32))) - 2
    wide = _spread(2.0**exponents, 1, 32, w.shape)
    codes = _e2m1_codes(w / wide)
    stored = {
        ".weight_packed": _pairs(codes),
        ".weight_scale": (exponents + 127).astype(np.uint8),
    }
    return Packed(stored, _signed(E2M1, codes) * wide)


def mxfp8(w: np.ndarray) -> Packed:
    exponents = np.floor(np.log2(_largest(w, 1, 32))) - 8
    wide = _spread(2.0**exponents, 1, 32, w.shape)
    codes = np.clip(w / wide, -448, 448).astype(np.float32).astype(E4M3)
    stored = {".weight": codes, ".weight_scale": (exponents + 127).astype(np.uint8)}
    return Packed(stored, codes.astype(np.float64) * wide)


def _by_groups(w: np.ndarray, bits: int, index: np.ndarray):
    """Codes from 0 up, scales in fp16 and zero points, (inputs, outputs) each."""
    x, top = w.T.astype(np.float64), 2**bits - 1
    groups = index.max() + 1
    scales = np.empty((groups, x.shape[1]), np.float16)
    zeros = np.empty((groups, x.shape[1]), np.int64)
    for g in range(groups):
        own = x[index == g]
        scales[g] = (own.max(0) - own.min(0)) / top
        # 0 and the largest code are what the two versions of GPTQ disagree on
        zeros[g] = np.clip(np.rint(-own.min(0) / scales[g].astype(np.float64)), 1, top)
    wide = scales.astype(np.float64)[index]
    codes = np.clip(np.rint(x / wide) + zeros[index], 0, top).astype(np.int64)
    return codes, scales, zeros, ((codes - zeros[index]) * wide).T


def gptq(bits: int, group: int, offset: int, shuffled: bool = False):
    """GPTQ's layout; `offset` is taken off each zero point that is stored."""

    def pack(w: np.ndarray) -> Packed:
        index = np.arange(w.shape[1]) // group
        if shuffled:
            index = np.random.default_rng(5).permutation(index)
        codes, scales, zeros, meant = _by_groups(w, bits, index)
        stored = {
            ".qweight": np.ascontiguousarray(packed_rows(codes.T, bits).T),
            ".qzeros": packed_rows(zeros - offset, bits),
            ".scales": scales,
            ".g_idx": index.astype(np.int32),
        }
        return Packed(stored, meant)

    return pack


def awq(group: int):
    """AutoAWQ's gemm."""

    def pack(w: np.ndarray) -> Packed:
        index = np.arange(w.shape[1]) // group
        codes, scales, zeros, meant = _by_groups(w, 4, index)
        order = [
            8 * j + i for j in range(w.shape[0] // 8) for i in (0, 2, 4, 6, 1, 3, 5, 7)
        ]
        stored = {
            ".qweight": packed_rows(codes[:, order], 4),
            ".qzeros": packed_rows(zeros[:, order], 4),
            ".scales": scales,
        }
        return Packed(stored, meant)

    return pack


def bitsandbytes(kind: str, double: bool, block: int = 64):
    """nf4 and fp4, with scales in fp32 or quantised once more."""
    table = np.asarray(NF4 if kind == "nf4" else FP4 + [-x for x in FP4], np.float32)

    def pack(w: np.ndarray) -> Packed:
        flat = w.reshape(-1).astype(np.float32)
        parts = [flat[i : i + block] for i in range(0, len(flat), block)]
        absmax = np.array([np.abs(part).max() for part in parts], np.float32)
        codes = np.concatenate(
            [
                nearest(part / size, table)
                for part, size in zip(parts, absmax, strict=True)
            ]
        )
        state = {
            "quant_type": kind,
            "blocksize": block,
            "dtype": "bfloat16",
            "shape": list(w.shape),
        }
        stored: dict[str, np.ndarray] = {".weight.quant_map": table}
        each = absmax.astype(np.float64)
        if double:
            offset = float(absmax.mean())
            rest = [absmax[i : i + 256] - offset for i in range(0, len(absmax), 256)]
            over = np.array([np.abs(x).max() for x in rest], np.float32)
            # an even map does: the file brings its own
            own = np.linspace(-1, 1, 256, dtype=np.float32)
            small = [nearest(x / o, own) for x, o in zip(rest, over, strict=True)]
            state |= {
                "nested_blocksize": 256,
                "nested_dtype": "float32",
                "nested_offset": offset,
            }
            each = np.concatenate(
                [
                    own.astype(np.float64)[x] * np.float64(o) + offset
                    for x, o in zip(small, over, strict=True)
                ]
            )
            stored |= {
                ".weight.absmax": np.concatenate(small).astype(np.uint8),
                ".weight.nested_absmax": over,
                ".weight.nested_quant_map": own,
            }
        else:
            stored[".weight.absmax"] = absmax
        padded = np.append(codes, [7] * (len(codes) % 2))
        stored[".weight"] = _pairs(padded, high_first=True).reshape(-1, 1)
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        stored[f".weight.quant_state.bitsandbytes__{kind}"] = text
        wide = np.repeat(each, block)[: len(flat)]
        return Packed(stored, (table.astype(np.float64)[codes] * wide).reshape(w.shape))

    return pack


def bitsandbytes_int8(w: np.ndarray) -> Packed:
    largest = np.abs(w).max(1).astype(np.float32)
    codes = np.rint(w / largest[:, None] * 127).astype(np.int8)
    meant = codes.astype(np.float64) * largest.astype(np.float64)[:, None] / 127
    return Packed({".weight": codes, ".SCB": largest}, meant)


def torchao(kind: str):
    """Tensors of torchao with a scale a row, taken apart."""
    names: dict[str, Any] = {"codes": "._weight_qdata", "scale": "._weight_scale"}
    plain = eight_bits("fp8" if kind == "fp8" else "int8", 1, 0, **names)

    def pack(w: np.ndarray) -> Packed:
        found = plain(w)
        if kind == "int8":
            zeros = np.zeros((len(w), 1), np.int8)
            found.tensors["._weight_zero_point"] = zeros
        return found

    return pack
