"""What a changed weight set did: findings, and a sentence for verdict and advice."""

import math
from collections.abc import Iterator, Sequence

from lyapunov.findings._catalogue import finding_of
from lyapunov.findings._logit_limits import changed_share
from lyapunov.results._check import AdapterCoverage, Finding, ParameterChangeReport


def change_advice(changes: Sequence[ParameterChangeReport]) -> list[str]:
    """A sentence on each weight set that was asked about, in order."""
    return [f"{_subject(change)} {_told(change)}." for change in changes]


def change_clause(changes: Sequence[ParameterChangeReport]) -> str:
    """What the verdict adds to its own words: the weight set that changes most."""
    if not changes:
        return ""
    worst = max(changes, key=lambda change: changed_share(change.output))
    subject = _subject(worst)
    clause = f"; {subject[:1].lower()}{subject[1:]} {_flips(worst)}"
    return f"{clause}, most of {len(changes)} weight sets" if changes[1:] else clause


def _subject(change: ParameterChangeReport) -> str:
    noun = {"adapter": "adapter", "checkpoint": "checkpoint"}.get(change.kind)
    return f"The {noun} {change.name}" if noun else f"The weights {change.name}"


def _flips(change: ParameterChangeReport) -> str:
    verb = "changes" if change.kind in ("adapter", "checkpoint") else "change"
    output = change.output
    if nothing_differs(change):
        return f"{verb} nothing"
    return f"{verb} {output.argmax_flips:,} of {output.argmax_total:,} top tokens"


def _told(change: ParameterChangeReport) -> str:
    if nothing_differs(change):
        return f"{_flips(change)}: no weight that was compared differs"
    output = change.output
    parts = [_flips(change)]
    if output.kl_mean is not None and math.isfinite(output.kl_mean):
        parts.append(f"mean KL {output.kl_mean:.2g} nats")
    moved = output.measured_rel_l2
    if moved is not None and math.isfinite(moved):
        parts.append(f"logits moved by {moved:.2g} of their size")
    return ", ".join(parts)


def nothing_differs(change: ParameterChangeReport) -> bool:
    """Whether no weight differs, as far as was looked, and no logit moves."""
    compared = [
        *change.outside,
        *(name for row in change.layers for name in row.weights),
    ]
    # of a head of zeros no relative distance is defined
    still = 0.0 in (change.output.measured_rel_l2, change.output.measured_max)
    return not compared and still


def coverage_gaps(coverage: AdapterCoverage) -> list[str]:
    """What an adapter leaves out that its author may not know; empty where nothing.

    Layers that the settings choose are no gap, unless no recurrence is among them.
    """
    c, gaps = coverage, []
    meant = c.layers_chosen and c.recurrent_touched
    if c.recurrent_touched < c.recurrent_total and not meant:
        gaps.append(
            f"changes {c.recurrent_touched} of {c.recurrent_total} recurrent sublayers "
            f"({c.sublayers_touched} of {c.sublayers_total} sublayers)"
        )
    if c.names_absent:
        names = ", ".join(c.names_absent)
        gaps.append(f"its settings name {names}, no module of the base")
    if c.names_without_weights:
        names = ", ".join(c.names_without_weights)
        gaps.append(f"its settings name {names}, for which it has no weights")
    if c.zero_updates:
        gaps.append(f"{c.zero_updates} of its {c.updates} updates are zero")
    return gaps


def change_findings(change: ParameterChangeReport) -> Iterator[Finding]:
    """Violations of its bounds, and what an adapter leaves out."""
    for layer in change.layers:
        if layer.violations:
            message = (
                f"changed weights {change.name}: {layer.violations:,} of "
                f"{layer.elements_total:,} elements above the bound"
            )
            many = float(layer.violations)
            yield finding_of("LYA003", layer.layer, message, many, 0.0, change.name)
    if change.coverage is not None:
        yield from coverage_findings(change.name, change.coverage)


def coverage_findings(name: str, coverage: AdapterCoverage) -> Iterator[Finding]:
    """What an adapter leaves out; known without a token."""
    if gaps := coverage_gaps(coverage):
        touched = float(coverage.recurrent_touched), float(coverage.recurrent_total)
        message = f"the adapter {name}: {'; '.join(gaps)}"
        yield finding_of("LYA019", None, message, *touched, name)
