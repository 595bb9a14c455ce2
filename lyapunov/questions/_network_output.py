"""What lower precision in a network's blocks does to what the network gives.

The network is the user's own and runs as it is; of its blocks the output is replaced by
that of an emulated execution, on whatever the block reads then.

T3 is by probes: random roundings of every block on the reference's read, added to what
the blocks give. What they do to the output is taken as half the difference of two runs,
with the roundings and with their opposites: the first order in them, of any module,
whether or not it can be differentiated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .._errors import UsageError
from ..bounds.block_probes import BlockRoundings, block_roundings
from ..formats import format_named
from ..implementations import Execution
from ..implementations.emulated import Emulated
from ..mixers import model_of_call
from ..mixers._replaced import Give
from ..models import Model
from ..results._network import NetworkOutput
from ._network_runs import NetworkRuns
from ._output_of import OutputOf, values_of
from ._request import Request
from ._verified import Verified


LEAST_PROBES = 4
"""Beside two forwards of the network a draw of its blocks costs little."""
MOST_BLOCKS = 8
"""So many are replaced one at a time as well, unless the effort is full."""
FINER = 64.0
"""By so much the network's own unit roundoff has to be below that of the execution for
a prediction: else its own roundings are in the differences of runs."""
ASSUMPTIONS = (
    "what the network gives with its blocks in lower precision: everything around the "
    "blocks runs as it is, in its own types",
    "sigma of the output: roundings in the blocks are independent, and small enough "
    "that half the difference of two runs, with them and with their opposites, is "
    "their effect",
)
OWN_TYPE = (
    "the network itself runs in {dtype}: its output is held against its own output in "
    "that type, and no more"
)


class _Place(NamedTuple):
    """A call of a block in the network's forward."""

    number: int
    verified: Verified
    model: Model
    ids: np.ndarray
    """Of the block without a norm in front, on what it read in the reference."""


def network_outputs(
    runs: NetworkRuns,
    found: Sequence[Verified],
    request: Request,
    output: OutputOf,
    source: str,
) -> tuple[list[NetworkOutput], list[str]]:
    """What every execution of a request does to the output, and what that assumes.

    **Arguments:**

    - `runs`: of the network, after its reference.
    - `found`: every call of a block, in the order of the calls.

    **Raises:** `UsageError` where no block of the network is a module, and where its
    calls differ from run to run.
    """
    names = {one.name for one in runs.found}
    places = {
        (v.call.name, v.call.number): _place(i, v, source)
        for i, v in enumerate(found)
        if v.call.name in names
    }
    if not places:
        raise UsageError(
            "output= needs a block that is a module; here are scans alone",
            hint="leave output= out, or put the scan into a module and register it "
            "with mixers=",
        )
    count = len(request.precisions)
    rows = [_one(runs, places, request, output, source, i) for i in range(count)]
    told: list[str] = [*ASSUMPTIONS[: 2 if request.effort.probes else 1]]
    if len(places) < len(found):
        told.append("scans alone run as they are while blocks are in lower precision")
    narrow = [d for d in ("bf16", "fp16") if any(v.call.dtype == d for v in found)]
    told += [OWN_TYPE.format(dtype=dtype) for dtype in narrow]
    return rows, told


def _place(number: int, one: Verified, source: str) -> _Place:
    return _Place(number, one, *model_of_call(one.mixer, one.call.read, source))


def _one(
    runs: NetworkRuns,
    places: Mapping[tuple[str, int], _Place],
    request: Request,
    output: OutputOf,
    source: str,
    i: int,
) -> NetworkOutput:
    """The row of one execution."""
    emulated = _emulated(places, request, source, i)
    reference = values_of(runs.reference)
    size = float(np.linalg.norm(reference))
    moved = runs.run(emulated)
    values = values_of(moved)
    before, after = output.decided(runs.reference), output.decided(moved)
    decisions = total = None
    if before.decisions is not None and after.decisions is not None:
        if before.decisions.shape != after.decisions.shape:
            raise UsageError(
                f"metric {output.decision} gave decisions of shapes "
                f"{before.decisions.shape} and {after.decisions.shape}",
                hint="as many decisions, however they come out",
            )
        total = int(before.decisions.size)
        decisions = int(np.sum(before.decisions != after.decisions))
    row = NetworkOutput(
        output=output.name,
        shape=list(reference.shape),
        reference_l2=size,
        measured_rel_l2=_relative(values - reference, size),
        measured_max=float(np.max(np.abs(values - reference))),
        decision=output.decision if before.known else None,
        decisions_changed=decisions,
        decisions_total=total,
        metric_reference=before.number,
        metric_value=after.number,
    )
    by_block = _by_block(runs, places, emulated, request, size)
    predicted = _predicted(runs, places, request, i, values - reference, size)
    return replace(row, by_block=by_block, **predicted)


def _relative(difference: np.ndarray, size: float) -> float | None:
    return float(np.linalg.norm(difference)) / size if size > 0 else None


def _execution(model: Model, request: Request, i: int) -> Execution:
    return request.executions(model)[i]


def _emulated(
    places: Mapping[tuple[str, int], _Place], request: Request, source: str, i: int
) -> Give:
    """A block's output in the request's i-th execution, on whatever it reads."""

    def give(name: str, number: int, read: np.ndarray, wrote: np.ndarray) -> np.ndarray:
        del wrote
        place = places[name, number]
        model, ids = model_of_call(place.verified.mixer, read, source)
        execution = _execution(model, request, i)
        seed = request.seed + place.number
        record: Any = next(iter(Emulated(execution, seed).trace(model, ids)))
        return np.asarray(record.output)

    return give


def _by_block(
    runs: NetworkRuns,
    places: Mapping[tuple[str, int], _Place],
    emulated: Give,
    request: Request,
    size: float,
) -> dict[str, float]:
    """The effect of each block alone, where there are several and it was not too
    much."""
    names = list(dict.fromkeys(name for name, _ in places))
    full, quick = (request.effort.name == step for step in ("full", "quick"))
    too_many = len(names) > MOST_BLOCKS and not full
    if quick or too_many or len(names) < 2 or not size > 0:
        return {}
    reference = values_of(runs.reference)
    found = {}
    for alone in names:
        only: Give = lambda name, *call, alone=alone: (
            emulated(name, *call) if name == alone else None
        )
        moved = values_of(runs.run(only)) - reference
        found[alone] = float(np.linalg.norm(moved)) / size
    return found


def _predicted(
    runs: NetworkRuns,
    places: Mapping[tuple[str, int], _Place],
    request: Request,
    i: int,
    moved: np.ndarray,
    size: float,
) -> dict[str, Any]:
    """T3 of the output, as fields of a row."""
    if not request.effort.probes:
        return {}
    why = _why_none(places, request, i, size)
    if why is not None:
        return {"sigma_withheld": why}
    probes = max(LEAST_PROBES, request.effort.probes)
    roundings = {
        key: block_roundings(
            place.model,
            place.ids,
            _execution(place.model, request, i),
            n_probes=probes,
            seed=request.seed + 1,
            place=place.number,
        )
        for key, place in places.items()
    }
    shift, _ = _effect(runs, roundings, lambda one: one.shift)
    effects = [
        _effect(runs, roundings, lambda one, k=k: one.drawn[k]) for k in range(probes)
    ]
    return _in_figures(shift, effects, moved, size)


def _why_none(
    places: Mapping[tuple[str, int], _Place], request: Request, i: int, size: float
) -> str | None:
    """Why there is no prediction."""
    if not size > 0:
        return "the network gives zeros, without a size"
    lowest = format_named(str(request.precisions[i])).unit_roundoff
    for place in places.values():
        own = place.verified.call.dtype
        if own != "fp64" and format_named(own).unit_roundoff * FINER > lowest:
            return f"the network itself runs in {own}, whose own roundings are as large"
    return None


def _effect(
    runs: NetworkRuns,
    roundings: Mapping[tuple[str, int], BlockRoundings],
    part: Callable[[BlockRoundings], Float[np.ndarray, "batch seq d_model"]],
) -> tuple[np.ndarray, np.ndarray]:
    """What is odd in the roundings' sign of their effect on the output, and what is
    even."""
    reference = values_of(runs.reference)
    ways = []
    for sign in (1.0, -1.0):
        give: Give = lambda name, number, read, wrote, sign=sign: (
            wrote.astype(np.float64) + sign * part(roundings[name, number])
        )
        ways.append(values_of(runs.run(give)) - reference)
    return (ways[0] - ways[1]) / 2, (ways[0] + ways[1]) / 2


def _in_figures(
    shift: np.ndarray,
    effects: Sequence[tuple[np.ndarray, np.ndarray]],
    moved: np.ndarray,
    size: float,
) -> dict[str, Any]:
    square = lambda x: float(np.sum(np.square(x)))
    random = float(np.mean([square(odd - shift) for odd, _ in effects]))
    sigma = float(np.sqrt(square(shift) + random)) / size
    odds = sum(square(odd) for odd, _ in effects)
    evens = sum(square(even) for _, even in effects)
    found: dict[str, Any] = {
        "n_probes": len(effects),
        "shift_rel_l2": float(np.sqrt(square(shift))) / size,
    }
    if not np.isfinite(sigma):
        why = "a value may overflow, so random roundings have no finite size"
        return {"sigma_withheld": why}
    if random > 0:
        found["calibration_z"] = float(np.sqrt(square(moved - shift) / random))
    if odds > 0:
        found["nonlinearity"] = float(np.sqrt(evens / odds))
    return {**found, "sigma_t3": sigma}
