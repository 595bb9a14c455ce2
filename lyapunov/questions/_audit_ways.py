"""Which runs an audit is made of, and what is declared of their calls."""

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

from .._arguments import shown
from .._errors import ArgumentError, DumpError, UsageError
from ..formats import FP32, state_format_named
from ..implementations import AbstractImplementation, Execution, implementation_named
from ..implementations._registry import audited, sources_hint
from ..implementations._segment import Segment
from ..implementations._ways import Variant, union, usual_variants
from ..implementations.dump._logits import SeenLogits
from ..implementations.dump.file import File
from ..models import Model
from ..results._audit import NOT_RUN, VariantAudit
from ..sublayers.config import NetworkConfig, plain_mamba1


# Calls through a cache below fp32 are bounded one by one, each compiled apart.
MOST_CALLS = 16

# Ways in which no call over several tokens hands anything on to another.
IN_ONE_PIECE = ("whole", "steps", "batched")


class Way(NamedTuple):
    """One run to audit: its trace and what was declared of its calls."""

    variant: Variant
    precision: str
    segments: tuple[Segment, ...]
    trace: Any
    """None where no sublayer was seen."""
    logits: SeenLogits | None = None
    """Where they are not in the trace."""


def audit_source(source: Any) -> str:
    """The stack or the dump to audit, as text.

    **Raises:** `ArgumentError` for anything else.
    """
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise ArgumentError(
            f"the source of an audit is {shown(source)}",
            hint=sources_hint(),
        )
    return os.fsdecode(os.fspath(source))


def open_dump(source: str | Path, tokens) -> File:
    """The dump at that path.

    **Raises:** `UsageError` where tokens are given besides.
    """
    if tokens is not None:
        raise UsageError(
            "a dump has its own tokens", hint="leave the tokens and the text out"
        )
    return File(source)


def ways_of_dump(model: Model, dump: File, variants) -> tuple[list[Way], list]:
    """The runs of a dump, and those that cannot be audited."""
    dump.check(model)
    wanted = None if variants is None else union(variants)
    lost = [v for v in wanted or () if v not in dump.runs.values()]
    if lost:
        raise UsageError(
            f"{dump.path.name} has no run {lost[0]}",
            hint=f"it has {', '.join(map(str, dump.runs.values()))}",
        )
    for name, variant in dump.runs.items():
        hands_over = len(variant.calls(dump.tokens.shape[1])) > 1
        if hands_over and dump.state_precision is None and dump.needs_state_precision:
            raise DumpError(
                f"the run {name!r} hands a state on, and the dump does not say in "
                "which format",
                hint="add `state_precision`: fp32, or the format of the cache",
            )
    flow, config = implementation_named(dump.implementation), dump.configured
    pair = _executions(
        flow, model, config(model.config), dump.precision, dump.state_precision
    )
    ways, skipped = [], []
    for name, variant in dump.runs.items():
        if wanted is not None and variant not in wanted:
            continue
        run = File(dump.path, name)
        segments = _segments(flow, model, variant, dump.tokens.shape[1], *pair)
        if not run.has_layers:
            ways.append(Way(variant, dump.precision, segments, None, run.logits))
            continue
        reason = _not_bounded(model, variant) or _first_call(flow, model, variant)
        if reason is not None:
            skipped.append(not_run(variant, dump.precision, reason))
            continue
        seen = run.logits
        logits = None if seen is None or seen.everywhere else seen
        way = Way(variant, dump.precision, segments, run.trace(model), logits)
        _add(ways, skipped, way)
    return ways, skipped


def ways_of_source(
    model: Model, source: str, ids, precisions, variants, state_precision
) -> tuple[list[Way], list]:
    """The runs that an implementation has of a text, and why not the others.

    **Raises:** `UsageError` where no implementation of that name is audited.
    """
    implementation = audited(source)
    seq = ids.shape[1]
    tried = usual_variants(seq) if variants is None else union(variants)
    ways, skipped = [], []
    for precision in precisions:
        pair = _executions(
            implementation, model, model.config, precision, state_precision
        )
        runner = implementation.in_ways(model, pair[0])
        for variant in tried:
            reason = _refused(implementation, model, variant)
            if reason is not None:
                skipped.append(not_run(variant, precision, reason))
                continue
            segments = _segments(implementation, model, variant, seq, *pair)
            trace = runner.trace(model, ids, variant, segments)
            _add(ways, skipped, Way(variant, precision, segments, trace))
    return ways, skipped


def _refused(
    implementation: AbstractImplementation, model: Model, variant: Variant
) -> str | None:
    """Why a text is not run so; None where it is."""
    if variant.kind in implementation.ways:
        return _not_bounded(model, variant)
    unsaid = f"{implementation.name} does not say whether it runs texts so"
    return implementation.refused_ways.get(variant.kind, unsaid)


def _not_bounded(model: Model, variant: Variant) -> str | None:
    """Why a run in that way has no bounds here; None where it has."""
    if variant.kind in IN_ONE_PIECE or plain_mamba1(model.config) is not None:
        return None
    return (
        f"what {model.layout.architecture} hands on from one call over several tokens "
        "to the next is not bounded; that is followed for Mamba-1 alone"
    )


def _first_call(
    flow: AbstractImplementation, model: Model, variant: Variant
) -> str | None:
    """Why steps that someone else made are not bounded: their first call had no cache,
    and rounds otherwise than a step."""
    recurrent = any(sizes.recurrent for sizes in model.config.sublayers)
    own = plain_mamba1(model.config) is not None or flow.first_is_step
    if variant.kind != "steps" or own or not recurrent:
        return None
    return (
        f"the first of {flow.name}'s steps is a call without a state, which "
        f"{model.layout.architecture} rounds otherwise; --audit {flow.name} steps "
        "from a cache of no token"
    )


def _executions(
    implementation: AbstractImplementation,
    model: Model,
    config: NetworkConfig,
    precision: str,
    state: str | None,
) -> tuple[Execution, Execution]:
    """What is declared of a call over several tokens, and of steps."""
    if state is not None and "-" in state:
        raise UsageError(
            f"a cache in {state} is not audited", hint="a format without a suffix"
        )
    promised = functools.partial(
        implementation.execution,
        config,
        precision,
        architecture=model.layout.architecture,
    )
    return promised(mode="prefill"), promised(mode="decode", state_precision=state)


def _segments(
    implementation: AbstractImplementation,
    model: Model,
    variant: Variant,
    seq: int,
    prefill: Execution,
    decode: Execution,
) -> tuple[Segment, ...]:
    """The calls of a run, each with what is declared of it.

    Networks of other kinds than Mamba-1 alone step from a cache of no token.
    """
    variant.check(seq)
    cache = state_format_named(decode.state_precision)
    steps = implementation.first_is_step or plain_mamba1(model.config) is None
    calls = variant.calls(seq, first_is_step=steps)
    return tuple(
        Segment(call.start, call.stop, decode if call.decode else prefill, cache)
        for call in calls
    )


def _add(ways: list[Way], skipped: list[VariantAudit], way: Way) -> None:
    if way.segments[0].cache is not FP32 and len(way.segments) > MOST_CALLS:
        reason = (
            f"more than {MOST_CALLS} calls through a {way.segments[0].cache.name} "
            "cache are not bounded; --state-precision fp32 keeps them as one"
        )
        skipped.append(not_run(way.variant, way.precision, reason))
    else:
        ways.append(way)


def not_run(variant: Variant, precision: str, reason: str) -> VariantAudit:
    """The entry of a run that there is not."""
    return VariantAudit(str(variant), precision, NOT_RUN, reason=reason)
