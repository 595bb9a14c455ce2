"""Matrices of which each code is a byte of its own: FP8 and int8 under scales."""

import numpy as np

from ...formats._weights import MX_COLUMNS
from ._codes import powers_of_two
from ._taken import FLOATS, Taken, scaling_words
from ._tensor import Format, Grid, QuantisedTensor, sound_float_codes, sound_scales


CODES = ("fp8_e4m3", "fp8_e5m2", "int8")


def eight_bit_matrix(
    taken: Taken,
    name: str,
    scales: str,
    *,
    block: tuple[int, int] | None = None,
    zeros: str | None = None,
    codes: tuple[str, ...] = CODES,
) -> QuantisedTensor:
    """A matrix of bytes: (code - zero point) * scale.

    **Arguments:**

    - `name`, `scales`, `zeros`: stored names; the matrix is (outputs, inputs).
    - `block`: rows and columns that share a scale, where they may be short at the end;
      None: as the shape of the scales says.
    - `codes`: types that the layout has them in.
    """
    stored = taken.take(name, codes, scales, axes=(2,))
    tensor = taken.take(scales, (*FLOATS, "fp8_e8m0", "uint8"), name)
    shape = stored.shape[0], stored.shape[1]
    if tensor.dtype in ("uint8", "fp8_e8m0"):
        grid = taken.grid(scales, tensor, shape, block=(1, MX_COLUMNS))
        grid = grid._replace(read=_exponents(grid, tensor, scales, shape[1]))
    else:
        grid = taken.grid(scales, tensor, shape, block=block)
    zero = None
    pieces = [stored, tensor]
    if zeros is not None and taken.has(zeros):
        offset = taken.take(zeros, ("int8", "int32", "uint8", *FLOATS), name)
        where = taken.block_of(zeros, offset.shape, shape)
        across = -(-shape[1] // where[1])
        zero = Grid(lambda first, last: _plain(offset, across, first, last), *where)
        pieces.append(offset)
    floating = stored.dtype != "int8"

    def values(start: int, stop: int) -> np.ndarray:
        raw = stored.read_rows(start, stop)
        found = sound_float_codes(raw, name) if floating else raw.astype(np.float64)
        if zero is not None:
            found -= zero.over(start, stop, shape[1])
        return found * grid.over(start, stop, shape[1])

    element = stored.dtype
    if zero is not None:
        element = f"{element} with zero points"
    words = scaling_words((grid.rows, grid.columns), shape)
    return QuantisedTensor(
        name,
        shape,
        Format(element, words, taken.method),
        values,
        tuple(pieces),
        scale=tensor if tensor.size == 1 else None,
    )


def _exponents(grid: Grid, tensor, name: str, columns: int):
    """Scales that are powers of two, a byte each."""
    across = -(-columns // grid.columns)

    def read(first: int, last: int) -> np.ndarray:
        raw = tensor.read_rows(first, last).view(np.uint8).reshape(-1, across)
        return sound_scales(powers_of_two(raw), name)

    return read


def _plain(tensor, across: int, first: int, last: int) -> np.ndarray:
    if tensor.size == across or not tensor.shape:
        return tensor.read().astype(np.float64).reshape(1, across)
    return tensor.read_rows(first, last).astype(np.float64).reshape(-1, across)
