"""A language model's tensors: which parameter of which sublayer lies where.

Every family is a table: the sizes of its sublayers, and for each the stored name and
shape of its parameters. Holding the table to the checkpoint and reading from it is the
same for all.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from .._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ._checkpoint import Checkpoint
from ._modules import module_of
from ._parts import Part, TopNames
from .files._files import disagreeing, listing, quote
from .files._tensors import DTYPES, WEIGHT_DTYPES
from .quantised._tensor import coded


_CHUNK_ROWS = 4096

Kind = TypeVar("Kind", bound="NetworkLayout")


@dataclass(frozen=True, eq=False)
class NetworkLayout:
    """Hold a recognised model; each of its arrays is read when it is asked for.

    Every array comes in its stored type, what is stored as codes in fp64, and is
    refused where it holds a value that is not finite.

    **Arguments:**

    - `checkpoint`: where the tensors lie.
    - `config`: sizes and switches.
    - `dtype`: the type that most weights are stored in, in words; of a quantised model
      what most of its quantised ones are stored as.
    - `plain_dtype`: the type that most weights are stored in which are not quantised.
    - `weight_bytes`: what all weights take in their files.
    - `n_params`: number of parameters; a tied head and a shared block count once.
    - `parts`: for each sublayer its parameters by canonical name.
    - `n_blocks`: layers as the checkpoint counts them; one may hold several sublayers.
    """

    checkpoint: Checkpoint = field(repr=False)
    architecture: str
    config: Any
    dtype: str
    n_params: int
    names: TopNames = field(repr=False)
    parts: tuple[dict[str, Part], ...] = field(repr=False)
    n_blocks: int
    plain_dtype: str
    weight_bytes: int

    @property
    def modules(self) -> tuple[str, ...]:
        """Name each sublayer's module, as `model.layers.1.mamba`."""
        root = self.checkpoint.root
        return tuple(f"{root}{module_of(parts)}" for parts in self.parts)

    @property
    def has_head(self) -> bool:
        """Tell whether there are logits: not in a live model that was given without."""
        return self.checkpoint.tensors[self.names.head].size > 0

    def read_by(self, kind: type[Kind], **more: Any) -> Kind:
        """Take the same network as a layout that reads it otherwise.

        **Arguments:**

        - `more`: the fields that such a layout has beside these.
        """
        own = {one.name: getattr(self, one.name) for one in fields(NetworkLayout)}
        return kind(**own, **more)

    def layer(self, i: int) -> dict[str, np.ndarray]:
        """Read the parameters of one sublayer under their canonical names.

        They are the fields of the parameters of the sublayer's flow (`sublayers`), with
        (channels, taps) for a convolution, the oldest tap first.

        **Arguments:**

        - `i`: 0 to the number of sublayers less 1.
        """
        if not 0 <= i < len(self.parts):
            raise IndexError(f"layer {i} of a model of {len(self.parts)} layers")
        stored = each_once(self.parts[i], self.stored)
        return {key: part.read(stored) for key, part in self.parts[i].items()}

    def embedding(self, rows) -> np.ndarray:
        """Read rows of the embedding: integers (n) to (n, d_model)."""
        return self.stored_rows(self.names.embedding, np.asarray(rows))

    def embedding_norm(self) -> np.ndarray | None:
        """Read the weight of the norm of the embedding, (d_model), if it has one."""
        return self._read(self.names.embedding_norm)

    def embedding_norm_bias(self) -> np.ndarray | None:
        """Read its bias, (d_model), if it has one."""
        return self._read(self.names.embedding_norm_bias)

    def final_norm(self) -> np.ndarray | None:
        """Read the weight of the norm before the head, (d_model), if it has one."""
        return self._read(self.names.final_norm)

    def final_norm_bias(self) -> np.ndarray | None:
        """Read its bias, (d_model), if it has one."""
        return self._read(self.names.final_norm_bias)

    def _read(self, name: str | None) -> np.ndarray | None:
        return None if name is None else self.stored(name)

    def head(self, start: int, stop: int) -> np.ndarray:
        """Read rows of the head, (stop - start, d_model); of the embedding when
        tied."""
        return self.stored_rows(self.names.head, start, stop)

    def stored(self, name: str) -> np.ndarray:
        """Read a tensor by its stored name, as it is stored."""
        return finite(self.checkpoint.read(name), name)

    def stored_rows(self, name: str, start, stop: int | None = None) -> np.ndarray:
        """Read rows of a tensor by its stored name, as `Checkpoint.read_rows` does."""
        return finite(self.checkpoint.read_rows(name, start, stop), name)


def each_once(
    parts: Mapping[str, Part], stored: Callable[[str], np.ndarray]
) -> Callable[[str], np.ndarray]:
    """Read by name what holds several of these parameters, as gate and up, once for all
    of them."""
    shared = Counter(name for part in parts.values() for name in part.names)
    once = functools.cache(stored)
    return lambda name: once(name) if shared[name] > 1 else stored(name)


def recognise_network(
    checkpoint: Checkpoint,
    architecture: str,
    config: Any,
    names: TopNames,
    parts: Sequence[dict[str, Part]],
    ignored: Sequence[str] = (),
    layers: int | None = None,
) -> NetworkLayout:
    """Hold the tensors to the table, by name, shape and type.

    **Arguments:**

    - `ignored`: stored names that the model has no use for, and that are no error.
    - `layers`: how many config.json counts, where that is not the number of sublayers.

    **Raises:** `CorruptCheckpointError` where they disagree,
    `UnsupportedCheckpointError` for quantised weights.
    """
    for sublayer in parts:
        for part in sublayer.values():
            for name in part.names:
                if name not in checkpoint.tensors:
                    _missing(checkpoint, name, layers or len(parts))
    expected = shapes_of(config, names, parts)
    for name, shape in expected.items():
        found = checkpoint.shape(name)
        if found != shape:
            raise disagreeing(
                f"{quote(name)} has shape {found}; config.json asks for {shape}"
            )
        quantised = coded(checkpoint.tensor(name))
        if quantised is None and checkpoint.dtype(name) not in WEIGHT_DTYPES:
            raise UnsupportedCheckpointError(
                f"{quote(name)} is stored as {checkpoint.dtype(name)}, without scales:"
                " quantised weights of no layout that is covered",
                hint="check the checkpoint that it was quantised from",
            )
    _no_strangers(checkpoint, config, names, {*expected, *ignored})
    _check_tie(checkpoint, config, names)
    plain: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    taken = 0
    for tensor in {checkpoint.tensor(name) for name in expected}:
        if (quantised := coded(tensor)) is not None:
            codes[tensor.dtype] += tensor.size
            taken += quantised.stored_bytes
        else:
            plain[tensor.dtype] += tensor.size
            taken += tensor.size * DTYPES[tensor.dtype].itemsize
    most = (plain or codes).most_common(1)[0][0]
    return NetworkLayout(
        checkpoint,
        architecture,
        config,
        codes.most_common(1)[0][0] if codes else most,
        plain.total() + codes.total(),
        names,
        tuple(parts),
        len(parts) if layers is None else layers,
        most,
        taken,
    )


def shapes_of(
    config: Any, names: TopNames, parts: Sequence[dict[str, Part]]
) -> dict[str, tuple[int, ...]]:
    """Stored name and shape of every tensor that a network uses."""
    expected: dict[str, tuple[int, ...]] = {
        names.embedding: (config.padded_vocab_size, config.d_model),
        names.head: (config.padded_vocab_size, config.d_model),
    }
    for name in names.norms:
        if name is not None:
            expected[name] = (config.d_model,)
    for sublayer in parts:
        for part in sublayer.values():
            expected |= part.shapes
    return expected


def _missing(checkpoint: Checkpoint, name: str, sublayers: int) -> None:
    before, found, _ = name.partition("layers.")
    prefix = before + found
    indices = {
        n.removeprefix(prefix).split(".")[0]
        for n in checkpoint.tensors
        if n.startswith(prefix)
    }
    raise disagreeing(
        f"no tensor {quote(name)}: config.json asks for {sublayers} layers,"
        f" the weights hold tensors of {len(indices)}"
    )


def _no_strangers(
    checkpoint: Checkpoint, config: Any, names: TopNames, expected: set[str]
) -> None:
    """Refuse tensors that the model would have to use and that nobody expects."""
    tied_head = {"lm_head.weight"} if config.tie_embeddings else set()
    strangers = [
        name
        for name in checkpoint.tensors
        if name.startswith((*names.inside, "lm_head.")) and name not in expected
        if name not in tied_head
    ]
    if strangers:
        raise disagreeing(
            f"{len(strangers)} tensors that config.json leaves no place for:"
            f" {listing(strangers)}"
        )


def _check_tie(checkpoint: Checkpoint, config: Any, names: TopNames) -> None:
    if not config.tie_embeddings or "lm_head.weight" not in checkpoint.tensors:
        return
    head = checkpoint.tensor("lm_head.weight")
    embedding = checkpoint.tensor(names.embedding)
    same = head == embedding  # the same bytes of the same file
    if not same and (head.shape, head.dtype) == (embedding.shape, embedding.dtype):
        same = all(
            head.read_rows(i, min(i + _CHUNK_ROWS, head.shape[0])).tobytes()
            == embedding.read_rows(i, min(i + _CHUNK_ROWS, head.shape[0])).tobytes()
            for i in range(0, head.shape[0], _CHUNK_ROWS)
        )
    if not same:
        raise CorruptCheckpointError(
            "config.json says that the head is the embedding;"
            f" lm_head.weight and {names.embedding} differ",
            hint="for a head of its own, set tie_word_embeddings (transformers)"
            " or tie_embeddings (mamba_ssm) to false in config.json",
        )


def finite(array: np.ndarray, name: str) -> np.ndarray:
    """The array itself; a `CorruptCheckpointError` where it holds NaN or inf."""
    sound = np.isfinite(array)
    if sound.all():
        return array
    bad = array.size - int(np.count_nonzero(sound))
    nan = int(np.count_nonzero(np.isnan(array)))
    raise CorruptCheckpointError(
        f"{quote(name)} holds {nan} NaN and {bad - nan} infinite values"
        f" among {array.size}",
        hint="the weights are damaged, or training diverged: take an earlier save",
    )
