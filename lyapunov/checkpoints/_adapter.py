"""LoRA adapters as PEFT saves them, merged into a base while it is read.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors` (or
`.bin`). For a projection W the merged weight is W + s B A with
s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora (Hu et al. 2021, arXiv
2106.09685; Kalajdzievski 2023, arXiv 2312.03732). Merging is done in fp64 and rounded
nowhere. Kinds of adapter whose merged weights are something else are refused.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
    UsageError,
)
from ..models.config import Mamba1Config
from ._adapter_settings import (
    ADAPTER_CONFIG,
    MERGE,
    refuse_other_kinds,
    scaling,
)
from ._checkpoint import file_hashes
from ._files import MAX_CONFIG_BYTES, listing, quote, read_json_object
from ._kinds import read_tensors
from ._locate import WEIGHTS
from ._mamba1 import Mamba1Layout, finite, layer_tensors
from ._tensors import WEIGHT_DTYPES, StoredTensor


ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_PREFIX = "base_model.model."
_ROLES = (
    (".lora_A.weight", "A"),
    (".lora_B.weight", "B"),
    (".lora_B.bias", "bias"),
    (".lora_embedding_A", "A"),
    (".lora_embedding_B", "B"),
)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An opened adapter: its settings and its tensors, each read when asked for."""

    source: str
    settings: dict[str, Any] = field(repr=False)
    tensors: dict[str, StoredTensor] = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)

    def hashes(self) -> list[dict[str, str]]:
        """`name` and `sha256` of each file; reads them whole."""
        return file_hashes(self.files)


def is_adapter(source: object) -> bool:
    """Whether a path is a folder with an adapter and without a model's weights."""
    if not isinstance(source, str | os.PathLike):
        return False
    folder = Path(os.fsdecode(os.fspath(source))).expanduser()
    whole = [name + end for name in WEIGHTS for end in ("", ".index.json")]
    try:
        return (folder / ADAPTER_CONFIG).is_file() and not any(
            (folder / name).exists() for name in whole
        )
    except (OSError, ValueError):
        return False


def open_adapter(source: str | os.PathLike) -> Adapter:
    """Open an adapter folder; only settings, names and shapes are read.

    **Raises:** `UnsupportedCheckpointError` for an adapter that is not plain LoRA,
    `CheckpointNotFoundError` and `CorruptCheckpointError` for one that is incomplete
    or disagrees with itself.
    """
    text = os.fsdecode(os.fspath(source))
    folder = Path(text).expanduser()
    settings = read_json_object(folder / ADAPTER_CONFIG, MAX_CONFIG_BYTES)
    refuse_other_kinds(settings)
    for name in ADAPTER_WEIGHTS:
        if os.path.lexists(folder / name):
            weights = folder / name
            break
    else:
        raise CheckpointNotFoundError(
            f"no {ADAPTER_WEIGHTS[0]} in {quote(text, 200)}",
            hint="download the adapter again",
        )
    tensors = read_tensors(weights)
    if not tensors:
        raise CorruptCheckpointError(
            f"{quote(weights, 200)} holds no tensors", hint="save the adapter again"
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHT_DTYPES:
            raise UnsupportedCheckpointError(
                f"{quote(name)} of the adapter is stored as {tensor.dtype}",
                hint="store it as fp32, bf16 or fp16",
            )
    return Adapter(text, settings, tensors, (folder / ADAPTER_CONFIG, weights))


@dataclass
class _Update:
    """What an adapter does to one parameter: replace it, then add s B A."""

    replacement: StoredTensor | None = None
    A: StoredTensor | None = None
    B: StoredTensor | None = None
    scaling: float = 1.0
    addition: StoredTensor | None = None
    """A bias of the low-rank part, added s times."""


@dataclass(frozen=True, eq=False)
class AdaptedLayout:
    """A base with an adapter merged in: W + s B A in fp64, a layer at a time.

    A tied head stays what the base has where the adapter changes the embedding alone,
    and the other way round, as in a model that is served with its adapter.
    """

    base: Mamba1Layout
    adapter: Adapter
    updates: dict[tuple[int | None, str], _Update] = field(repr=False)

    @property
    def architecture(self) -> str:
        """Name of the family."""
        return self.base.architecture

    @property
    def config(self) -> Mamba1Config:
        """Sizes and switches."""
        return self.base.config

    @property
    def dtype(self) -> str:
        """The format of most weights."""
        return self.base.dtype

    @property
    def n_params(self) -> int:
        """Parameters of the base."""
        return self.base.n_params

    def layer(self, i: int) -> dict[str, np.ndarray]:
        """Parameters of one layer, as `Mamba1Layout.layer` names them."""
        arrays = self.base.layer(i)
        return {key: self._merged(i, key, array) for key, array in arrays.items()}

    def embedding(self, rows) -> np.ndarray:
        """Rows of the embedding."""
        rows = np.asarray(rows)
        update = self.updates.get((None, "embedding"))
        if update is None:
            return self.base.embedding(rows)
        if update.replacement is None:
            found = self.base.embedding(rows).astype(np.float64)
        else:
            found = _read(update.replacement, rows)
        if update.A is not None and update.B is not None:
            # (r, vocab) and (d_model, r): of the transposed matrix
            columns = np.moveaxis(_read(update.A)[:, rows], 0, -1)
            found = found + update.scaling * (columns @ _read(update.B).T)
        return found

    def final_norm(self) -> np.ndarray:
        """The weight of the norm before the head."""
        return self._merged(None, "final_norm", self.base.final_norm())

    def head(self, start: int, stop: int) -> np.ndarray:
        """Rows of the head."""
        update = self.updates.get((None, "head"))
        if update is None:
            return self.base.head(start, stop)
        rows = np.arange(start, stop)
        if update.replacement is None:
            found = self.base.head(start, stop).astype(np.float64)
        else:
            found = _read(update.replacement, rows)
        if update.A is not None and update.B is not None:
            found = found + update.scaling * (_read(update.B, rows) @ _read(update.A))
        return found

    def _merged(self, layer: int | None, key: str, array: np.ndarray) -> np.ndarray:
        update = self.updates.get((layer, key))
        if update is None:
            return array
        found = array.astype(np.float64)
        if update.replacement is not None:
            found = _read(update.replacement)
            found = found[:, 0, :] if key == "conv_weight" else found
        if update.A is not None and update.B is not None:
            found = found + update.scaling * (_read(update.B) @ _read(update.A))
        if update.addition is not None:
            found = found + update.scaling * _read(update.addition)
        return found


def _read(tensor: StoredTensor, rows: np.ndarray | None = None) -> np.ndarray:
    array = tensor.read() if rows is None else tensor.read_rows(rows)
    return finite(array, "a tensor of the adapter").astype(np.float64)


def adapted(base: Mamba1Layout, adapter: Adapter) -> AdaptedLayout:
    """Merge an adapter into a base as it is read.

    **Raises:** `UsageError` where it was made for another base: names that the base
    does not have, or shapes that do not fit.
    """
    shapes = _shapes(base.config)
    updates: dict[tuple[int | None, str], _Update] = {}
    modules: dict[tuple[int | None, str], str] = {}
    strangers = []
    for name, tensor in adapter.tensors.items():
        place, role, module = _parse(name, base.config)
        if place not in shapes:
            strangers.append(name)
            continue
        update = updates.setdefault(place, _Update())
        if role == "bias":
            update.addition = tensor
        elif role == "A":
            update.A = tensor
        elif role == "B":
            update.B = tensor
        else:
            update.replacement = tensor
        if role != "value":
            modules[place] = module
    if strangers:
        raise UsageError(
            f"the adapter changes {listing(sorted(strangers))}, which the base"
            " does not have",
            hint=_other_base(adapter),
        )
    for place, update in updates.items():
        _check(update, place, shapes[place], modules.get(place, ""), adapter)
    return AdaptedLayout(base, adapter, updates)


def _other_base(adapter: Adapter) -> str:
    named = adapter.settings.get("base_model_name_or_path")
    return f"it was made for {quote(named)}" if named else "was it made for this base?"


def _shapes(c: Mamba1Config) -> dict[tuple[int | None, str], tuple[int, ...]]:
    found: dict[tuple[int | None, str], tuple[int, ...]] = {
        (None, "embedding"): (c.padded_vocab_size, c.d_model),
        (None, "head"): (c.padded_vocab_size, c.d_model),
        (None, "final_norm"): (c.d_model,),
    }
    for i in range(c.n_layers):
        for key, (_, shape) in layer_tensors(c).items():
            found[i, key] = shape
    return found


def _parse(name: str, config: Mamba1Config):
    """Place of the parameter, role of the tensor and module that a name stands for."""
    module, role = name.removeprefix(_PREFIX), "value"
    for suffix, which in _ROLES:
        if module.endswith(suffix):
            module, role = module.removesuffix(suffix), which
            break
    stored = module if role == "value" else f"{module}.weight"
    if role == "bias":
        stored = f"{module}.bias"
    for wrapper in (".base_layer", ".modules_to_save"):
        stored = stored.replace(wrapper, "")
    return _place(stored.removeprefix("backbone."), config), role, module


def _place(stored: str, config: Mamba1Config) -> tuple[int | None, str] | None:
    top = {
        "embeddings.weight": "embedding",
        "embedding.weight": "embedding",
        "norm_f.weight": "final_norm",
        "lm_head.weight": "head",
    }
    if stored in top:
        return None, top[stored]
    match = re.fullmatch(r"layers\.(\d{1,9})\.(.+)", stored, re.ASCII)
    if match is None:
        return None
    for key, (suffix, _) in layer_tensors(config).items():
        if suffix == match[2]:
            return int(match[1]), key
    return None


def _check(
    update: _Update,
    place: tuple[int | None, str],
    shape: tuple[int, ...],
    module: str,
    adapter: Adapter,
) -> None:
    """Hold the tensors of one parameter to the base's shape and to the settings."""
    what = quote(module or place[1])
    for tensor in (update.replacement, update.addition):
        if tensor is not None and tensor.shape != shape:
            raise UsageError(
                f"the adapter's {what} has shape {tensor.shape}; the base's is {shape}",
                hint=_other_base(adapter),
            )
    if (update.A is None) != (update.B is None):
        lacking = "lora_B" if update.B is None else "lora_A"
        raise CorruptCheckpointError(
            f"the adapter has no {lacking} for {what}", hint="save the adapter again"
        )
    if update.A is None or update.B is None:
        update.scaling = (
            scaling(adapter.settings, module)[1] if update.addition else 1.0
        )
        return
    if len(update.A.shape) != 2 or len(update.B.shape) != 2:
        raise UnsupportedCheckpointError(
            f"LoRA on {what}, which is no linear layer, is not covered", hint=MERGE
        )
    rank, update.scaling = scaling(adapter.settings, module)
    rows, columns = shape[::-1] if place[1] == "embedding" else shape
    wanted = (rank, columns), (rows, rank)
    if (update.A.shape[1], update.B.shape[0]) != (columns, rows):
        raise UsageError(
            f"the adapter's {what} makes a change of shape"
            f" {(update.B.shape[0], update.A.shape[1])}; the base's is"
            f" {(rows, columns)}",
            hint=_other_base(adapter),
        )
    if (update.A.shape, update.B.shape) != wanted:
        raise CorruptCheckpointError(
            f"the adapter's {what} has rank {update.A.shape[0]} and"
            f" {update.B.shape[1]}; {ADAPTER_CONFIG} says {rank}",
            hint="take settings and weights from the same place",
        )
