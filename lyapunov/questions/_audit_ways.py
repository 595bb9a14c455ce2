"""Which runs an audit is made of, and what is declared of their calls."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

from .._arguments import shown
from .._errors import ArgumentError, DumpError, UsageError
from ..formats import state_format_named
from ..implementations import AbstractImplementation, Execution, implementation_named
from ..implementations._compiled import compiled, not_compiled
from ..implementations._registry import audited, sources_hint
from ..implementations._segment import Segment, merged
from ..implementations._ways import Variant, union, usual_variants
from ..implementations.dump._logits import SeenLogits
from ..implementations.dump.file import File
from ..models import Model
from ..results._audit import NOT_RUN, VariantAudit
from ..sublayers.config import NetworkConfig


# Calls through a cache below fp32 are bounded one by one, each compiled apart.
MOST_CALLS = 16


class Way(NamedTuple):
    """One run to audit: its trace and what was declared of its calls."""

    variant: Variant
    precision: str
    segments: tuple[Segment, ...]
    trace: Any
    """None where no sublayer was seen."""
    logits: SeenLogits | None = None
    """Where they are not in the trace."""
    dump: File | None = None
    """Where it is from."""


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
    pair = tuple(
        # chunks that are counted from the text's start are so from where it begins
        one.begun(dump.begins_at)
        for one in _executions(
            flow, model, config(model.config), dump.precision, dump.state_precision
        )
    )
    ways, skipped = [], []
    for name, variant in dump.runs.items():
        if wanted is not None and variant not in wanted:
            continue
        run = File(dump.path, name)
        segments = _segments(
            variant,
            dump.tokens.shape[1],
            *pair,
            first_is_step=flow.first_is_step,
            rest_is_step=flow.rest_is_step,
        )
        segments = _steps_joined(segments)
        if pair[0].behind(variant.in_front(dump.tokens.shape[1])) is not pair[0]:
            reason = (
                f"{dump.implementation} sums decays through packed texts, and a dump "
                "does not say how far in the one in front: send the request alone"
            )
            skipped.append(not_run(variant, dump.precision, reason))
            continue
        if not run.has_layers:
            way = Way(variant, dump.precision, segments, None, run.logits, run)
            ways.append(way)
            continue
        seen = run.logits
        logits = None if seen is None or seen.everywhere else seen
        trace = run.trace(model)
        way = Way(variant, dump.precision, segments, trace, logits, run)
        _add(model, ways, skipped, way)
    return ways, skipped


def ways_of_source(
    model: Model, source: str, ids, precisions, variants, state_precision
) -> tuple[list[Way], list]:
    """The runs that an implementation has of a text, and why not the others.

    **Raises:** `UsageError` where no implementation of that name is audited.
    """
    implementation = audited(source)
    seq = ids.shape[1]
    chunk = _own_chunk(model.config) if implementation.caches_in_calls else None
    tried = usual_variants(seq, chunk) if variants is None else union(variants)
    ways, skipped = [], []
    for precision in precisions:
        pair = _executions(
            implementation, model, model.config, precision, state_precision
        )
        runner = implementation.runner(pair[0])
        told: set[str] = set()
        for variant in tried:
            reason = _refused(implementation, variant)
            if reason is not None:
                # of the usual ones a kind is told once, whatever its numbers
                if variants is not None or variant.kind not in told:
                    skipped.append(not_run(variant, precision, reason))
                told.add(variant.kind)
                continue
            rest = implementation.rest_is_step
            segments = _segments(variant, seq, *pair, rest_is_step=rest)
            trace = runner.trace(model, ids, variant, segments)
            _add(model, ways, skipped, Way(variant, precision, segments, trace))
    return ways, skipped


def _own_chunk(config: NetworkConfig) -> int:
    """Tokens of a scan's chunk; of a Mamba-1 those that its kernel takes at a time."""
    own = (getattr(one, "chunk", None) for one in config.sublayers if one.recurrent)
    return next((chunk for chunk in own if chunk), 2048)


def _refused(implementation: AbstractImplementation, variant: Variant) -> str | None:
    """Why a text is not run so; None where it is."""
    if variant.kind in implementation.ways:
        return None
    unsaid = f"{implementation.name} does not say whether it runs texts so"
    return implementation.refused_ways.get(variant.kind, unsaid)


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
    in_calls = state if implementation.caches_in_calls else None
    return (
        promised(mode="prefill", state_precision=in_calls),
        promised(mode="decode", state_precision=state),
    )


def _segments(
    variant: Variant,
    seq: int,
    prefill: Execution,
    decode: Execution,
    *,
    first_is_step: bool = True,
    rest_is_step: bool = True,
) -> tuple[Segment, ...]:
    """The calls of a run, each with what is declared of it; steps that are made here
    begin with a cache of no token."""
    variant.check(seq)
    if variant.kind == "drafts":
        decode = decode.in_windows(variant.kept)
    if variant.kind == "compiled":
        prefill = compiled(prefill)
    prefill = prefill.behind(variant.in_front(seq))
    cache = state_format_named(decode.state_precision)
    return tuple(
        Segment(call.start, call.stop, decode if call.decode else prefill, cache)
        for call in variant.calls(
            seq, first_is_step=first_is_step, rest_is_step=rest_is_step
        )
    )


def _steps_joined(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Steps one after another as one entry: each of them rounds the state anew."""
    found: list[Segment] = []
    for one in segments:
        last = found[-1] if found else None
        if last and last.execution is one.execution and one.execution.mode == "decode":
            found[-1] = dataclasses.replace(last, stop=one.stop)
        else:
            found.append(one)
    return tuple(found)


def _add(model: Model, ways: list[Way], skipped: list[VariantAudit], way: Way) -> None:
    last = way.segments[-1]
    if last.execution.compiled:
        reason = not_compiled(model.config, last.stop)
        if reason is not None:
            skipped.append(not_run(way.variant, way.precision, reason))
            return
    for sizes in set(model.config.sublayers):
        if len(merged(way.segments, sizes)) > MOST_CALLS:
            cache = way.segments[0].cache
            reason = f"more than {MOST_CALLS} calls " + (
                f"through a {cache.name} cache are not bounded; --state-precision fp32 "
                "keeps them as one"
                if sizes.joins_calls
                else f"are not bounded of {sizes.kind}, each of which is its own; "
                "longer chunks are fewer"
            )
            skipped.append(not_run(way.variant, way.precision, reason))
            return
    ways.append(way)


def not_run(variant: Variant, precision: str, reason: str) -> VariantAudit:
    """The entry of a run that there is not."""
    return VariantAudit(str(variant), precision, NOT_RUN, reason=reason)
