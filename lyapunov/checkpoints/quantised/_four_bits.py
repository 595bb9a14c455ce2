"""Matrices of e2m1 codes, two a byte: NVFP4 of both conventions, and MXFP4.

compressed-tensors stores what a block's scale is divided by (`weight_global_scale`),
ModelOpt what it is multiplied by (`weight_scale_2`, its reciprocal). Read in the wrong
one a matrix is off by the square of that number, which its size shows: the largest
scale of a block is e4m3's largest or near it, so that the largest weight is about 2688
over the first and 2688 times the second.
"""

import numpy as np

from ..._errors import CorruptCheckpointError
from ...formats._weights import E2M1_LARGEST, MX_COLUMNS, NV_COLUMNS
from ..files._files import quote
from ..files._tensors import StoredTensor
from ._codes import e2m1, nibbles, powers_of_two
from ._taken import SAME_PLACE, Taken
from ._tensor import Format, QuantisedTensor, sound_scales


# Weights of no network reach this, and the wrong convention makes of any that stay
# below 3528 (7.2e6 over it) larger ones.
LARGEST_WEIGHT = 2048.0


def nvfp4_matrix(
    taken: Taken, module: str, codes: str, over: str, *, divided: bool
) -> QuantisedTensor:
    """A matrix in NVFP4: e2m1 * block's scale * (or over) the tensor's.

    **Arguments:**

    - `codes`, `over`: what the module calls its codes and the tensor's scale.
    - `divided`: whether it is what is divided by (compressed-tensors).
    """
    name, scales = f"{module}.{codes}", f"{module}.weight_scale"
    whole = f"{module}.{over}"
    stored = taken.take(name, ("uint8",), scales, axes=(2,))
    tensor = taken.take(scales, ("fp8_e4m3",), name, axes=(2,))
    one = taken.take(whole, ("fp32",), name)
    shape = stored.shape[0], 2 * stored.shape[1]
    grid = taken.grid(scales, tensor, shape, block=(1, NV_COLUMNS), zero=True)
    _demand_one(one, whole)

    def values(start: int, stop: int) -> np.ndarray:
        factor = float(sound_scales(one.read().reshape(-1), whole)[0])
        of_blocks = grid.over(start, stop, shape[1])
        _check_convention(of_blocks, factor, divided, whole)
        found = e2m1(nibbles(stored.read_rows(start, stop))) * of_blocks
        return found / factor if divided else found * factor

    words = f"groups of {NV_COLUMNS}, e4m3 scales under one a tensor"
    return QuantisedTensor(
        f"{module}.weight",
        shape,
        Format("nvfp4", words, taken.method),
        values,
        (stored, tensor, one),
        scale=one,
    )


def _demand_one(one: StoredTensor, name: str) -> None:
    if one.size != 1:
        raise CorruptCheckpointError(
            f"{quote(name)} has shape {one.shape}; a matrix has one such scale",
            hint=SAME_PLACE,
        )


def _check_convention(
    of_blocks: np.ndarray, factor: float, divided: bool, name: str
) -> None:
    """Refuse a tensor's scale that is stored in the other convention.

    **Raises:** `CorruptCheckpointError`.
    """
    largest = E2M1_LARGEST * float(np.max(np.abs(of_blocks), initial=0.0))
    reached = largest / abs(factor) if divided else largest * abs(factor)
    other = largest * abs(factor) if divided else largest / abs(factor)
    if reached > LARGEST_WEIGHT >= other:
        told = "divided by" if divided else "multiplied by"
        raise CorruptCheckpointError(
            f"{quote(name)} is {factor:.4g}, and scales are {told} it here: weights"
            f" would reach {reached:.3g}. In the other convention (its reciprocal) they"
            f" reach {other:.3g}",
            hint="compressed-tensors divides by weight_global_scale, ModelOpt"
            " multiplies by weight_scale_2: whoever converted the file kept the number;"
            " write its reciprocal",
        )


def mxfp4_matrix(taken: Taken, module: str) -> QuantisedTensor:
    """A matrix in MXFP4: e2m1 * 2^(scale - 127), 32 columns a scale."""
    name, scales = f"{module}.weight_packed", f"{module}.weight_scale"
    stored = taken.take(name, ("uint8",), scales, axes=(2,))
    tensor = taken.take(scales, ("uint8", "fp8_e8m0"), name, axes=(2,))
    shape = stored.shape[0], 2 * stored.shape[1]
    grid = taken.grid(scales, tensor, shape, block=(1, MX_COLUMNS))

    def exponents(first: int, last: int) -> np.ndarray:
        raw = tensor.read_rows(first, last).view(np.uint8)
        return sound_scales(powers_of_two(raw), scales)

    over = grid._replace(read=exponents)

    def values(start: int, stop: int) -> np.ndarray:
        codes = nibbles(stored.read_rows(start, stop))
        return e2m1(codes) * over.over(start, stop, shape[1])

    words = f"groups of {MX_COLUMNS}, scales that are powers of 2"
    return QuantisedTensor(
        f"{module}.weight",
        shape,
        Format("mxfp4", words, taken.method),
        values,
        (stored, tensor),
    )
