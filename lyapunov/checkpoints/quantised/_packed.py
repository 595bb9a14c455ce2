"""Integers of 1 to 8 bits as compressed-tensors packs them into words of 32."""

import numpy as np

from ..._errors import CorruptCheckpointError
from ..files._files import quote
from ..files._tensors import StoredTensor
from ._codes import from_words, words_needed
from ._taken import FLOATS, SAME_PLACE, Taken, scaling_words
from ._tensor import Format, Grid, QuantisedTensor


def packed_matrix(taken: Taken, module: str) -> QuantisedTensor:
    """A matrix of packed integers: (code - zero point) * scale, the code less half its
    range as it is stored; `weight_g_idx`, where there is one, names each column's
    group.

    **Raises:** `CorruptCheckpointError` where shapes do not fit.
    """
    name, scales = f"{module}.weight_packed", f"{module}.weight_scale"
    stored = taken.take(name, ("int32",), scales, axes=(2,))
    tensor = taken.take(scales, FLOATS, name)
    told = taken.take(f"{module}.weight_shape", ("int64", "int32"), name)
    shape = _shape(told, stored, f"{module}.weight_shape")
    bits = _bits(stored, shape, name)
    grid = taken.grid(scales, tensor, shape)
    zero, pieces = None, [stored, tensor, told]
    if taken.has(f"{module}.weight_zero_point"):
        zero, offset = _zeros(taken, module, name, shape, bits, grid)
        pieces.append(offset)
    places, index = None, f"{module}.weight_g_idx"
    groups = -(-shape[1] // grid.columns)
    if taken.has(index):
        places = taken.take(index, ("int32", "int64"), name)
        pieces.append(places)

    def spread(one: Grid, start: int, stop: int) -> np.ndarray:
        if places is None:
            return one.over(start, stop, shape[1])
        # blocks one column wide: a number a group, of which each column takes its own
        each = one._replace(columns=1).over(start, stop, groups)
        return each[:, group_of_each(places, index, shape[1], groups)]

    def values(start: int, stop: int) -> np.ndarray:
        raw = from_words(stored.read_rows(start, stop), bits, shape[1])
        found = raw.astype(np.float64) - 2.0 ** (bits - 1)
        if zero is not None:
            found -= spread(zero, start, stop)
        return found * spread(grid, start, stop)

    element = f"int{bits}" if zero is None else f"int{bits} with zero points"
    words = scaling_words((grid.rows, grid.columns), shape)
    return QuantisedTensor(
        f"{module}.weight",
        shape,
        Format(element, words, taken.method),
        values,
        tuple(pieces),
    )


def _shape(told: StoredTensor, stored: StoredTensor, name: str) -> tuple[int, int]:
    """What `weight_shape` says, held to the codes beside it."""
    if told.size != 2:
        raise CorruptCheckpointError(
            f"{quote(name)} holds {told.size} numbers; a matrix has 2 sizes",
            hint=SAME_PLACE,
        )
    n, k = (int(x) for x in told.read().reshape(-1))
    words = stored.shape[1]
    if n != stored.shape[0] or not words <= k <= 32 * words:
        raise CorruptCheckpointError(
            f"{quote(name)} says ({n}, {k}); the codes beside it are"
            f" {stored.shape} words of 32 bits",
            hint=SAME_PLACE,
        )
    return n, k


def _bits(stored: StoredTensor, shape: tuple[int, int], name: str) -> int:
    """How many bits a code has, from how many words a row takes."""
    fitting = [
        bits for bits in range(1, 9) if words_needed(shape[1], bits) == stored.shape[1]
    ]
    if len(fitting) != 1:
        raise CorruptCheckpointError(
            f"{quote(name)} has {stored.shape[1]} words a row for {shape[1]} codes,"
            f" which fit {'codes of no' if not fitting else 'codes of several'} size"
            " from 1 to 8 bits",
            hint=SAME_PLACE,
        )
    return fitting[0]


def _zeros(
    taken: Taken,
    module: str,
    beside: str,
    shape: tuple[int, int],
    bits: int,
    grid: Grid,
) -> tuple[Grid, StoredTensor]:
    """Zero points, packed along the rows; one for each scale."""
    name = f"{module}.weight_zero_point"
    offset = taken.take(name, ("int32", "int8"), beside, axes=(2,))
    across = -(-shape[1] // grid.columns)
    packed = offset.dtype == "int32"
    down = words_needed(shape[0], bits) if packed else shape[0]
    if offset.shape != (down, across) or grid.rows != 1:
        raise CorruptCheckpointError(
            f"{quote(name)} has shape {offset.shape}; beside {shape[0]} rows of"
            f" {across} scales it should be ({down}, {across})",
            hint=SAME_PLACE,
        )

    def read(first: int, last: int) -> np.ndarray:
        if not packed:
            return offset.read_rows(first, last).astype(np.float64)
        # a word holds the zero points of several rows
        begin, end = first * bits // 32, -(-last * bits // 32)
        words = offset.read_rows(begin, end).T
        head = first * bits - 32 * begin
        if head % bits:  # a zero point across two words: from the first row on
            begin, head, words = 0, first * bits, offset.read_rows(0, end).T
        skipped = head // bits
        raw = from_words(words, bits, skipped + last - first)[:, skipped:].T
        return raw.astype(np.float64) - 2.0 ** (bits - 1)

    return Grid(read, 1, grid.columns), offset


def group_of_each(
    places: StoredTensor, name: str, columns: int, groups: int
) -> np.ndarray:
    """The group of each column, as `g_idx` names it.

    **Raises:** `CorruptCheckpointError` where it names one that is not there.
    """
    if places.shape != (columns,):
        raise CorruptCheckpointError(
            f"{quote(name)} has shape {places.shape} beside {columns} columns",
            hint=SAME_PLACE,
        )
    found = places.read().astype(np.int64)
    if found.size and not (found.min() >= 0 and found.max() < groups):
        worst = found.min() if found.min() < 0 else found.max()
        raise CorruptCheckpointError(
            f"{quote(name)} names group {worst} of {groups}",
            hint=f"g_idx counts from 0; {SAME_PLACE}",
        )
    return found
