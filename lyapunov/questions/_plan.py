"""What a check would cost: time and memory, before it is run.

Time is counted in forwards, runs of all sublayers in fp64 on the tokens: a stage's
forwards were measured once (FORWARDS), a forward is measured here, on one sublayer and
a few tokens, and compiling is counted apart. Memory is a sum of what is alive at once,
with constants that no measured check exceeded. Both are estimates: on a machine with
other work expect more.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..bounds.floor import FLOOR_TOKENS
from ..findings._changes import coverage_findings
from ..findings._semantics import semantic_findings
from ..implementations import Execution
from ..implementations._reference import run_layer
from ..models import Model, Sublayer
from ..models._tokens import Tokens
from ..results._check import SCHEMA_VERSION, Finding
from ..results._shown import Shown
from ..sublayers.residual import Stream
from ._effort import EFFORTS, Effort
from ._plan_memory import BASE_BYTES, available_memory, memory_of, stored_in
from ._request import Request, demand_logits, device_named


CALIBRATION_TOKENS = 256
"""Enough that starting a program no longer shows."""

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

PROGRAMS = {
    "reference": 1.0,
    "run": 1.0,
    "measured": 1.0,
    "T0 and T1": 7.0,
    "floor": 4.0,
    "T3": 5.0,
    "T2": 6.0,
    "T4": 5.0,
    "growth": 2.0,
    "changed weights": 8.0,
}
"""Compiling, in units of compiling one sublayer's forward; once for all executions
with the same stores, since formats are data."""

PROGRAM_BYTES = 70 * 2**20
"""What compiling leaves behind, in the units of PROGRAMS."""

BALL_SUBLAYERS = 2
"""Sublayers that T4 is expected to reach: what 16-bit executions do."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of a check."""

    name: str
    forwards: float
    """fp64 forwards, all executions together."""
    seconds: float
    bytes: int
    """What it has alive at once and leaves behind, beside the base. Of long texts one
    stage works at a time, so that the peak is less than their sum."""


@dataclasses.dataclass(frozen=True)
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
    seconds: float
    peak_bytes: int
    available_bytes: int | None
    """Memory that is free now; null where the system does not say."""
    findings: list[Finding] = dataclasses.field(default_factory=list)
    """What the configuration and the tokens' number tell before anything runs."""

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
    effort = effort.on(has_head=model.has_head, n_params=model.layout.n_params)
    probes, readouts = effort.probes, effort.readouts or 0
    with jax.enable_x64(True):
        taken = {
            kind: _calibrate(model, ids, layer)
            for kind, layer in _first_of_each_kind(model).items()
        }
        head = _head_seconds(model, ids.size)
    batch, length = ids.shape
    n_layers = len(model.sublayers)
    sublayers = sum(taken[layer.kind][0] for layer in model.sublayers)
    compiling = sum(seconds for _, seconds in taken.values())
    forward = sublayers * ids.size / _calibration_size(ids) + head
    share = 1.0 if layers is None else len(layers) / n_layers
    n = len(executions)
    kinds = max(len({tuple(execution.sites) for execution in executions}), 1)
    counts = {
        "reference": 1.0,
        "run": float(n),
        "T0 and T1": n * share if effort.bounds else 0.0,
        "measured": 0.0 if effort.bounds else n * share,
        "floor": n * share * min(FLOOR_TOKENS, length) / ids.size
        if effort.floor
        else 0.0,
        "T3": n * (probes + 1.0) / 2 if probes else 0.0,
        "T2": readouts / batch if probes and n else 0.0,
        "T4": n * min(BALL_SUBLAYERS, n_layers) / n_layers if effort.ball else 0.0,
        "growth": 1 / batch if effort.follows_growth(model.config.sublayers) else 0.0,
        "changed weights": changes * share,
    }
    with jax.enable_x64(True):
        stored = {
            kind: stored_in(model, ids.shape, layer, executions, measure)
            for kind, layer in _first_of_each_kind(model).items()
        }
    memory = memory_of(model, ids.shape, executions, effort, stored)
    counts = {name: count for name, count in counts.items() if count}
    programs = {name: int(PROGRAMS[name] * kinds * PROGRAM_BYTES) for name in counts}
    stages = [
        Stage(
            name,
            FORWARDS[name] * count,
            FORWARDS[name] * count * forward + PROGRAMS[name] * compiling * kinds,
            memory.of(name) + programs[name],
        )
        for name, count in counts.items()
    ]
    return Plan(
        checkpoint=model.source,
        architecture=model.layout.architecture,
        n_layers=n_layers,
        n_blocks=model.layout.n_blocks,
        n_params=model.layout.n_params,
        batch=batch,
        length=length,
        executions=[execution.name for execution in executions],
        device=str(jnp.zeros(()).devices().pop()),
        forward_seconds=forward,
        stages=stages,
        seconds=sum(stage.seconds for stage in stages),
        peak_bytes=BASE_BYTES + sum(programs.values()) + memory.peak(counts),
        available_bytes=available_memory(),
        findings=list(findings),
    )


def _calibration_size(ids: np.ndarray) -> int:
    return min(CALIBRATION_TOKENS, ids.shape[1])


def _first_of_each_kind(model: Model) -> dict[str, Sublayer]:
    return {layer.kind: layer for layer in reversed(model.sublayers)}


def _calibrate(model: Model, ids: np.ndarray, layer: Sublayer) -> tuple[float, float]:
    """Seconds of one sublayer on a few tokens, the best of three, and of compiling."""
    embedded = model.embed(ids[:1, : _calibration_size(ids)])
    incoming = Stream.start(embedded, [layer]).incoming(layer)
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        p = model.parameters(layer.layer)
        _, output, _ = run_layer(layer.flow, incoming, p, model.start(p))
        jax.block_until_ready(output)
        taken.append(time.perf_counter() - began)
    best = min(taken[1:])
    return best, max(taken[0] - best, 0.0)


def _head_seconds(model: Model, tokens: int) -> float:
    """Seconds of the logits of all tokens, from a product of the head's width."""
    config = model.config
    rows = min(config.vocab_size, 1024)
    width = config.d_model
    x, head = jnp.ones((CALIBRATION_TOKENS, width)), jnp.ones((width, rows))
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(x @ head)
        taken.append(time.perf_counter() - began)
    return min(taken) * tokens / CALIBRATION_TOKENS * config.vocab_size / rows
