"""Operator norms of weights, found once for all who bound the same matrix."""

import contextlib
import functools
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Array, Float
from threadpoolctl import ThreadpoolController

from .._devices import as_here, chosen_device, has_gpu
from .operator_norm import operator_norm_bound


WORKERS = 8
# Rows of a Gram matrix above which a factorisation has work for several threads. Below,
# BLAS' threads wait for each other where others compute: 0.9 s for 13 ms of work.
LARGE = 2048

_FOUND: dict[int, tuple[weakref.ref, float]] = {}
# how many threads BLAS has is the process' own business: one at a time
_LIMITED = threading.Lock()


def norms_of(matrices: list[Float[Array, "rows columns"]]) -> list[float]:
    """`norm_of` each, side by side: programs on a GPU, a factorisation elsewhere."""
    if not matrices:
        return []
    rows = max(min(matrix.shape) for matrix in matrices)
    few = contextlib.nullcontext() if rows > LARGE or has_gpu() else _one_thread()
    there = partial(as_here, chosen_device(), norm_of)
    with few, ThreadPoolExecutor(min(WORKERS, len(matrices))) as workers:
        return [float(norm) for norm in workers.map(there, matrices)]


@contextlib.contextmanager
def _one_thread():
    with _LIMITED, _blas().limit(limits=1):
        yield


@functools.cache
def _blas() -> Any:
    return ThreadpoolController().select(user_api="blas")


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
