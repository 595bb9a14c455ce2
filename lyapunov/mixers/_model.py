"""One call of a block as a network of one sublayer, whose embedding is what it read."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..checkpoints import Checkpoint, NetworkLayout
from ..checkpoints._parts import Part, TopNames
from ..checkpoints.files._tensors import DTYPES, StoredTensor
from ..models import Model
from ..models._torch_modules import NoHead
from ..sublayers import NetworkConfig
from ._mixer import Mixer


_BLOCK, _READ, _NO_HEAD = "block", "what it read", "what comes after"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, eq=False)
class ArrayTensor:
    """An array in memory as a checkpoint's tensor.

    **Arguments:**

    - `dtype`: a key of `DTYPES`.
    """

    array: np.ndarray = field(repr=False)
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.array.shape

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self) -> np.ndarray:
        """The whole array."""
        return self.array

    def read_rows(self, start: Any, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` of axis 0, or the rows that an array names."""
        return self.array[start:stop] if stop is not None else self.array[start]


def tensor_of(array: np.ndarray) -> ArrayTensor:
    """The array under the name of its type."""
    return ArrayTensor(array, _NAMES[array.dtype.newbyteorder("=")])


def model_of_call(
    mixer: Mixer, read: np.ndarray, source: str
) -> tuple[Model, np.ndarray]:
    """Make a headless model of one block whose tokens are the rows that it read.

    **Arguments:**

    - `read`: (batch, seq, d_model).
    - `source`: what reports call it.

    **Returns:** the model, and its tokens, (batch, seq).
    """
    batch, seq, d_model = read.shape
    rows = tensor_of(np.ascontiguousarray(read.reshape(batch * seq, d_model)))
    weights = {f"{_BLOCK}.{name}": tensor_of(a) for name, a in mixer.weights.items()}
    tensors = {
        **weights,
        _READ: rows,
        _NO_HEAD: NoHead(rows.dtype, rows.shape, source),
    }
    config = NetworkConfig(
        vocab_size=batch * seq,
        padded_vocab_size=batch * seq,
        d_model=d_model,
        sublayers=(mixer.sizes,),
        tie_embeddings=False,
    )
    stored = Counter[str]()
    for one in weights.values():
        stored[one.dtype] += one.size
    most = stored.most_common(1)[0][0]
    layout = NetworkLayout(
        checkpoint=Checkpoint(
            source=source,
            revision=None,
            config={},
            files=(),
            folder=Path(),
            tensors=cast(dict[str, StoredTensor], tensors),
        ),
        architecture=mixer.kind,
        config=config,
        dtype=most,
        n_params=mixer.n_params,
        names=TopNames(_READ, None, _NO_HEAD, ()),
        parts=(
            {
                name.removeprefix(f"{_BLOCK}."): Part(name, one.shape)
                for name, one in weights.items()
            },
        ),
        n_blocks=1,
        plain_dtype=most,
        weight_bytes=sum(array.nbytes for array in mixer.weights.values()),
    )
    ids = np.arange(batch * seq, dtype=np.int64).reshape(batch, seq)
    return Model(layout, source), ids
