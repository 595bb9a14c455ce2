"""What llama.cpp's converter does to tensors, undone.

Read in llama.cpp's `conversion/` (the version inside llama-cpp-python 0.3.36) and in
its `src/models/`, which says in what order the rows are taken.

A change takes the shapes of what is stored and says the shape that comes of them, and
how.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..._errors import CorruptCheckpointError
from ..files._files import quote
from ._tensors import Arrays, MadeTensor


@runtime_checkable
class Source(Protocol):
    """Whatever a tensor can be made of."""

    @property
    def name(self) -> str:
        """Name it as the file does."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Name the kinds that it is stored in."""
        ...

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        ...

    @property
    def size(self) -> int:
        """Number of elements."""
        ...

    def read(self) -> np.ndarray:
        """Read the whole tensor."""
        ...


class Made(NamedTuple):
    """What a change comes to."""

    shape: tuple[int, ...]
    make: Arrays


Change = Callable[[Sequence[Source]], Made]


def made(sources: Sequence[Source], change: Change) -> MadeTensor:
    """Make a tensor by a change."""
    found = change(sources)
    return MadeTensor(tuple(sources), found.shape, found.make)


def reshaped(*shape: int) -> Change:
    """Give it another shape of the same size; -1 is what is left.

    **Raises:** `CorruptCheckpointError` where the size is another.
    """

    def change(sources: Sequence[Source]) -> Made:
        (one,) = sources
        known = math.prod(n for n in shape if n != -1)
        whole = one.size // known if -1 in shape else 1
        found = tuple(whole if n == -1 else n for n in shape)
        if math.prod(found) != one.size:
            raise CorruptCheckpointError(
                f"{quote(one.name)} has the shape {one.shape}, which is none of"
                f" {one.size} numbers as {found}",
                hint="take metadata and weights from the same file",
            )
        return Made(found, lambda arrays: arrays[0].reshape(found))

    return change


def with_middle_axis(sources: Sequence[Source]) -> Made:
    """A depthwise convolution, (channels, taps), as torch has it: one input each."""
    (one,) = sources
    shape = (one.shape[0], 1, *one.shape[1:])
    return Made(shape, lambda arrays: arrays[0].reshape(shape))


def log_of_negative(*shape: int) -> Change:
    """A = -exp(A_log) back to A_log, in fp64.

    The file holds A; models hold A_log and take exp of it again. In fp64 logarithm and
    exponential move A by at most a few times 1e-16 (1 + |A_log|) of itself, where
    llama.cpp's rounding to fp32 moved it by up to 6e-8.

    **Raises:** when read, `CorruptCheckpointError` where A is not negative.
    """
    first = reshaped(*shape)

    def change(sources: Sequence[Source]) -> Made:
        (one,) = sources
        found = first(sources)

        def make(arrays: Sequence[np.ndarray]) -> np.ndarray:
            A = found.make(arrays).astype(np.float64)
            bad = int(np.count_nonzero(~(A < 0) & np.isfinite(A)))
            if bad:
                raise CorruptCheckpointError(
                    f"{quote(one.name)} holds {bad} values of {A.size} that are not"
                    " negative, and is -exp(A_log)",
                    hint="the weights are damaged, or exp(A_log) underflowed in fp32",
                )
            with np.errstate(invalid="ignore"):  # NaN is told by who asked
                return np.log(-A)

        return Made(found.shape, make)

    return change


def less_one(sources: Sequence[Source]) -> Made:
    """The weight of a norm that multiplies by 1 + weight; the file holds the sum."""
    (one,) = sources
    return Made(one.shape, lambda arrays: arrays[0].astype(np.float64) - 1.0)


def halves_apart(heads: int, turning: int) -> Change:
    """Rows of queries or keys in pairs that turn together, (0, 1), (2, 3), ..., back to
    two halves, as transformers has them: (0, turning/2), (1, turning/2 + 1), ...

    **Arguments:**

    - `turning`: rows of a head that turn, from its first on; the others stay.

    **Raises:** `CorruptCheckpointError` where the rows are not so many heads.
    """

    def change(sources: Sequence[Source]) -> Made:
        (one,) = sources
        size, rest = divmod(one.shape[0], heads)
        if rest or turning > size or turning % 2:
            raise CorruptCheckpointError(
                f"{quote(one.name)} has {one.shape[0]} rows, which are no {heads} heads"
                f" of which {turning} rows turn",
                hint="take metadata and weights from the same file",
            )
        own = [*range(0, turning, 2), *range(1, turning, 2), *range(turning, size)]
        order = (size * np.arange(heads)[:, None] + np.asarray(own)).reshape(-1)
        return Made(one.shape, lambda arrays: arrays[0][order])

    return change


def joined(axis: int) -> Change:
    """Several tensors one behind another."""

    def change(sources: Sequence[Source]) -> Made:
        shapes = {one.shape[:axis] + one.shape[axis + 1 :] for one in sources}
        if len(shapes) > 1 or any(len(one.shape) <= axis for one in sources):
            told = ", ".join(f"{quote(one.name)} {one.shape}" for one in sources)
            raise CorruptCheckpointError(
                f"tensors that do not fit together: {told}",
                hint="take all weights from the same file",
            )
        first = sources[0].shape
        whole = sum(one.shape[axis] for one in sources)
        shape = (*first[:axis], whole, *first[axis + 1 :])
        return Made(shape, lambda arrays: _joined(arrays, axis))

    return change


def _joined(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    if len({one.dtype for one in arrays}) > 1:
        # fp16 and bf16 have no smaller type in common
        arrays = [one.astype(np.float64) for one in arrays]
    return np.concatenate(arrays, axis)


def taken(start: int, stop: int) -> Change:
    """Some rows of a tensor that holds several."""

    def change(sources: Sequence[Source]) -> Made:
        (one,) = sources
        shape = (max(0, min(stop, one.shape[0]) - start), *one.shape[1:])
        return Made(shape, lambda arrays: arrays[0][start:stop])

    return change


def by_key_heads(key_heads: int, key_dim: int, each: int, value_dim: int) -> Change:
    """Queries, keys and values in one tensor and gates in another, as transformers has
    Qwen3-Next's: of every key head its queries, keys, and what its value heads have.

    **Arguments:**

    - `each`: value heads of a key head.
    """
    sizes = (key_dim, key_dim, each * value_dim, each * value_dim)
    places = np.cumsum((0, *(key_heads * size for size in sizes)))

    def change(sources: Sequence[Source]) -> Made:
        both = joined(0)(sources)
        if both.shape[0] != places[-1]:
            raise CorruptCheckpointError(
                f"{quote(sources[0].name)} and {quote(sources[1].name)} have"
                f" {both.shape[0]} rows; the metadata ask for {places[-1]}",
                hint="take metadata and weights from the same file",
            )
        columns = both.shape[1:]

        def make(arrays: Sequence[np.ndarray]) -> np.ndarray:
            rows = both.make(arrays)
            parts = [
                rows[begin:end].reshape(key_heads, size, *columns)
                for begin, end, size in zip(places, places[1:], sizes, strict=False)
            ]
            return np.concatenate(parts, 1).reshape(-1, *columns)

        return Made(both.shape, make)

    return change
