"""Findings: stable codes, when each fires, and what they add up to.

Pure functions of the report's data classes: no checkpoint, no terminal, no arrays.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lyapunov.findings._advice import recommendation, state_to_keep, weights_to_run
from lyapunov.findings._benchmark_noise import benchmark_note
from lyapunov.findings._catalogue import CATALOGUE, ERROR, FindingKind, finding_of
from lyapunov.findings._changes import change_findings
from lyapunov.findings._checkpoint_findings import (
    decay_findings,
    exponent_findings,
    looks_untrained,
    loss_findings,
    overflowed,
    untrained_finding,
)
from lyapunov.findings._logit_limits import lost
from lyapunov.findings._verdict import (
    bounded_share,
    check_codes,
    select_findings,
    unchecked,
    verdict,
)
from lyapunov.formats._precision import Precision
from lyapunov.formats._table import FORMAT_TABLE, NARROW_RANGE
from lyapunov.implementations._flags import serving_flags
from lyapunov.implementations._stacks import Asked, as_served
from lyapunov.results._check import (
    Exponents,
    Finding,
    KeyExpansion,
    LayerDivergence,
    LayerExponents,
    ParameterChangeReport,
    PrecisionReport,
    ReferenceLoss,
)


__all__ = [
    "CATALOGUE",
    "FindingKind",
    "advice",
    "bounded_share",
    "check_codes",
    "find",
    "recommendation",
    "select_findings",
    "unchecked",
    "verdict",
]

STATE_NAMES = frozenset({"state", "states", "h", "ssm_state"})
"""Stored tensors that have the state's format instead of the execution's."""

HEADROOM = 8.0
"""Range is at risk below this factor to overflow: three binades, about what
separates the largest activation of one text from that of another."""

DAMAGED = ("LYA008", "LYA017", "LYA020")
"""Warnings about a checkpoint that nobody should serve as it is, in any format."""

STAGNANT = 0.05
"""Share of lost state updates from which a layer counts as stagnant."""

CLIPPED = 1e-3
"""Share of what products read at the end of a fixed scale from which it is no hint."""

GROWN = math.log(2)
"""Log of the growth over a stretch of tokens from which expanding keys are more than
the last bits of single steps."""

SAME_FUNCTION = 2.0**-24
"""Relative distance of logits up to which two fp64 runs count as one function: the
share that the bounds add for the reference's own error."""


def find(
    exponents: Exponents,
    precisions: Sequence[PrecisionReport],
    settings: Mapping[str, Any] | None = None,
    changes: Sequence[ParameterChangeReport] = (),
    reference: ReferenceLoss | None = None,
) -> list[Finding]:
    """Find all that the user should know, errors first, then by code and layer.

    **Arguments:**

    - `exponents`: the checkpoint's exponents.
    - `precisions`: one entry per execution; may be empty.
    - `settings`: the check's settings; `state_precision` is read where no
        execution names the state's format.
    - `changes`: changed weight sets, for violations of their bounds.
    - `reference`: the reference's loss on the tokens.

    **Returns:**

    A new list of findings.
    """
    states: dict[str, int] = {}
    for one in precisions:
        every = states.get(one.state_precision, one.state_stored_every)
        states[one.state_precision] = min(every, one.state_stored_every)
    if not states:
        states = {(settings or {}).get("state_precision") or "fp32": 1}
    found: list[Finding] = []
    untrained = looks_untrained(exponents, reference)
    if untrained:
        found.append(untrained_finding(len(exponents.layers)))
    for layer in exponents.layers:
        found += exponent_findings(layer, untrained)
        for state in states:
            found += decay_findings(layer, state, states[state])
    for precision in precisions:
        rows = {layer.layer: layer for layer in exponents.layers}
        for layer in precision.layers:
            found += _of_divergence(layer, precision, rows.get(layer.layer))
        found += _of_output(precision)
    found += _of_functions(precisions)
    for change in changes:
        found += change_findings(change)
    if reference is not None:
        found += loss_findings(reference, untrained=untrained)
    return sorted(found, key=_order)


def _order(finding: Finding) -> tuple[bool, str, str, int]:
    layer = -1 if finding.layer is None else finding.layer
    return finding.severity != ERROR, finding.code, finding.precision or "", layer


def _of_divergence(
    layer: LayerDivergence, precision: PrecisionReport, row: LayerExponents | None
) -> Iterator[Finding]:
    name = precision.precision
    if layer.non_finite:
        values = _are(layer.non_finite, "value", f" of the {name} execution")
        many = float(layer.non_finite)
        yield finding_of("LYA002", layer.layer, f"{values} not finite", many, 0.0, name)
    if layer.violations:
        yield _violation(layer, name)
    yield from _range(layer, precision, row)
    for site, share in (layer.clipped or {}).items():
        if share > 0:
            yield _clipped(layer.layer, site, share, name)
    if layer.expansion is not None:
        yield _expansion(layer.layer, layer.expansion, name)
    state = precision.state_precision
    # rounded stochastically, an update below half a unit is kept on average
    if Precision.named(state).stochastic or layer.stagnation is None:
        return
    if layer.stagnation >= STAGNANT:
        message = (
            f"{layer.stagnation:.1%} of the state's updates are below half a unit in "
            f"its last place in {state}"
        )
        share = layer.stagnation
        yield finding_of("LYA007", layer.layer, message, share, STAGNANT, name)


def _clipped(layer: int, site: str, share: float, name: str) -> Finding:
    """Of a few values, such as that which the scale was made for, a hint."""
    message = (
        f"{share:.2g} of {site} is clipped: it stands at the end of the scale that the "
        "format was given"
    )
    finding = finding_of("LYA025", layer, message, share, CLIPPED, name)
    return replace(finding, hint=share < CLIPPED)


def _expansion(layer: int, found: KeyExpansion, name: str) -> Finding:
    """Of a step or two, or of rounding that cancels, a hint; else a warning."""
    where = ", ".join(map(str, found.tokens[:8]))
    more = ", ..." if len(found.tokens) > 8 else ""
    message = (
        f"keys stored in {name} let {found.steps:,} of {found.steps_total:,} steps of "
        f"heads expand, by up to {math.expm1(found.largest):.2g} each, at tokens "
        f"{where}{more}; over tokens {found.start} to {found.stop - 1} of head "
        f"{found.head} by at most a factor {math.exp(found.growth):.3g}"
    )
    finding = finding_of("LYA022", layer, message, found.growth, GROWN, name)
    return replace(finding, hint=found.growth < GROWN)


def _violation(layer: LayerDivergence, name: str) -> Finding:
    above = layer.violations or 0
    message = f"{_counted(above, 'element')} above the bound"
    if layer.elements_total:
        message = f"{above:,} of {layer.elements_total:,} elements above the bound"
    value = limit = None
    first = layer.first_violation
    if first:
        value, limit = first.get("measured"), first.get("bound")
        where = ", ".join(
            f"{key} {first[key]}"
            for key in ("batch", "token", "channel")
            if first.get(key) is not None
        )
        message += f"; first in {first.get('tensor', 'the output')} at {where}"
        if value is not None and limit is not None:
            message += f": measured {value:.3g}, bound {limit:.3g}"
    return finding_of("LYA003", layer.layer, message, value, limit, name)


def _range(
    layer: LayerDivergence, precision: PrecisionReport, row: LayerExponents | None
) -> Iterator[Finding]:
    """Distance from overflow: stored tensors in the execution's format, the state
    in its own. The reference's figures stand in where the execution has none."""
    stored = layer.max_abs_stored
    if stored is None and row is not None:
        reference = {"state": row.max_abs_state, "output": row.max_abs_output}
        stored = {k: v for k, v in reference.items() if v is not None}
    worst: tuple[float, str, float, str] | None = None
    for tensor, value in (stored or {}).items():
        if tensor not in STATE_NAMES:
            form = Precision.named(precision.precision).format
        else:
            held = Precision.named(precision.state_precision)
            if held.scaled:  # the scale follows the largest state
                continue
            form = held.format
        limit = FORMAT_TABLE[form].largest if form in FORMAT_TABLE else math.inf
        if limit > NARROW_RANGE or not math.isfinite(value):
            continue
        if value * HEADROOM <= limit:
            continue
        if worst is None or value / limit > worst[0]:
            worst = (value / limit, tensor, value, form)
    if worst is not None:
        used, tensor, value, form = worst
        far = (
            f"a factor {1 / used:.2g} from overflow in {form}"
            if used < 1
            else f"beyond the largest value of {form}"
        )
        limit, name = FORMAT_TABLE[form].largest, precision.precision
        message = f"{tensor} reaches {value:.3g}, {far} ({limit:g})"
        yield finding_of("LYA005", layer.layer, message, value, limit, name)


def _of_output(precision: PrecisionReport) -> Iterator[Finding]:
    output, name = precision.output, precision.precision
    if output.reference_non_finite:
        many = output.reference_non_finite
        message = f"{_are(many, 'logit')} not finite in the reference"
        yield finding_of("LYA002", None, message, float(many), 0.0)
    elif output.non_finite or overflowed(output.kl_max):
        message = f"the logits of the {name} execution are not finite"
        if output.non_finite:
            message = (
                f"{_are(output.non_finite, 'logit')} not finite in the {name} execution"
            )
        many = float(output.non_finite) or None
        yield finding_of("LYA002", None, message, many, 0.0, name)
    reasons = lost(output)
    if reasons:
        _, value, limit = reasons[0]
        told = ", and ".join(words for words, _, _ in reasons)
        message = f"the logits of the {name} execution are lost: {told}"
        yield finding_of("LYA015", None, message, value, limit, name)
    decisions = output.decisions
    if decisions is not None and decisions.certified_flipped:
        many = decisions.certified_flipped
        message = (
            f"{_counted(many, 'top token')} of {decisions.certified_stable:,} that are "
            "certified stable changed"
        )
        yield finding_of("LYA003", None, message, float(many), 0.0, name)
    if output.argmax_flips:
        message = f"{output.argmax_flips:,} top tokens change"
        if output.argmax_total:
            share = output.argmax_flips / output.argmax_total
            message = (
                f"{output.argmax_flips:,} of {output.argmax_total:,} top tokens "
                f"change ({share:.2%})"
            )
        if output.argmax_ties:
            ties = _counted(output.argmax_ties, "tie")
            message += f"; {ties} not counted, between equal leaders of the reference"
        flips = float(output.argmax_flips)
        yield finding_of("LYA004", None, message, flips, 0.0, name)


def _of_functions(precisions: Sequence[PrecisionReport]) -> Iterator[Finding]:
    """Other functions than the model's, each once whatever formats it runs in."""
    found = [p.function for p in precisions if p.function is not None]
    for one in {(f.implementation, f.mode, *f.dt_limit): f for f in found}.values():
        # fp64 rounds as well: equal functions need not agree in the last bits
        if one.rel_l2 is None or one.rel_l2 <= SAME_FUNCTION:
            continue
        low, high = one.dt_limit
        own = f"limits dt to [{low:g}, {high:g}]"
        if (low, high) == (0.0, math.inf):
            own = "does not limit dt"
        apart = "logits"
        if one.argmax_total is None:
            apart = "streams behind the last sublayer"
        message = (
            f"{one.implementation} {own} in {one.mode}, the checkpoint's config to "
            f"[{one.model_dt_limit[0]:g}, {one.model_dt_limit[1]:g}]: in fp64 the "
            f"{apart} of the two functions are {one.rel_l2:.2g} apart "
            "(relative L2)"
        )
        if one.kl_mean is not None:
            message += f", KL {one.kl_mean:.2g} nats a token"
        if one.argmax_total:
            message += f", {one.argmax_flips:,} of {one.argmax_total:,} top tokens"
        yield finding_of("LYA018", None, message, one.rel_l2, SAME_FUNCTION)


def _are(n: int, noun: str, of: str = "") -> str:
    return f"{_counted(n, noun)}{of} {'is' if n == 1 else 'are'}"


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def advice(
    exponents: Exponents,
    precisions: Sequence[PrecisionReport],
    findings: Sequence[Finding],
    changes: Sequence[ParameterChangeReport] = (),
    asked: Asked | None = None,
) -> dict[str, Any]:
    """Tell what to do, as fields of `Summary`: `recommendation`, `flags`, `served` and
    `benchmark_note`. Flags are given only where nothing is broken.

    **Arguments:**

    - `asked`: the checkpoint as serving stacks look at it, or None.
    """
    broken = any(
        f.severity == ERROR or (f.code in DAMAGED and not f.hint) for f in findings
    )
    state = None if broken else state_to_keep(precisions, findings)
    weights = None if broken else weights_to_run(precisions, findings)
    form = None if weights is None else Precision.named(weights).format
    return {
        "recommendation": recommendation(exponents, precisions, findings, changes),
        "flags": serving_flags(precisions, state, weights, asked),
        "served": [] if asked is None else as_served(asked, form, precisions),
        "benchmark_note": benchmark_note(precisions),
    }
