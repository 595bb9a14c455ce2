"""Weight sets to hold against a base: rounded weights, a checkpoint, an adapter."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from .._errors import UsageError
from ..models import Model
from ..models._folded_layout import folded
from ..models._load import load
from ..models._rounded_layout import rounded_layout
from ..results._check import AdapterCoverage
from ..sublayers.groups import rounded_group
from ._adapter_coverage import adapter_coverage
from ._same_network import NOT_IN_GGUF, differences


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
    weight_format: str | None = None
    """What a rounding's format is, in words."""
    rounded: tuple[str, ...] = ()
    """Parameters that a rounding rounds, as `kind.parameter`."""
    kept: tuple[str, ...] = ()
    """Parameters that it leaves as they are."""
    coverage: AdapterCoverage | None = None
    """What an adapter reaches."""


def rounded_weights(model: Model, group: str) -> ParameterChange:
    """The model's own weights, some of them rounded to a format.

    **Arguments:**

    - `group`: FORMAT or FORMAT:GROUP, as `bf16` or `fp8_e4m3:in_proj`; formats are
      those of `formats`, groups those of `sublayers.groups`. Without a
      group it is every parameter; under a format with scales what quantisers round.

    **Raises:** `UsageError` for an unknown format or group, for a group that this
    network has not, and for vectors under a format with scales. A value beyond the
    format's largest is refused when it is read.
    """
    wanted = rounded_group(group)
    layout = rounded_layout(model.layout, wanted)
    return ParameterChange(
        str(wanted),
        "rounding",
        Model(layout, model.source),
        weight_format=layout.meaning,
        rounded=tuple(layout.rounded),
        kept=tuple(layout.kept),
    )


def other_weights(model: Model, source: str | os.PathLike) -> ParameterChange:
    """Another checkpoint of the model's architecture, or a LoRA adapter of it.

    **Arguments:**

    - `source`: what `load` takes, or a folder with `adapter_config.json`.

    **Raises:** `UsageError` where the other is of another architecture or of other
    sizes, or the adapter of another base; `CheckpointError` where it cannot be read.
    """
    from ..checkpoints._adapter import adapted, is_adapter, open_adapter

    name = os.fsdecode(os.fspath(source))
    if is_adapter(source):
        layout = model.layout
        if model.checkpoint is None:
            raise UsageError(
                "an adapter needs a base that was read from a checkpoint",
                hint="give what `load` returns",
            )
        adapter = open_adapter(source)
        merged = adapted(layout, adapter)
        return ParameterChange(
            name,
            "adapter",
            Model(merged, name),
            adapter.hashes(),
            tuple(
                stored for stored, one in merged.updates.items() if one.A is not None
            ),
            coverage=adapter_coverage(merged, adapter),
        )
    other, beside = load(source), []
    if _one_in_gguf(model, other):
        # multipliers in the one's weights are in the other's settings
        layout = folded(other.layout, model.config)
        other = Model(layout, other.source, other.checkpoint)
        apart = differences(layout, model.layout, in_fp32=True, beside=NOT_IN_GGUF)
        beside = [] if apart else differences(layout, model.layout, in_fp32=True)
    else:
        apart = differences(other.layout, model.layout)
    if apart:
        theirs, ours = other.layout.architecture, model.layout.architecture
        families = f" ({theirs} and {ours})" if theirs != ours else ""
        raise UsageError(
            f"{name} and the base are not two weight sets of one network{families}: "
            + "; ".join(apart),
            hint="give a checkpoint that was trained or converted from the base",
        )
    if beside:
        name = f"{name} (under the base's settings: {'; '.join(beside)})"
    # one function: settings of running it are the base's, as its compiled form is
    other.config = model.config
    files = [] if other.checkpoint is None else other.checkpoint.hashes()
    return ParameterChange(name, "checkpoint", other, files)


def _one_in_gguf(model: Model, other: Model) -> bool:
    """Whether one of two is llama.cpp's file, which may be of the other."""
    both = (model.checkpoint, other.checkpoint)
    return len({one is not None and one.is_gguf for one in both}) == 2


def chosen_changes(
    model: Model, against: str | os.PathLike | None, round_weights: Sequence[str]
) -> list[ParameterChange]:
    """What `--against` and `--round-weights` ask for."""
    changes = [] if against is None else [other_weights(model, against)]
    return changes + [rounded_weights(model, group) for group in round_weights]
