"""What a check would cost: time and memory, before it is run.

Time is counted in forwards, runs of all sublayers in fp64 on the tokens: a stage's
forwards were measured once (FORWARDS), a forward is measured here, on one sublayer and
a few tokens. Compiling is counted apart, in what tracing one sublayer takes
(COMPILING), cold and with what an earlier run has kept. Memory is a sum of what is
alive at once, with constants that no measured check exceeded. Both are estimates: on a
machine with other work expect more.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._devices import has_gpu, spread_over
from .._xla import compiles_lightly
from ..bounds.floor import FLOOR_TOKENS
from ..findings._changes import coverage_findings
from ..findings._semantics import semantic_findings
from ..implementations import Execution
from ..models import Model, Sublayer
from ..models._tokens import Tokens
from ..results._check import SCHEMA_VERSION, Finding
from ..results._shown import Shown
from ._effort import EFFORTS, Effort
from ._plan_calibration import calibration_size, head_seconds, sublayer_seconds
from ._plan_memory import BASE_BYTES, available_memory, memory_of, stored_in
from ._request import Request, demand_logits, device_named


FORWARDS = {
    "reference": 1.0,
    "run": 1.5,
    "measured": 2.0,
    "T0 and T1": 8.0,
    "floor": 5.0,
    "T3": 3.0,
    "T2": 3.0,
    "T4": 3.0,
    "growth": 20.0,
    "changed weights": 8.0,
}
"""fp64 forwards that a stage takes, each execution (measured: where nothing is bounded,
which measures as well; T3: each probe, and one more for
the weights alone; T2: each read-out, of one sequence; T4: each sublayer reached)."""


class Compiling(NamedTuple):
    """What compiling a stage takes."""

    programs: int
    cold: float
    """Tracing, lowering and compiling them."""
    warm: float
    """Tracing, lowering, and reading what was compiled."""


COMPILING = {
    "reference": Compiling(7, 11.0, 0.5),
    "run": Compiling(4, 20.0, 1.0),
    "measured": Compiling(3, 8.0, 0.5),
    "T0 and T1": Compiling(6, 115.0, 13.0),
    "floor": Compiling(2, 40.0, 4.5),
    "T3": Compiling(5, 32.0, 3.0),
    "T2": Compiling(4, 25.0, 2.0),
    "T4": Compiling(10, 20.0, 3.0),
    "growth": Compiling(2, 28.0, 2.0),
    "changed weights": Compiling(9, 40.0, 4.0),
}
"""Of a network of one kind, in units of tracing and lowering one sublayer's forward,
which is timed here whatever the cache holds (0.1 s). For each kind, and once for all
executions with the same stores, since formats are data. Measured on the bundled model,
64 tokens, one precision, within a third. Cold: CPU seconds of a check with one stage
more in an emptied process, less those of its second run. Warm: what it takes to read
the stage's programs, on two quiet cores; of T4, growth and changed weights half of what
it took when they were lowered again."""

LIGHTLY = 3.0
"""By how much less compiling takes where XLA optimises no loops, measured likewise."""

COMPILED_BYTES = 6 * 2**20
"""What compiling leaves behind, for each unit that it takes cold."""

BALL_SUBLAYERS = 2
"""Sublayers that T4 is expected to reach: what 16-bit executions do."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of a check."""

    name: str
    forwards: float
    """fp64 forwards, all executions together."""
    programs: int
    """About so many are compiled."""
    seconds: float
    """Compiling included."""
    warm_seconds: float
    """The same where what is compiled was kept by an earlier run."""
    bytes: int
    """What it has alive at once and leaves behind, beside the base. Of long texts one
    stage works at a time, so that the peak is less than their sum."""


@dataclasses.dataclass(frozen=True)
class EffortCost:
    """What a check would take with a step of `EFFORTS`."""

    effort: str
    programs: int
    seconds: float
    warm_seconds: float
    peak_bytes: int


@dataclasses.dataclass(frozen=True, repr=False)
class Plan(Shown):
    """What a check would cost. Estimates, not promises."""

    checkpoint: str
    architecture: str
    n_layers: int
    """Sublayers."""
    n_blocks: int
    """Layers as the checkpoint counts them."""
    n_params: int
    batch: int
    length: int
    executions: list[str]
    device: str
    forward_seconds: float
    stages: list[Stage]
    programs: int
    seconds: float
    warm_seconds: float
    peak_bytes: int
    available_bytes: int | None
    """Memory that is free now, a GPU's where it runs there; null where nobody says."""
    findings: list[Finding] = dataclasses.field(default_factory=list)
    """What the configuration and the tokens' number tell before anything runs."""
    efforts: list[EffortCost] = dataclasses.field(default_factory=list)
    """The same check with every step of effort."""
    devices: int = 1
    """Over so many sequences are spread; memory is that of each."""
    weight_bytes: int = 0
    """Read from one sublayer to the next, the next beside the work on the present."""

    @property
    def fits(self) -> bool:
        """Whether the memory that is free would do."""
        return self.available_bytes is None or self.peak_bytes <= self.available_bytes

    def to_dict(self) -> dict[str, Any]:
        """The document of `--plan --json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "plan": dataclasses.asdict(self) | {"fits": self.fits},
        }


def planned(model: Model, tokens: Tokens, request: Request) -> Plan:
    """What the check that is asked for would cost.

    **Raises:** `UsageError` for what the check would refuse as well.
    """
    demand_logits(model, request)
    request = request.on(model, tokens)
    layers = request.sublayers(model)
    with jax.default_device(device_named(request.device)):
        return plan(
            model,
            tokens.ids,
            request.executions(model),
            layers=layers,
            effort=request.effort,
            measure=request.measure,
            changes=len(request.round_weights) + (request.against is not None),
            findings=known_before(model, tokens.ids, request),
        )


def known_before(model: Model, ids: np.ndarray, request: Request) -> list[Finding]:
    """The findings that configuration, adapter and the tokens' number tell alone.

    Where an implementation's paths are other functions (LYA011 to LYA014), and for
    what an adapter leaves out (LYA019), no token is needed; whether limits of dt move
    anything on these tokens, only a check says.

    **Raises:** `LyapunovError` for an adapter or checkpoint that cannot be held
    against the model, as the check would.
    """
    changed = request.changes(model)
    found = semantic_findings(
        model,
        ids.shape[1],
        ids.shape[0],
        adapter_targets=[name for one in changed for name in one.adapted],
    )
    for one in changed:
        if one.coverage is not None:
            found += coverage_findings(one.name, one.coverage)
    return request.verdict.kept(found)


def plan(
    model: Model,
    ids: np.ndarray,
    executions: Sequence[Execution],
    *,
    layers: Sequence[int] | None = None,
    effort: Effort = EFFORTS["standard"],
    measure: str = "emulated",
    changes: int = 0,
    findings: Sequence[Finding] = (),
) -> Plan:
    """Time and memory of a check, without running it.

    **Arguments:**

    - `ids`: (batch, seq) tokens; the first few are used to calibrate.
    - `executions`: that would be measured and bounded.
    - `layers`: sublayers to bound; None is all.
    - `effort`: how much the check would look for.
    - `measure`: who would run the executions.
    - `changes`: changed weight sets.
    - `findings`: known before the check, to be told with the plan.

    **Returns:** a `Plan`; seconds and bytes.
    """
    kinds = first_of_each_kind(model)
    batch, length = ids.shape
    # of one processor all devices share the memory
    spread = len(spread_over(batch)) if has_gpu() else 1
    each = batch // spread, length
    with jax.enable_x64(True):
        taken = {kind: sublayer_seconds(model, ids, one) for kind, one in kinds.items()}
        head = head_seconds(model, ids.size)
        stored = {
            kind: stored_in(model, each, one, executions, measure)
            for kind, one in kinds.items()
        }
    sublayers = sum(taken[layer.kind][0] for layer in model.sublayers)
    forward = (sublayers * ids.size / calibration_size(ids) + head) / spread
    stores = _stores(executions)
    many = _many(stores, len(kinds))
    lightly = LIGHTLY if compiles_lightly() else 1.0
    unit = stores * sum(seconds for _, seconds in taken.values())
    share = 1.0 if layers is None else len(layers) / len(model.sublayers)

    def cost(effort: Effort) -> tuple[list[Stage], int]:
        effort = effort.on(has_head=model.has_head, n_params=model.layout.n_params)
        counts = _counts(model, ids, len(executions), share, effort, changes)
        memory = memory_of(model, each, executions, effort, stored)
        stages = []
        for name, count in counts.items():
            compiling, run = COMPILING[name], FORWARDS[name] * count * forward
            stages.append(
                Stage(
                    name,
                    FORWARDS[name] * count,
                    round(compiling.programs * many),
                    run + max(compiling.cold / lightly, compiling.warm) * unit,
                    run + compiling.warm * unit,
                    memory.of(name) + _left_behind(name, stores, len(kinds)),
                )
            )
        left = sum(_left_behind(name, stores, len(kinds)) for name in counts)
        return stages, BASE_BYTES + left + memory.peak(counts)

    stages, peak = cost(effort)
    efforts = [
        EffortCost(name, *_total(found), most)
        for name, one in EFFORTS.items()
        for found, most in [cost(one)]
    ]
    programs, seconds, warm = _total(stages)
    return Plan(
        checkpoint=model.source,
        architecture=model.layout.architecture,
        n_layers=len(model.sublayers),
        n_blocks=model.layout.n_blocks,
        n_params=model.layout.n_params,
        batch=batch,
        length=length,
        executions=[execution.name for execution in executions],
        device=str(jnp.zeros(()).devices().pop()),
        forward_seconds=forward,
        stages=stages,
        programs=programs,
        seconds=seconds,
        warm_seconds=warm,
        peak_bytes=peak,
        available_bytes=available_memory(),
        findings=list(findings),
        efforts=efforts,
        devices=spread,
        weight_bytes=model.layout.weight_bytes,
    )


def _counts(
    model: Model, ids: np.ndarray, n: int, share: float, effort: Effort, changes: int
) -> dict[str, float]:
    """How many times each stage that the effort has takes its `FORWARDS`, of `n`
    executions on a share of the sublayers."""
    batch, length = ids.shape
    layers, probes = len(model.sublayers), effort.probes
    searched = min(FLOOR_TOKENS, length) / ids.size if effort.floor else 0.0
    counts = {
        "reference": 1.0,
        "run": float(n),
        "T0 and T1": n * share if effort.bounds else 0.0,
        "measured": 0.0 if effort.bounds else n * share,
        "floor": n * share * searched,
        "T3": n * (probes + 1.0) / 2 if probes else 0.0,
        "T2": (effort.readouts or 0) / batch if probes and n else 0.0,
        "T4": n * min(BALL_SUBLAYERS, layers) / layers if effort.ball else 0.0,
        "growth": 1 / batch if effort.follows_growth(model.config.sublayers) else 0.0,
        "changed weights": changes * share,
    }
    return {name: count for name, count in counts.items() if count}


def _total(stages: Sequence[Stage]) -> tuple[int, float, float]:
    """Programs, and seconds cold and warm."""
    return (
        sum(stage.programs for stage in stages),
        sum(stage.seconds for stage in stages),
        sum(stage.warm_seconds for stage in stages),
    )


def programs_of(model: Model, request: Request) -> int:
    """About how many programs a check will compile."""
    executions = request.executions(model)
    one_token = np.zeros((1, 1), np.int64)
    changes = len(request.round_weights) + (request.against is not None)
    effort = request.effort.on(has_head=model.has_head, n_params=model.layout.n_params)
    names = _counts(model, one_token, len(executions), 1.0, effort, changes)
    many = _many(_stores(executions), len(first_of_each_kind(model)))
    return sum(round(COMPILING[name].programs * many) for name in names)


def _many(stores: int, kinds: int) -> float:
    """How many times as many programs as of one kind: about half are of the logits, or
    serve every kind (44 of a Falcon-H1 of three kinds, 21 of a Mamba-1)."""
    return stores * (1 + kinds) / 2


def _stores(executions: Sequence[Execution]) -> int:
    """How many executions differ in what they store: the others share programs."""
    kinds = {one.kind for e in executions for one in (e, *e.layers.values())}
    stored = (
        {tuple(own.sites) for e in executions for own in e.every(kind)}
        for kind in kinds
    )
    return max(map(len, stored), default=1)


def _left_behind(name: str, stores: int, kinds: int) -> int:
    return int(COMPILING[name].cold * stores * kinds * COMPILED_BYTES)


def first_of_each_kind(model: Model) -> dict[str, Sublayer]:
    """The first sublayer of every kind that a network has."""
    return {layer.kind: layer for layer in reversed(model.sublayers)}
