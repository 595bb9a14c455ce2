"""Weight sets to hold against a base: rounded weights, a checkpoint, an adapter."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._errors import UsageError
from ._load import load
from ._same_network import differences
from ._weight_groups import RoundedGroup, rounded_group
from .formats import format_named
from .models import Model
from .models.held import rounded


@dataclass(frozen=True)
class ParameterChange:
    """A weight set to hold against a base.

    **Arguments:**

    - `name`: for the report. `kind`: `checkpoint`, `adapter` or `rounding`.
    - `model`: the network with the changed weights.
    """

    name: str
    kind: str
    model: Model = field(repr=False)
    files: list[dict[str, str]] = field(default_factory=list, repr=False)
    adapted: tuple[str, ...] = ()
    """Stored names of the weights that an adapter changes."""


class _RoundedLayout:
    """A model's layout whose parameters of a group are rounded to a format."""

    def __init__(self, base: Any, group: RoundedGroup):
        self._base = base
        self._group = group
        self._format = format_named(group.format)
        self.architecture = base.architecture
        self.config = base.config
        self.dtype = base.dtype
        self.n_params = base.n_params
        self.n_blocks = base.n_blocks
        self.modules = base.modules

    def _round(self, name: str, array: np.ndarray, where: str = "") -> np.ndarray:
        if not self._group.has(name):
            return array
        found = rounded(array, self._format)
        if not np.all(np.isfinite(found)):
            raise UsageError(
                f"{name}{where} holds {np.max(np.abs(array.astype(np.float64))):.4g}, "
                f"beyond {self._format.largest:g}, the largest number of "
                f"{self._format.name}",
                hint="round another group, or to bf16",
            )
        return found

    def layer(self, i: int) -> dict[str, np.ndarray]:
        """Parameters of one layer."""
        return {
            name: self._round(name, array, f" of layer {i}")
            for name, array in self._base.layer(i).items()
        }

    def embedding(self, rows) -> np.ndarray:
        """Rows of the embedding."""
        return self._round("embedding", self._base.embedding(rows))

    def final_norm(self) -> np.ndarray | None:
        """Weight of the norm in front of the head, if it has one."""
        return self._round_norm(self._base.final_norm())

    def final_norm_bias(self) -> np.ndarray | None:
        """Its bias, if it has one."""
        return self._round_norm(self._base.final_norm_bias())

    def _round_norm(self, array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else self._round("norm_f", array)

    def head(self, start: int, stop: int) -> np.ndarray:
        """Rows of the head."""
        return self._round("head", self._base.head(start, stop))


def rounded_weights(model: Model, group: str) -> ParameterChange:
    """The model's own weights, some of them rounded to a format.

    **Arguments:**

    - `group`: FORMAT or FORMAT:GROUP, as `bf16` or `fp8_e4m3:A_log`; formats and
      groups are those of `_weight_groups`. A value beyond the format's largest is
      refused when it is read.
    """
    wanted = rounded_group(group)
    layout = _RoundedLayout(model.layout, wanted)
    return ParameterChange(str(wanted), "rounding", Model(layout, model.source))


def other_weights(model: Model, source: str | os.PathLike) -> ParameterChange:
    """Another checkpoint of the model's architecture, or a LoRA adapter of it.

    **Arguments:**

    - `source`: what `load` takes, or a folder with `adapter_config.json`.

    **Raises:** `UsageError` where the other is of another architecture or of other
    sizes, or the adapter of another base; `CheckpointError` where it cannot be read.
    """
    from .checkpoints._adapter import adapted, is_adapter, open_adapter

    name = os.fsdecode(os.fspath(source))
    if is_adapter(source):
        layout = model.layout
        if model.checkpoint is None:
            raise UsageError(
                "an adapter needs a base that was read from a checkpoint",
                hint="give what `load` returns",
            )
        adapter = open_adapter(source)
        merged = adapted(layout, adapter)  # type: ignore[arg-type]
        return ParameterChange(
            name,
            "adapter",
            Model(merged, name),
            adapter.hashes(),
            tuple(
                stored for stored, one in merged.updates.items() if one.A is not None
            ),
        )
    other = load(source)
    apart = differences(other.layout, model.layout)  # type: ignore[arg-type]
    if apart:
        theirs, ours = other.layout.architecture, model.layout.architecture
        families = f" ({theirs} and {ours})" if theirs != ours else ""
        raise UsageError(
            f"{name} and the base are not two weight sets of one network{families}: "
            + "; ".join(apart),
            hint="give a checkpoint that was trained or converted from the base",
        )
    # one function: settings of running it are the base's, as its compiled form is
    other.config = model.config
    files = [] if other.checkpoint is None else other.checkpoint.hashes()
    return ParameterChange(name, "checkpoint", other, files)


def chosen_changes(
    model: Model, against: str | os.PathLike | None, round_weights: Sequence[str]
) -> list[ParameterChange]:
    """What `--against` and `--round-weights` ask for."""
    changes = [] if against is None else [other_weights(model, against)]
    return changes + [rounded_weights(model, group) for group in round_weights]
