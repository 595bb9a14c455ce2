"""bitsandbytes: nf4, fp4 with their scales quantised or not, and int8.

Of 4 bits `P.weight` uint8 (N K / 2, 1) holds the matrix row behind row, the first of
two codes in the high bits; `P.weight.absmax` a scale for each `blocksize` of them, fp32
or, under double quantisation, codes of a map of 256 (`nested_quant_map`) times
`nested_absmax` (a scale for 256 scales) plus `nested_offset`;
`P.weight.quant_state.bitsandbytes__nf4` the bytes of a JSON object that says all this.
Of 8 bits `P.weight` int8 beside `P.SCB` (N): q * SCB / 127.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..._errors import CorruptCheckpointError
from ...formats._weights import FP4_CODES, NF4
from ..files._files import parse_json_object, quote
from ..files._tensors import StoredTensor, check_shape
from ._activations import Asked, Asking
from ._codes import nibbles
from ._settings import contradiction, count_of, unsupported
from ._taken import SAME_PLACE, Taken
from ._tensor import Format, QuantisedTensor, sound_scales


METHOD = "bitsandbytes"
TABLES = {"nf4": NF4, "fp4": FP4_CODES}
_STATE = "weight.quant_state.bitsandbytes__"
_MAX_STATE_BYTES = 2**16


def read_bitsandbytes(config: Mapping[str, Any], taken: Taken) -> Asking:
    """Take what bitsandbytes stores, and say how activations are quantised.

    **Raises:** `CorruptCheckpointError` where the bytes that say what is stored, the
    shapes or the configuration disagree.
    """
    for element in TABLES:
        for module in list(taken.modules(f"{_STATE}{element}")):
            taken.give(_four_bits(taken, module, element))
    told_eight = bool(config.get("load_in_8bit") or config.get("_load_in_8bit"))
    told_four = bool(config.get("load_in_4bit") or config.get("_load_in_4bit"))
    if taken.made and told_eight and not told_four:
        raise contradiction(list(taken.made), "4 bits", "8 bits (load_in_8bit)")
    eights = list(taken.modules("SCB"))
    if eights and told_four and not told_eight:
        raise contradiction(eights, "8 bits", "4 bits (load_in_4bit)")
    for module in eights:
        taken.give(_eight_bits(taken, module))
    threshold = quote(config.get("llm_int8_threshold", 6.0), 20)
    asked = Asked(f"int8, one scale a token, columns beyond {threshold} in 16 bits")
    of_eights = frozenset(eights)
    return lambda module: asked if module in of_eights else None


def _eight_bits(taken: Taken, module: str) -> QuantisedTensor:
    name, scales = f"{module}.weight", f"{module}.SCB"
    stored = taken.take(name, ("int8",), scales, axes=(2,))
    tensor = taken.take(scales, ("fp32", "fp16"), name)
    kind = f"{module}.weight_format"
    if taken.has(kind):
        order = taken.take(kind, ("uint8", "int8", "int64"), name)
        if order.size != 1 or int(order.read().reshape(-1)[0]) != 0:
            raise unsupported(
                "bitsandbytes' order of int8", "for tensor cores", ("row",)
            )
    n, k = stored.shape
    if tensor.size != n:
        raise CorruptCheckpointError(
            f"{quote(scales)} has shape {tensor.shape} beside {n} rows",
            hint=SAME_PLACE,
        )

    def values(start: int, stop: int) -> np.ndarray:
        whole = tensor.read().reshape(-1)[start:stop]
        # the largest of a row, by which a row of zeros has 0 and means zeros
        largest = sound_scales(whole, scales, zero=True)
        codes = stored.read_rows(start, stop).astype(np.float64)
        return codes * largest[:, None] / 127.0

    words = Format("int8", "one scale a row", taken.method)
    return QuantisedTensor(name, (n, k), words, values, (stored, tensor))


def _four_bits(taken: Taken, module: str, element: str) -> QuantisedTensor:
    name = f"{module}.weight"
    state = _state(taken, module, element)
    shape = check_shape(state.get("shape"), f"{quote(name)}'s quant_state")
    stored = taken.take(name, ("uint8",), f"{module}.{_STATE}{element}")
    size = math.prod(shape)
    long = -(-size // 2)
    if len(shape) != 2 or stored.shape not in ((long, 1), (long,)):
        raise CorruptCheckpointError(
            f"{quote(name)}'s quant_state says a shape of {shape}; the codes beside it"
            f" are bytes of shape {stored.shape}",
            hint=SAME_PLACE,
        )
    n, k = shape
    block = count_of(state, "blocksize", 64)
    if block < 1:
        raise _implausible(name, "blocksize", block)
    blocks = -(-size // block)
    scales, pieces = _scales(taken, name, state, blocks)
    table_name = f"{name}.quant_map"
    table = taken.take(table_name, ("fp32",), name)
    known = TABLES[element]

    def values(start: int, stop: int) -> np.ndarray:
        if table.shape != (16,) or not np.array_equal(table.read(), known):
            raise CorruptCheckpointError(
                f"{quote(table_name)} is not the table of {element}, by which"
                " bitsandbytes' kernels read the codes",
                hint=f"quantise again; {SAME_PLACE}",
            )
        # rows begin inside bytes where a row's length is odd
        begin, end = start * k, stop * k
        octets = stored.read_rows(begin // 2, -(-end // 2)).reshape(1, -1)
        skipped = begin % 2
        codes = nibbles(octets, high_first=True)[0, skipped : skipped + end - begin]
        first, last = begin // block, -(-end // block)
        each = np.repeat(scales(first, last), block)
        each = each[begin - first * block : end - first * block]
        return (known.astype(np.float64)[codes] * each).reshape(stop - start, k)

    double = ", scales quantised" if "nested_offset" in state else ""
    words = Format(element, f"groups of {block}{double}", taken.method)
    return QuantisedTensor(name, (n, k), words, values, (stored, table, *pieces))


def _state(taken: Taken, module: str, element: str) -> dict[str, Any]:
    """The JSON object of one matrix, of a plausible size and kind."""
    name = f"{module}.{_STATE}{element}"
    stored = taken.take(name, ("uint8",), f"{module}.weight", axes=(1,))
    if stored.size > _MAX_STATE_BYTES:
        raise CorruptCheckpointError(
            f"{quote(name)} is {stored.size} bytes long; at most {_MAX_STATE_BYTES}"
            " are plausible",
            hint=SAME_PLACE,
        )
    found = parse_json_object(stored.read().tobytes(), quote(name), strict=True)
    if found.get("quant_type", element) != element:
        told = json.dumps(found["quant_type"])
        raise contradiction([name], element, f"quant_type {quote(told, 40)}")
    return found


def _scales(taken: Taken, name: str, state: Mapping[str, Any], blocks: int):
    """Scales from one block to another, in fp64, and what they are made of."""
    absmax = f"{name}.absmax"
    tensor = taken.take(absmax, ("fp32", "uint8"), name)
    if tensor.size != blocks:
        raise CorruptCheckpointError(
            f"{quote(absmax)} holds {tensor.size} scales for {blocks} blocks",
            hint=SAME_PLACE,
        )
    if tensor.dtype == "fp32":
        plain = lambda first, last: sound_scales(
            tensor.read_rows(first, last).reshape(-1), absmax, zero=True
        )
        return plain, (tensor,)
    offset = state.get("nested_offset")
    if (
        not isinstance(offset, int | float)
        or isinstance(offset, bool)
        or not abs(offset) < 1e38
    ):
        raise _implausible(name, "nested_offset", offset)
    size = count_of(state, "nested_blocksize", 256)
    if size < 1:
        raise _implausible(name, "nested_blocksize", size)
    over = taken.take(f"{name}.nested_absmax", ("fp32",), name)
    table = taken.take(f"{name}.nested_quant_map", ("fp32",), name)
    if over.size != -(-blocks // size) or table.shape != (256,):
        raise CorruptCheckpointError(
            f"{quote(name)}: nested_absmax {over.shape} and nested_quant_map"
            f" {table.shape} do not fit {blocks} scales in blocks of {size}",
            hint=SAME_PLACE,
        )
    codes: tuple[StoredTensor, ...] = (tensor, over, table)

    def nested(first: int, last: int) -> np.ndarray:
        taken_codes = tensor.read_rows(first, last).reshape(-1)
        begin, end = first // size, -(-last // size)
        each = np.repeat(over.read_rows(begin, end).astype(np.float64), size)
        each = each[first - begin * size : last - begin * size]
        found = table.read().astype(np.float64)[taken_codes] * each + offset
        return sound_scales(found, absmax, zero=True)

    return nested, codes


def _implausible(name: str, key: str, value: object) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{quote(name)}'s quant_state has a {key} of {quote(value, 40)}",
        hint=SAME_PLACE,
    )
