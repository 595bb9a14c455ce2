"""Rounding or bug: one text run in several ways, each held to its own bounds.

In exact arithmetic every way to run a text gives the same numbers. Whether what an
implementation makes of them is rounding is not told from the distance between two runs
but from each run's distance from exact arithmetic: sublayer by sublayer, on the run's
own input, against the certified bounds of the declared execution (T0 for stored
tensors that are seen, T1 for the output). A distance above its bound is no rounding.
Below it, an error far beyond what random roundings give is suspicious.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._arguments import progress_or_none
from .._errors import UsageError
from .._version import __version__
from .._xla import demand_flags
from ..arithmetic.random_keys import random_key
from ..bounds.embedding import embedded
from ..bounds.local import hold, with_operator_norms
from ..bounds.segments import FLOW_ORDER, audit_sublayer
from ..findings._known_defects import with_known
from ..findings._verdict import BOUNDED_SHARE, Verdict
from ..implementations import Execution, Reference
from ..implementations._compiled import Versions
from ..implementations._implementation import RefusedError
from ..implementations._registry import audited
from ..implementations._segment import merged
from ..implementations._trace import IN_FRONT, HeadRecord
from ..implementations._ways import Variant, variants_asked
from ..models import Model
from ..models._load import demand_head, model_of
from ..models._tokens import Tokens
from ..results._audit import (
    BUG,
    CONSISTENT,
    NOT_RUN,
    REFERENCE,
    SUSPICIOUS,
    UNBOUNDED,
    AuditReport,
    FirstViolation,
    LayerAudit,
    LogitsAudit,
    VariantAudit,
)
from . import _compare
from ._audit_hand_overs import with_hand_overs
from ._audit_logits import nothing_seen, with_seen_logits
from ._audit_verdict import (
    Z_LIMIT,
    assumptions,
    audit_findings,
    audit_summary,
)
from ._audit_ways import (
    Way,
    audit_source,
    not_run,
    open_dump,
    ways_of_dump,
    ways_of_source,
)
from ._environment import environment
from ._quantisation import quantisation_assumptions, quantisation_findings
from ._request import checkpoint_facts, chosen_tokens, tokens_facts
from ._settings import checked_settings


def audit(
    model: Any = None,
    source: str | Path = "transformers",
    tokens=None,
    *,
    precisions: str | Sequence[str] = ("bf16",),
    variants: str | Sequence[str | Variant] | None = None,
    state_precision: str | None = None,
    n_probes: int = 4,
    seed: int = 0,
    progress=None,
    fail_on: str = "error",
    select: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    exit_zero: bool = False,
) -> AuditReport:
    """Whether what an implementation does is rounding or a bug.

    **Arguments:**

    - `model`: as for `check`.
    - `source`: `transformers` or another of `lyapunov.implementations.IMPLEMENTATIONS`
      that has ways, which are run here; or the path of a dump
      (`lyapunov.implementations.dump.file`).
    - `tokens`: (seq) or (batch, seq) integers, or `models.Tokens`, as for `check`; a
      dump has its own. Ways with padding or company run the first sequence.
    - `precisions`: of the executions; a dump has its own.
    - `variants`: ways to run the text, such as `steps`, `chunks:61,rest` or `compiled`
      (by `torch.compile`); None is every kind but the last. Of a dump: which of its
      runs, by kind; None is all.
    - `state_precision`: of the cached state; None is the implementation's own.
    - `n_probes`: draws that the sigma of z is estimated from.

    **Raises:** `LyapunovError` with a hint, for whatever cannot be audited.
    """
    named = dict(locals())  # the front is flat; a report repeats it
    for beside in ("model", "tokens", "progress"):
        del named[beside]
    began = time.perf_counter()
    named["source"] = audit_source(source)
    named["variants"] = None if variants is None else variants_asked(variants)
    settings = checked_settings(named)
    precisions, variants = settings["precisions"], settings["variants"]
    counts = Verdict.among(settings)
    progress = progress_or_none(progress)
    demand_flags()
    model = model_of(model)
    demand_head(model)
    implementation = audited(source)
    recorded = bool(implementation.suffixes)
    dump = open_dump(source, tokens) if recorded else None
    if dump is None:
        given = chosen_tokens(model, tokens, seed)
    else:
        given = Tokens(dump.tokens, f"the dump {dump.path.name}")
    ids = given.ids
    with jax.enable_x64(True):
        if dump is not None:
            ways, skipped = ways_of_dump(model, dump, variants)
        else:
            ways, skipped = ways_of_source(
                model, str(source), ids, precisions, variants, state_precision
            )
        found = _run(model, ids, ways, n_probes, seed, progress)
        found = with_hand_overs(model, ways, found)
    if dump is None:
        family = model.layout.architecture
        sublayers = model.config.sublayers
        found = with_known(found, implementation, family, ids.shape[1], sublayers)
    results = [*found, *skipped]
    if all(r.verdict == NOT_RUN for r in results):
        raise UsageError(
            f"{source} ran the text in none of these ways: {results[0].reason}",
            hint="--audit transformers tries every kind",
        )
    findings = audit_findings(results) + quantisation_findings(model.layout)
    findings = counts.kept(findings)
    return AuditReport(
        tool={"name": "lyapunov-check", "version": __version__},
        settings=settings,
        environment=environment(),
        assumptions=[*assumptions(ways), *quantisation_assumptions(model.layout)],
        checkpoint=checkpoint_facts(model),
        tokens=tokens_facts(given),
        source=str(source),
        variants=results,
        findings=findings,
        summary=audit_summary(results, findings, counts, time.perf_counter() - began),
    )


# ---- the runs


def _run(model, ids, ways, n_probes, seed, progress) -> list[VariantAudit]:
    keys = jax.random.split(random_key(seed), n_probes)
    if progress is not None:
        # all that are known by their logits alone go through the network together
        passes = sum(way.trace is not None for way in ways)
        passes += any(way.logits is not None for way in ways)
        progress.start(passes * len(model.sublayers), "auditing")
    results: list[VariantAudit] = []
    heads: dict[int, HeadRecord] = {}
    for way in ways:
        try:
            if way.trace is None:
                result, head = nothing_seen(way), None
            else:
                result, head = _one(model, ids, way, keys, progress)
        except RefusedError as error:
            result, head = not_run(way.variant, way.precision, error.message), None
        if head is not None:
            heads[len(results)] = head
        results.append(result)
    results = _with_logits(model, ids, results, heads)
    return with_seen_logits(model, ids, ways, results, n_probes, seed, progress)


def _one(model: Model, ids, way: Way, keys, progress):
    """One run, sublayer by sublayer."""
    layers, head, tokens = [], None, 0
    execution = way.segments[0].execution
    versions = Versions(execution)
    for record in way.trace:
        if isinstance(record, HeadRecord):
            head = record
            break
        layer = record.layer
        sizes: Any = model.config.sublayers[layer]
        # what is declared of this kind of sublayer
        segments = merged(
            [
                dataclasses.replace(s, execution=s.execution.at(record))
                for s in way.segments
            ],
            sizes,
        )
        held, originals = _parameters(model, layer, segments)
        if IN_FRONT in record.observed:
            begun = {"in_front": jnp.asarray(record.observed[IN_FRONT])}
            held = [dataclasses.replace(p, **begun) for p in held]
            originals = [dataclasses.replace(p, **begun) for p in originals]
        start = model.start(held[0])
        if way.dump is not None:
            start = way.dump.start(model, layer, start)
        given = record, held, originals, start, keys
        checked = audit_sublayer(segments, sizes, *given, versions.read(record))
        wrong = _embedding(model, ids, execution, record) if layer == 0 else None
        layers.append(_layer(record, checked, wrong))
        tokens = record.output.shape[0] * record.output.shape[1]
        if progress is not None:
            progress.advance(1, f"{way.variant}, layer {layer}")
    return _variant(way, layers, tokens), head


def _parameters(model: Model, layer: int, segments) -> tuple[list, list]:
    """A sublayer's parameters for each segment: as its execution holds them, and as the
    checkpoint does, in the function that it computes. Equal ones are made once."""
    made: dict[tuple, tuple] = {}
    found = []
    for one in (segment.execution for segment in segments):
        key = one.dt_limit, *((name, f.name) for name, f in one.parameters.items())
        if key not in made:
            held = with_operator_norms(model.parameters(layer, one))
            exactly = model.held_exactly(layer, one)
            exact = held if exactly else model.parameters(layer, function=one)
            made[key] = held, exact
        found.append(made[key])
    return [held for held, _ in found], [exact for _, exact in found]


def _embedding(model: Model, ids, execution: Execution, record):
    """The first element of the stream that is not the token's row of the embedding."""
    batch = record.residual.shape[0]
    stream = record.residual + record.hidden
    expected = embedded(model, ids[:batch], execution, stored=True)
    held = hold(stream, expected)
    first = held.first(expected.shape)
    if first is None:
        return None
    return int(np.sum(held.violations)), FirstViolation(0, "embedding", *first)


def _layer(record, checked, wrong) -> LayerAudit:
    order = [site for site in FLOW_ORDER if site in checked.tensors]
    tensors = [(site, checked.tensors[site]) for site in order]
    output = checked.output
    first, count = None, 0
    if wrong is not None:
        count, first = wrong
    for name, held in [*tensors, ("sublayer output", output)]:
        count += int(np.sum(held.violations))
        found = held.first(record.stored.get(name, record.output).shape)
        if found and first is None:
            first = FirstViolation(record.layer, name, *found)
    place = np.unravel_index(np.argmax(checked.z), checked.z.shape)
    ratios = [float(np.max(held.ratio)) for _, held in tensors]
    return LayerAudit(
        layer=record.layer,
        kind=record.kind,
        violations=count,
        ratio_t0=max(ratios, default=None),
        ratio_t1=float(np.max(output.ratio)),
        z=float(checked.z[place]),
        z_token=int(place[1]),
        first_violation=first,
        elements=sum(record.stored[name].size for name, _ in tensors)
        + record.output.size,
        unbounded=sum(
            int(np.sum(held.unbounded)) for held in (*checked.tensors.values(), output)
        ),
        output_bounded=1.0 - int(np.sum(output.unbounded)) / record.output.size,
    )


def _variant(way: Way, layers: list[LayerAudit], tokens: int) -> VariantAudit:
    violations = sum(layer.violations for layer in layers)
    z = max(layer.z for layer in layers)
    elements = sum(layer.elements for layer in layers)
    unbounded = sum(layer.unbounded for layer in layers)
    outputs = sum(layer.output_bounded for layer in layers) / len(layers)
    bounded = min(1.0 - unbounded / elements, outputs)
    if violations:
        verdict = BUG
    elif z > Z_LIMIT:
        verdict = SUSPICIOUS
    else:
        verdict = UNBOUNDED if bounded < BOUNDED_SHARE else CONSISTENT
    return VariantAudit(
        variant=str(way.variant),
        precision=way.precision,
        verdict=verdict,
        executions=list(dict.fromkeys(s.execution.name for s in way.segments)),
        tokens=tokens,
        violations=violations,
        ratio=max(layer.ratio_t1 for layer in layers),
        z=z,
        first_violation=next(
            (x.first_violation for x in layers if x.first_violation), None
        ),
        layers=layers,
        elements=elements,
        unbounded=unbounded,
        bounded_share=bounded,
    )


def _with_logits(model: Model, ids, results, heads) -> list[VariantAudit]:
    """Each run's logits beside the fp64 reference's and beside the whole text's."""
    if not heads:
        return results
    *_, reference = Reference().trace(model, ids)
    base: dict[str, int] = {}
    for i in heads:
        base.setdefault(results[i].precision, i)
    out = list(results)
    for i, head in heads.items():
        beside = [(REFERENCE, reference)]
        other = base[results[i].precision]
        if other != i:
            beside.append((results[other].variant, heads[other]))
        logits = [_logits(model, ids, name, other, head) for name, other in beside]
        out[i] = dataclasses.replace(results[i], logits=logits)
    return out


def _logits(model: Model, ids, name: str, base, head) -> LogitsAudit:
    first = next(iter(model.vocabulary_slices()))
    batch = len(head.logits(first.start, first.stop))
    sums = _compare.no_logits(batch, ids.shape[1])
    for rows in model.vocabulary_slices():
        against, own = (x.logits(rows.start, rows.stop) for x in (base, head))
        if len(against) > batch:
            against = np.asarray(against)[:batch]
        sums = _compare.add_logits(sums, against, own, rows)
    return _compare.logits_audit(name, sums, model.config.vocab_size)
