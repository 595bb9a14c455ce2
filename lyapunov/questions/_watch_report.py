"""The report of calls of state-space blocks: rows under the names of the blocks."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .._version import __version__
from ..exponents import gather_exponents
from ..findings import _rules as findings
from ..mixers import Mixer
from ..models import Model
from ..results._check import (
    UNDECIDED,
    CheckpointFacts,
    LayerExponents,
    OutputDivergence,
    PrecisionReport,
    Report,
    TokensFacts,
)
from ._environment import environment
from ._layers import run_layers
from ._request import Request
from ._verified import renumbered


class BlockCall(NamedTuple):
    """A block and what it read, to be checked."""

    name: str
    """Of the block; several calls may be of one."""
    title: str
    """Of the rows."""
    mixer: Mixer
    model: Model
    """Of this block alone."""
    ids: np.ndarray
    """Tokens of the model, (batch, seq), which stand for what the block read."""
    read: np.ndarray
    """What the block read, (batch, seq, d_model)."""
    told: str
    """What the report says of the call."""


class Subject(NamedTuple):
    """Where the blocks come from."""

    source: str
    inputs: str
    """What they read, in words."""
    no_logits: str
    """Why nothing is said of logits."""
    assumptions: Sequence[str] = ()
    """Beside what is told of the calls."""
    files: Sequence[Any] = ()
    """As `CheckpointFacts` has them."""


BOUNDS_HOLD = (
    "a bound holds for every execution of the declared kind on what the block read, "
    "not for the one run beside which it is shown"
)


def report_of_calls(
    calls: Sequence[BlockCall], subject: Subject, request: Request, began: float
) -> Report:
    """The rows of all calls as one report.

    **Arguments:**

    - `began`: of `time.perf_counter`, when the work did.
    """
    rows: list[LayerExponents] = []
    reports: list[list[PrecisionReport]] = []
    assumptions: list[str] = []
    for number, one in enumerate(calls):
        own, precisions, assumed = _one_call(one, number, request)
        rows += own
        reports.append(precisions)
        assumptions += assumed
    merged = [_merged(list(same)) for same in zip(*reports, strict=True)]
    exponents = gather_exponents(rows, sum(one.ids.size for one in calls))
    begun = _begun(calls, subject, request)
    told = findings.find(exponents, merged, begun.settings)
    told = request.verdict.kept(told)
    bounded = findings.bounded_share(merged, [])
    skipped = len(findings.unchecked(merged, []))
    verdict, exit_code = findings.verdict(
        told,
        checked=len(calls) - skipped,
        skipped=skipped,
        bounded=bounded,
        bounds=request.effort.bounds,
        **vars(request.verdict),
    )
    said = [one.told for one in calls] + [*subject.assumptions, BOUNDS_HOLD]
    return replace(
        begun,
        environment=environment(),
        assumptions=[*said, *dict.fromkeys(assumptions)],
        exponents=exponents,
        precisions=merged,
        findings=told,
        summary=replace(
            UNDECIDED,
            verdict=verdict,
            checked=len(calls) - skipped,
            skipped=skipped,
            seconds=time.perf_counter() - began,
            exit_code=exit_code,
            bounded_share=bounded,
            # no server loads blocks without their network: of its flags none is given
            recommendation=findings.recommendation(exponents, merged, told, []),
        ),
    )


def _one_call(
    one: BlockCall, number: int, request: Request
) -> tuple[list[LayerExponents], list[PrecisionReport], list[str]]:
    """The rows of one call under its number, and what its executions assume."""
    if one.mixer.sizes.aside:  # a scan alone gives another width than it reads
        request = replace(request, effort=replace(request.effort, growth=False))
    executions = request.executions(one.model)
    rows, reports, _, _ = run_layers(one.model, one.ids, executions, (0,), request)
    title = one.title
    told = [f"{e.name}: {text}" for e in executions for text in e.assumptions]
    return (
        renumbered(rows, number, title),
        [
            replace(report, layers=renumbered(report.layers, number, title))
            for report in reports
        ],
        told,
    )


def _merged(reports: list[PrecisionReport]) -> PrecisionReport:
    """One execution's report of all calls."""
    causes = [one.output.cause for one in reports if one.output.cause is not None]
    names = list(dict.fromkeys(one.execution for one in reports))
    return replace(
        reports[0],
        execution="; ".join(names),
        layers=[row for one in reports for row in one.layers],
        output=OutputDivergence(cause=causes[0] if causes else None),
        state_stored_every=min(one.state_stored_every for one in reports),
    )


def _begun(calls: Sequence[BlockCall], subject: Subject, request: Request) -> Report:
    """What is known before anything has run."""
    by_block = {one.name: one for one in calls}
    kinds = list(dict.fromkeys(one.mixer.kind for one in calls))
    dtypes = list(dict.fromkeys(one.model.layout.dtype for one in calls))
    digest = hashlib.sha256()
    for one in calls:
        digest.update(np.ascontiguousarray(one.read).tobytes())
    lengths = sorted({one.ids.shape for one in calls})
    batch, length = lengths[-1]
    what = subject.inputs
    if len(lengths) > 1:
        what += f" ({len(lengths)} shapes, the largest)"
    left_out = request.effort.left_out(has_head=False)
    return Report(
        tool={"name": "lyapunov-check", "version": __version__},
        settings=request.settings(),
        environment={},
        assumptions=[],
        checkpoint=CheckpointFacts(
            source=subject.source,
            architecture=", ".join(kinds),
            n_layers=len(calls),
            n_params=sum(one.mixer.n_params for one in by_block.values()),
            dtype=", ".join(dtypes),
            files=list(subject.files),
            n_blocks=len(by_block),
        ),
        tokens=TokensFacts(what, batch, length, digest.hexdigest()),
        exponents=gather_exponents([], 0),
        precisions=[],
        findings=[],
        summary=UNDECIDED,
        not_computed={
            name: subject.no_logits if "no head" in why else why
            for name, why in left_out.items()
        },
    )
