"""LoRA adapters as PEFT saves them, merged into a base while it is read.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors` (or
`.bin`). For a projection W the merged weight is W + s B A with
s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora (Hu et al. 2021, arXiv
2106.09685; Kalajdzievski 2023, arXiv 2312.03732). Merging is done in fp64 and rounded
nowhere. Kinds of adapter whose merged weights are something else are refused.
"""

import os
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
from ._adapter_settings import (
    ADAPTER_CONFIG,
    MERGE,
    not_merged,
    refuse_other_kinds,
    scaling,
)
from ._checkpoint import file_hashes
from ._network import NetworkLayout, finite, shapes_of
from .files._file_formats import read_tensors
from .files._files import MAX_CONFIG_BYTES, listing, quote, read_json_object
from .files._locate import WEIGHTS
from .files._tensors import WEIGHT_DTYPES, StoredTensor


ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_PREFIX = "base_model.model."
# of the module that holds the layers: adapters and checkpoints may differ in it
_ROOTS = ("backbone.", "model.", "gpt_neox.", "transformer.")
_RELEASED = (
    (".forget_gate.", "."),
    (".self_attn.", ".attention."),
    (".attention.o_proj.", ".attention.dense."),
    (".mlp.", ".block_sparse_moe."),
)
"""What transformers calls a module, and what saved files of Kimi Linear and Ling do."""
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
    """What an adapter does to one stored tensor: replace it, then add s B A."""

    replacement: StoredTensor | None = None
    A: StoredTensor | None = None
    B: StoredTensor | None = None
    scaling: float = 1.0
    addition: StoredTensor | None = None
    """A bias of the low-rank part, added s times."""

    def is_zero(self) -> bool:
        """Whether it adds nothing: a factor of zeros, as lora_B before training."""
        if self.replacement is not None:
            return False
        if self.addition is not None and self.scaling and _read(self.addition).any():
            return False
        if self.A is None or self.B is None:
            return True
        return not (self.scaling and _read(self.B).any() and _read(self.A).any())


@dataclass(frozen=True, eq=False)
class AdaptedLayout(NetworkLayout):
    """A base with an adapter merged in: W + s B A in fp64, a tensor at a time.

    A tied head stays what the base has where the adapter changes the embedding alone,
    and the other way round, as in a model that is served with its adapter.

    **Arguments:**

    - `updates`: by stored name; "head" is the head, where it is the embedding.
    """

    updates: dict[str, _Update] = field(repr=False, default_factory=dict)

    def embedding(self, rows) -> np.ndarray:
        """Rows of the embedding."""
        name, rows = self.names.embedding, np.asarray(rows)
        update = self.updates.get(name)
        if update is None:
            return super().embedding(rows)
        found = self._begun(name, update, rows)
        if update.A is not None and update.B is not None:
            # (r, vocab) and (d_model, r): of the transposed matrix
            columns = np.moveaxis(_read(update.A)[:, rows], 0, -1)
            found = found + update.scaling * (columns @ _read(update.B).T)
        return found

    def head(self, start: int, stop: int) -> np.ndarray:
        """Rows of the head."""
        name = self.names.head
        update = self.updates.get("head" if name == self.names.embedding else name)
        if update is None:
            return super().head(start, stop)
        rows = np.arange(start, stop)
        found = self._begun(name, update, rows)
        if update.A is not None and update.B is not None:
            found = found + update.scaling * (_read(update.B, rows) @ _read(update.A))
        return found

    def stored(self, name: str) -> np.ndarray:
        """A tensor of the base with what the adapter makes of it."""
        update = self.updates.get(name)
        if update is None:
            return super().stored(name)
        found = self._begun(name, update)
        if update.A is not None and update.B is not None:
            found = found + update.scaling * (_read(update.B) @ _read(update.A))
        if update.addition is not None:
            found = found + update.scaling * _read(update.addition)
        return found

    def _begun(
        self, name: str, update: _Update, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """The base's tensor, or what replaces it, in fp64; or some rows of it."""
        if update.replacement is not None:
            return _read(update.replacement, rows)
        if rows is None:
            return super().stored(name).astype(np.float64)
        return super().stored_rows(name, rows).astype(np.float64)


def _read(tensor: StoredTensor, rows: np.ndarray | None = None) -> np.ndarray:
    array = tensor.read() if rows is None else tensor.read_rows(rows)
    return finite(array, "a tensor of the adapter").astype(np.float64)


def adapted(base: NetworkLayout, adapter: Adapter) -> AdaptedLayout:
    """Merge an adapter into a base as it is read.

    **Raises:** `UsageError` where it was made for another base: names that the base
    does not have, or shapes that do not fit.
    """
    if isinstance(base, AdaptedLayout):
        raise UsageError(
            "the base has an adapter merged in already",
            hint=f"give the base alone; {MERGE}",
        )
    head = {"head": (base.config.padded_vocab_size, base.config.d_model)}
    shapes = shapes_of(base.config, base.names, base.parts) | head
    short = {_without_root(name): name for name in shapes}
    updates: dict[str, _Update] = {}
    modules: dict[str, str] = {}
    strangers = []
    for name, tensor in adapter.tensors.items():
        stored, role, module = _parse(name)
        place = next((short[x] for x in _spellings(stored) if x in short), None)
        if place is None and stored == "lm_head.weight":
            place = "head"
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
        embedding = place == base.names.embedding
        module = modules.get(place, place)
        _check(update, shapes[place], module, adapter, transposed=embedding)
    return base.read_by(AdaptedLayout, updates=updates)


def _other_base(adapter: Adapter) -> str:
    named = adapter.settings.get("base_model_name_or_path")
    return f"it was made for {quote(named)}" if named else "was it made for this base?"


def _without_root(stored: str) -> str:
    """A name below the module that holds the layers, in one spelling."""
    for root in _ROOTS:
        stored = stored.removeprefix(root)
    return "embeddings.weight" if stored == "embedding.weight" else stored


def _spellings(stored: str) -> list[str]:
    """A name as a module has it, and as released files do."""
    found = [stored]
    for of_module, released in _RELEASED:
        found += [x.replace(of_module, released) for x in found if of_module in x]
    return found


def _parse(name: str):
    """Stored name below the root, role of the tensor, and module of one's name."""
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
    return _without_root(stored), role, module


def adapted_module(name: str) -> str:
    """The module of the base that a tensor of an adapter belongs to, in one spelling
    of the module that holds the layers."""
    stored, _, _ = _parse(name)
    return stored.removesuffix(".weight").removesuffix(".bias")


def _check(
    update: _Update,
    shape: tuple[int, ...],
    module: str,
    adapter: Adapter,
    transposed: bool,
) -> None:
    """Hold the tensors of one parameter to the base's shape and to the settings."""
    what = quote(module)
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
        raise not_merged(f"LoRA on {what}, which is no linear layer, is not covered")
    rank, update.scaling = scaling(adapter.settings, module)
    rows, columns = shape[::-1] if transposed else shape
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
