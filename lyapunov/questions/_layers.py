"""Layer by layer through the reference and all executions, bounds on the way.

Everything goes layer by layer: the reference, each execution, their comparison, the
probes, the ball and the bounds of a sublayer are done before the next one is read.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ..bounds.ball import Ball
from ..bounds.end_to_end import EndToEnd, decided
from ..findings._semantics import ClippedDt, clipped_dt
from ..formats import StateFormat, state_format_named
from ..implementations import Execution, Reference, Trace, implementation_named
from ..models import Model, Sublayer
from ..results._check import (
    FunctionDistance,
    LayerDivergence,
    LayerExponents,
    OutputDivergence,
    PrecisionReport,
)
from . import _compare
from ._cause import StateFacts, state_cause, state_facts
from ._divergence import SublayerDivergence
from ._effort import Effort
from ._functions import OtherFunctions
from ._layer_facts import layer_facts, layer_growth
from ._reference_loss import NextTokenLoss
from ._rehearsal import rehearsed
from ._request import Request


# As many as a sublayer has bounds to find; JAX gives each what cores there are.
WORKERS = 4
# Stored tensors of a sublayer; where there are more, its bounds are waited for before
# anything else runs, and then they are let go of.
STORED_BYTES_AT_ONCE = 2**29


class _Run(NamedTuple):
    """One execution under way."""

    execution: Execution
    trace: Any
    rows: list[LayerDivergence]
    ball: Ball | None
    certified: dict[int, float]
    """T4 behind each sublayer that it reached."""
    facts: list[StateFacts]
    """The reference's states in the state's format, where that is not fp32."""


def run_layers(
    model: Model,
    ids: np.ndarray,
    executions: list[Execution],
    chosen: tuple[int, ...],
    request: Request,
    progress=None,
    known: Callable[[list[LayerExponents], list[PrecisionReport]], Any] | None = None,
) -> tuple[
    list[LayerExponents], list[PrecisionReport], dict[int, ClippedDt], np.ndarray
]:
    """Exponents of every sublayer, a report of every execution, dt at its limits, and
    the reference's loss in bits of each token but the first, (batch, seq - 1). Without
    a head outputs have no figures, and the loss is NaN.

    **Arguments:**

    - `ids`: (batch, seq). `chosen`: the sublayers to bound.
    - `request`: who runs the executions, how much is looked for, and the seed.
    - `progress`: with `start(total, what)` and `advance()`; None is silent.
    - `known`: is told the rows and reports so far, whenever there is more to tell.
    """
    measure = request.measure
    effort = request.effort.on(has_head=model.has_head, n_params=model.layout.n_params)
    reference, places = _reference(model, ids, executions)
    runs = [_begun(model, ids, e, measure, effort) for e in executions]
    estimates = _estimates(model, ids, executions, effort, request.seed)
    functions = OtherFunctions(model, ids, executions)
    steps = len(model.sublayers) + 1
    if progress is not None:
        back = len(model.sublayers) if estimates is not None and effort.readouts else 0
        progress.start(steps + back, "checking")
    growth = effort.follows_growth(model.config.sublayers)
    modules = model.layout.modules
    rows: list[LayerExponents] = []
    clipped: dict[int, ClippedDt] = {}

    def tell(outputs: Sequence[OutputDivergence] | None = None) -> None:
        if known is not None:
            outputs = outputs or [OutputDivergence()] * len(runs)
            known(
                rows,
                [
                    _report(run, measure, modules, None, output, {})
                    for run, output in zip(runs, outputs, strict=True)
                ],
            )

    # While the bounds of one sublayer are at work the next one runs: bounds are
    # elementwise, forwards are matrix products. One sublayer ahead and no more, so
    # that memory does not grow with depth.
    with ThreadPoolExecutor(WORKERS) as workers:
        pending: list[tuple[_Run, SublayerDivergence]] = []
        for sublayer in model.sublayers:
            record: Any = next(reference)
            # before anything else is compiled
            found = layer_facts(model, sublayer, record)
            rows.append(dataclasses.replace(found, module=modules[sublayer.layer]))
            tell()
            if sublayer.layer == 0:
                rehearsed(run_layers, model, ids, executions, request, workers)
            functions.sublayer()
            bounded = sublayer.layer in chosen
            started = _one_sublayer(
                model, sublayer, record, runs, places, bounded, effort, workers, pending
            )
            if estimates is not None:
                estimates.sublayer(sublayer, record)
            limits = getattr(model.config.sublayers[sublayer.layer], "dt_limit", None)
            if limits is not None:
                dt = np.asarray(record.observed["dt"])
                clipped[sublayer.layer] = clipped_dt(dt, limits)
            if growth:
                found = layer_growth(model, sublayer, record, request.seed)
                rows[-1] = dataclasses.replace(rows[-1], growth=found)
            _collect(pending)
            pending = started
            tell()
            if progress is not None:
                progress.advance(1, f"layer {sublayer.layer}")
        _collect(pending)
    tell()
    outputs, bits = _outputs(
        model, next(reference), runs, estimates, functions, ids, progress, tell
    )
    reports = [
        _report(run, measure, modules, functions.distance(run.execution), *found)
        for run, found in zip(runs, outputs, strict=True)
    ]
    return rows, reports, clipped, bits


def _one_sublayer(
    model: Model,
    sublayer: Sublayer,
    record,
    runs: list[_Run],
    places: dict[str, int],
    bounded: bool,
    effort: Effort,
    workers: Executor,
    pending: list[tuple[_Run, SublayerDivergence]],
) -> list[tuple[_Run, SublayerDivergence]]:
    """Run it in every execution; where it is `bounded` the work of it has begun."""
    started = []
    for run in runs:
        other, stagnation = _next_of(run, record, places)
        if bounded:
            own = run.execution.at(sublayer)
            work = SublayerDivergence(
                model, sublayer, own, record, other, effort, workers, stagnation
            )
            started.append((run, work))
            if stored_bytes(other.stored) > STORED_BYTES_AT_ONCE:
                _collect(pending)
                _collect(started)
            del work
        del other
        found = run.ball and run.ball.sublayer(sublayer, record)
        if found:
            run.certified[sublayer.layer] = found.l2
    return started


def _reference(model: Model, ids, executions) -> tuple[Trace, dict[str, int]]:
    """The reference's trace, which looks at its states as the executions' formats hold
    them, and where it says what it saw of each."""
    states = dict.fromkeys(e.state_precision for e in executions)
    states.pop("fp32", None)
    formats = [state_format_named(name) for name in states]
    trace = Reference(
        tuple(f.unit_roundoff for f in formats),
        tuple(f.smallest_normal for f in formats),
        state_steps=tuple(
            f.step if isinstance(f, StateFormat) else 0.0 for f in formats
        ),
    ).trace(model, ids)
    return trace, {name: i for i, name in enumerate(states)}


def _begun(
    model: Model, ids, execution: Execution, measure: str, effort: Effort
) -> _Run:
    """An execution before its first sublayer."""
    trace = implementation_named(measure).runner(execution).trace(model, ids)
    ball = Ball(model, ids, execution) if effort.ball else None
    return _Run(execution, trace, [], ball, {}, [])


def _next_of(run: _Run, record, places: dict[str, int]) -> tuple[Any, Any]:
    """An execution's own record of the next sublayer, and how much of its state stands
    still; None where the reference has not looked."""
    other = next(run.trace)
    place = places.get(run.execution.state_precision)
    facts = None if place is None else state_facts(record, place)
    if facts is None:
        return other, None
    every = run.execution.at(record).stored_every
    if every > 1:
        # what a token adds is counted by then with what others add
        facts = facts._replace(stagnation=None, stored_every=every)
    run.facts.append(facts)
    return other, facts.stagnation


def _report(
    run: _Run,
    measure: str,
    modules,
    function: FunctionDistance | None,
    output: OutputDivergence,
    shares: dict[int, float],
) -> PrecisionReport:
    """What was found of one execution."""
    return PrecisionReport(
        precision=run.execution.precision,
        state_precision=run.execution.state_precision,
        execution=run.execution.name,
        mode=run.execution.mode,
        measured_by=measure,
        layers=[
            dataclasses.replace(
                row,
                module=modules[row.layer],
                certified_l2=run.certified.get(row.layer),
                sigma_share=shares.get(row.layer),
            )
            for row in run.rows
        ],
        output=output,
        function=function,
        state_stored_every=min((one.stored_every for one in run.facts), default=1),
    )


def _estimates(
    model: Model, ids, executions, effort: Effort, seed: int
) -> EndToEnd | None:
    if not executions or effort.probes == 0:
        return None
    return EndToEnd(
        model,
        ids,
        executions,
        n_probes=effort.probes,
        n_readouts=effort.readouts or 0,
        seed=seed,
    )


def _collect(pending: list) -> None:
    while pending:
        run, work = pending.pop(0)
        run.rows.append(work.row())


def stored_bytes(stored: Mapping[str, Any]) -> int:
    """Bytes of the stored tensors of a sublayer."""
    return sum(x.nbytes for x in stored.values())


def _outputs(
    model: Model,
    head,
    runs: list[_Run],
    estimates: EndToEnd | None,
    functions: OtherFunctions,
    ids,
    progress,
    tell: Callable[[Sequence[OutputDivergence]], None],
) -> tuple[list[tuple[OutputDivergence, dict[int, float]]], np.ndarray]:
    """The logits of each execution with each sublayer's share of their variance; and
    the reference's own loss, which needs no execution. What was measured is told to
    `tell` before read-outs go back."""
    others = [next(run.trace) for run in runs]
    sums = [_compare.no_logits(*ids.shape) for _ in others]
    loss = NextTokenLoss(ids)
    functions.head()
    if not model.has_head:
        functions.stream(head)
        if progress is not None:
            progress.advance(1, "end")
        return [(_no_output(run), {}) for run in runs], loss.bits()
    if estimates is not None:
        estimates.head(head)
    for rows in model.vocabulary_slices():
        reference = head.logits(rows.start, rows.stop)
        loss.add(reference, rows)
        found = [other.logits(rows.start, rows.stop) for other in others]
        sums = [
            _compare.add_logits(before, reference, logits, rows)
            for before, logits in zip(sums, found, strict=True)
        ]
        functions.logits(rows, reference)
        if estimates is not None:
            estimates.logits(rows, reference, found)
    if progress is not None:
        progress.advance(1, "logits")
    vocabulary = model.config.vocab_size
    measured = [_compare.output_divergence(done, vocabulary) for done in sums]
    tell(measured)
    if estimates is not None:
        for layer in estimates.reverse():
            if progress is not None:
                progress.advance(1, f"back through layer {layer}")
    outputs = [
        _output(run, done, one, estimates, i)
        for i, (run, done, one) in enumerate(zip(runs, sums, measured, strict=True))
    ]
    return outputs, loss.bits()


def _no_output(run: _Run) -> OutputDivergence:
    """Of a model without a head. That a state leaves its format's range or stands still
    is known all the same; whether its bits are enough, only logits tell."""
    cause = state_cause(run.execution.state_precision, run.facts)
    if cause is not None and cause.startswith("mantissa"):
        cause = None
    return OutputDivergence(cause=cause)


def _output(
    run: _Run, sums, output: OutputDivergence, estimates: EndToEnd | None, i: int
) -> tuple[OutputDivergence, dict[int, float]]:
    certified = None
    if run.ball is not None:
        run.ball.head()
        certified = run.ball.certified_stable(np.asarray(sums.place))
        output = dataclasses.replace(
            output,
            certified_until_layer=run.ball.until_layer,
            stopped_by=run.ball.stopped_by,
        )
    shares: dict[int, float] = {}
    if estimates is not None:
        estimate = estimates.estimate(i)
        decisions = decided(*_compare.flips(sums), estimate.predicted_stable, certified)
        output = dataclasses.replace(estimate.into(output), decisions=decisions)
        shares = estimate.sigma_share or {}
    cause = state_cause(
        run.execution.state_precision,
        run.facts,
        moved=output.argmax_flips > 0,
        state_share=output.state_share,
    )
    return dataclasses.replace(output, cause=cause), shares
