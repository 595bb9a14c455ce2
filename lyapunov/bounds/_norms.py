"""Operator norms of weights, found once for all who bound the same matrix."""

import weakref

import numpy as np
from jaxtyping import Array, Float

from .._devices import has_gpu
from .operator_norm import operator_norm_bound


_FOUND: dict[int, tuple[weakref.ref, float]] = {}


def norm_of(matrix: Float[Array, "rows columns"]) -> float:
    """`operator_norm_bound`, remembered as long as the array is alive."""
    key = id(matrix)
    known = _FOUND.get(key)
    if known is None or known[0]() is not matrix:
        forget = lambda _, key=key: _FOUND.pop(key, None)
        there = has_gpu()
        found = operator_norm_bound(
            matrix if there else np.asarray(matrix), on_device=there
        )
        known = _FOUND[key] = (weakref.ref(matrix, forget), found)
    return known[1]
