"""What ranking matrices would cost: time and memory, before it is run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._xla import compiles_lightly
from ..models import Model
from ..models._load import demand_head
from ..models._rounded_layout import rounded_layout
from ..models._tokens import Tokens
from ..models._weight_units import EveryMatrix
from ..sublayers.groups import rounded_group
from ._effort import Effort
from ._plan import (
    COMPILED_BYTES,
    FORWARDS,
    LIGHTLY,
    Compiling,
    Plan,
    Stage,
    first_of_each_kind,
)
from ._plan_calibration import calibration_size, head_seconds, sublayer_seconds
from ._plan_memory import BASE_BYTES, available_memory, memory_of
from ._rank_weights import MEASURED, PROBES
from ._request import device_named


BACK, ALONE = "way back", "single matrices"
A_PROBE, AROUND = 1.5, 5.0
"""fp64 forwards that a probe's way back takes, and what all of them share: the
reference, quantising, how far each matrix moved."""

RANKING = {
    "reference": Compiling(7, 11.0, 0.5),
    BACK: Compiling(5, 30.0, 3.0),
    ALONE: Compiling(3, 9.0, 0.5),
}
"""As `COMPILING` of a check, measured likewise within a factor of 2."""


def planned_ranking(
    model: Model,
    tokens: Tokens,
    *,
    format: str,  # noqa: A002 - the option's word
    device: str | None = None,
    seed: int = 0,
) -> Plan:
    """What a ranking of all matrices would cost, as `Plan` has it for a check.

    **Raises:** `LyapunovError` for what the ranking would refuse as well.
    """
    del seed  # no plan hangs on it
    demand_head(model)
    group = rounded_group(format)
    rounded_layout(model.layout, EveryMatrix(*group))
    with jax.default_device(device_named(device)), jax.enable_x64(True):
        return _planned(model, tokens.ids, str(group))


def _planned(model: Model, ids: np.ndarray, name: str) -> Plan:
    kinds = first_of_each_kind(model)
    taken = {kind: sublayer_seconds(model, ids, one) for kind, one in kinds.items()}
    sublayers = sum(taken[layer.kind][0] for layer in model.sublayers)
    head = head_seconds(model, ids.size)
    forward = sublayers * ids.size / calibration_size(ids) + head
    unit = sum(seconds for _, seconds in taken.values())
    lightly = LIGHTLY if compiles_lightly() else 1.0
    counts = {
        "reference": FORWARDS["reference"],
        BACK: A_PROBE * PROBES + AROUND,
        # each from the middle on; all at once, all but the best; twice the reference
        ALONE: MEASURED + 5.0,
    }
    held = _bytes(model, ids)
    stages = []
    for stage, count in counts.items():
        compiling, run = RANKING[stage], count * forward
        programs = compiling.programs * (1 + len(kinds)) / 2
        stages.append(
            Stage(
                stage,
                count,
                round(programs),
                run + max(compiling.cold / lightly, compiling.warm) * unit,
                run + compiling.warm * unit,
                held[stage] + int(compiling.cold * len(kinds) * COMPILED_BYTES),
            )
        )
    layout = model.layout
    total: dict[str, Any] = {
        key: sum(getattr(stage, key) for stage in stages)
        for key in ("programs", "seconds", "warm_seconds")
    }
    left = sum(stage.bytes - held[stage.name] for stage in stages)
    return Plan(
        checkpoint=model.source,
        architecture=layout.architecture,
        n_layers=len(model.sublayers),
        n_blocks=layout.n_blocks,
        n_params=layout.n_params,
        batch=len(ids),
        length=ids.shape[1],
        executions=[f"every matrix in {name}"],
        device=str(jnp.zeros(()).devices().pop()),
        forward_seconds=forward,
        stages=stages,
        **total,
        peak_bytes=BASE_BYTES + left + max(held.values()),
        available_bytes=available_memory(),
        weight_bytes=layout.weight_bytes,
    )


def _bytes(model: Model, ids: np.ndarray) -> dict[str, int]:
    """What each stage has alive at once: one works at a time."""
    batch, length = ids.shape
    stream = 8 * ids.size * model.config.d_model
    effort = Effort(readouts=PROBES)
    memory = memory_of(model, (batch, length), [], effort, {})
    weights = max(8 * s.count(length, batch).weights for s in model.config.sublayers)
    runs = 2 * MEASURED + 3
    reference = memory.of("reference")
    return {
        "reference": reference,
        # pulls of every sequence stay, and sums of the head's; changed weights, too
        BACK: memory.of("T2") + 4 * PROBES * stream + 2 * weights,
        ALONE: reference + 4 * runs * stream + 2 * weights,
    }
