"""The tensors of a checkpoint, of which a layout takes those that are its own."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ..files._files import quote
from ..files._tensors import StoredTensor
from ._tensor import Grid, QuantisedTensor, sound_scales


FLOATS = ("fp32", "bf16", "fp16")
"""Types of scales."""
SAME_PLACE = "take weights and configuration from the same place"
ACTIVATIONS = ("input_scale", "input_global_scale", "input_zero_point", "input_amax")
_CACHE = (
    *("k_scale", "v_scale", "kv_scale", "q_scale", "prob_scale"),
    *("k_zero_point", "v_zero_point", "output_scale"),
    *("k_bmm_quantizer._amax", "v_bmm_quantizer._amax"),
)


class Note(NamedTuple):
    """Something that is to be said of a quantised checkpoint."""

    text: str
    hint: bool = False
    """Whether it is no sign that anything is wrong."""


@dataclass
class Taken:
    """Hold what is stored, what was made of it, and what is left.

    **Arguments:**

    - `stored`: every tensor of the files, by name.
    - `method`: the layout's name in the report.
    """

    stored: dict[str, StoredTensor]
    method: str
    made: dict[str, QuantisedTensor] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)
    scales: dict[str, StoredTensor] = field(default_factory=dict)
    """Of activations, beside matrices that were made; read by whoever follows them."""
    cache_scales: int = 0
    """Scales of a key-value cache, which nobody reads here."""

    def modules(self, suffix: str) -> Iterator[str]:
        """Name what has a tensor of that suffix, as `model.layers.0.mixer.in_proj`."""
        for name in list(self.stored):
            if name.endswith(f".{suffix}") and name not in self.used:
                yield name.removesuffix(f".{suffix}")

    def has(self, name: str) -> bool:
        """Tell whether there is such a tensor."""
        return name in self.stored

    def take(
        self, name: str, dtypes: Sequence[str], beside: str, axes: Sequence[int] = ()
    ) -> StoredTensor:
        """Take a tensor that the one `beside` needs, of one of these types.

        **Raises:** `CorruptCheckpointError` where it is missing or of another type.
        """
        if name not in self.stored:
            raise CorruptCheckpointError(
                f"no tensor {quote(name)} beside {quote(beside)}, which needs it"
                f" ({self.method})",
                hint=f"{SAME_PLACE}; is the download whole?",
            )
        found = self.stored[name]
        if found.dtype not in dtypes:
            raise CorruptCheckpointError(
                f"{quote(name)} is stored as {found.dtype}; the layout"
                f" ({self.method}) has {' or '.join(dtypes)} there",
                hint=f"is it another layout's? {SAME_PLACE}",
            )
        if axes and len(found.shape) not in axes:
            raise UnsupportedCheckpointError(
                f"{quote(name)} has {len(found.shape)} axes ({found.shape}); of"
                f" {self.method} matrices are covered, one a tensor",
                hint="check the checkpoint that it was quantised from",
            )
        self.used.add(name)
        return found

    def grid(
        self,
        name: str,
        tensor: StoredTensor,
        shape: tuple[int, int],
        *,
        block: tuple[int, int] | None = None,
        zero: bool = False,
    ) -> Grid:
        """Scales as a grid over a matrix, of which the shape of the scales tells the
        blocks; or in blocks of that size.

        **Raises:** `CorruptCheckpointError` where the shapes do not fit.
        """
        rows, columns = self.block_of(name, tensor.shape, shape, block)
        across = -(-shape[1] // columns)

        def read(first: int, last: int) -> np.ndarray:
            return sound_scales(_rows(tensor, across, first, last), name, zero=zero)

        return Grid(read, rows, columns)

    def block_of(
        self,
        name: str,
        scales: tuple[int, ...],
        shape: tuple[int, int],
        block: tuple[int, int] | None = None,
    ) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        n, k = shape
        if block is None:
            if math.prod(scales) == 1:
                return max(n, 1), max(k, 1)
            across = scales[1] if len(scales) == 2 else 1
            fits = len(scales) in (1, 2) and scales[:1] == (n,)
            if fits and across and not k % across:
                return 1, k // across
            wanted = f"({n}, number of groups), and the groups divide {k} columns"
        else:
            down, across = (-(-a // b) for a, b in zip(shape, block, strict=True))
            alone = math.prod(scales) == down * across == 1
            if alone or scales in ((down, across), (down, 1, across, 1)):
                return block
            wanted = f"({down}, {across}) for blocks of {block[0]} x {block[1]}"
        raise CorruptCheckpointError(
            f"{quote(name)} has shape {scales} beside a matrix of {shape}; it should"
            f" be {wanted}",
            hint=f"the last group would be short, or it is another matrix's:"
            f" {SAME_PLACE}",
        )

    def give(self, tensor: QuantisedTensor) -> None:
        """Put a matrix in the place of what it was made of; what stands beside it for
        activations and caches is taken as well.

        **Raises:** `CorruptCheckpointError` where there is one of that name already.
        """
        module = tensor.name.removesuffix(".weight")
        if tensor.name in self.made or (
            tensor.name in self.stored and tensor.name not in self.used
        ):
            raise CorruptCheckpointError(
                f"{quote(tensor.name)} is stored twice, plain and as codes",
                hint=SAME_PLACE,
            )
        self.made[tensor.name] = tensor
        beside = (f"{module}.{name}" for name in ACTIVATIONS)
        self.scales |= {name: self.stored[name] for name in beside if self.has(name)}
        self.used |= self.scales.keys()

    def left(self) -> dict[str, Any]:
        """What a model's table looks at: matrices that were made, and plain tensors."""
        for name in self.stored:
            if name.endswith(tuple(f".{one}" for one in _CACHE)):
                self.used.add(name)
                self.cache_scales += 1
        plain = {n: t for n, t in self.stored.items() if n not in self.used}
        return plain | self.made


def _rows(tensor: StoredTensor, across: int, first: int, last: int) -> np.ndarray:
    """Rows of a grid, whichever axes of length 1 it is stored with."""
    if tensor.size == across or not tensor.shape:
        return tensor.read().reshape(1, across)
    return tensor.read_rows(first, last).reshape(last - first, across)


def scaling_words(block: tuple[int, int], shape: tuple[int, int]) -> str:
    """Which weights share a scale, in words; blocks of all rows and columns are the
    whole tensor."""
    rows, columns = block
    if block == shape:
        return "one scale a tensor"
    if rows == 1:
        return "one scale a row" if columns == shape[1] else f"groups of {columns}"
    return f"blocks of {rows} x {columns}"
