"""What the runs of an audit add up to: findings, one verdict, one line to act on."""

import math

from ..findings._verdict import Verdict, audit_exit_code
from ..results._audit import (
    BUG,
    CONSISTENT,
    IN_RANGE,
    NOT_RUN,
    SUSPICIOUS,
    UNBOUNDED,
    AuditSummary,
    VariantAudit,
)
from ..results._check import Finding
from ._audit_ways import Way


# On right executions of trained and random models z stays below 3 (tests hold it to
# that); a run in which one token's roundings all push one way reaches sqrt(3).
Z_LIMIT = 6.0


def audit_findings(results: list[VariantAudit]) -> list[Finding]:
    """One finding for each run that is no rounding, or does not look like it."""
    findings = []
    for result in results:
        findings += _of_hand_overs(result)
        first = result.first_violation
        if first is not None:
            findings.append(
                Finding(
                    code="LYA003",
                    severity="error",
                    layer=first.layer,
                    message=f"{result.variant}: {first.tensor} is off by "
                    f"{first.measured:.3g} at token {first.token}, channel "
                    f"{first.channel}, where rounding explains {first.bound:.3g}; "
                    f"{result.violations:,} elements in all",
                    value=first.measured,
                    limit=first.bound,
                    precision=result.precision,
                )
            )
        elif result.verdict == SUSPICIOUS and not result.layers:
            findings.append(_of_logits(result))
        elif result.verdict == SUSPICIOUS:
            worst = max(result.layers, key=lambda layer: layer.z)
            findings.append(
                Finding(
                    code="LYA009",
                    severity="warning",
                    layer=worst.layer,
                    message=f"{result.variant}: the output at token {worst.z_token} is "
                    f"{worst.z:.3g} sigma of random roundings away from exact "
                    "arithmetic, within its bound",
                    value=worst.z,
                    limit=Z_LIMIT,
                    precision=result.precision,
                )
            )
    return findings


def _of_hand_overs(result: VariantAudit) -> list[Finding]:
    """One for each hand-over at which something else was taken than was left."""
    found = []
    for one in result.hand_overs:
        if one.held:
            continue
        words = "".join(f"; {x}" for x in (one.looks_like, one.note) if x)
        found.append(
            Finding(
                code="LYA023",
                severity="error",
                layer=one.first_layer,
                message=f"{result.variant}: {one}: {one.differing:,} of "
                f"{one.elements:,} elements differ{words}",
                value=float(one.differing),
                limit=0.0,
                precision=result.precision,
            )
        )
    return found


def _of_logits(result: VariantAudit) -> Finding:
    """That logits are no rounding of the reference's, of a run without sublayers."""
    held = result.logits[0]
    like = "" if held.looks_like is None else f"; {held.looks_like}"
    return Finding(
        code="LYA021",
        severity="error",
        layer=None,
        message=f"{result.variant}: the logits at token {held.z_token} are "
        f"{held.z:.3g} sigma of random roundings away from exact arithmetic, "
        f"{held.beyond:,} of {held.tokens:,} tokens above {Z_LIMIT:g}, the first "
        f"{held.first_beyond}; KL {held.kl_mean:.3g} nats a token{like}",
        value=held.z,
        limit=Z_LIMIT,
        precision=result.precision,
    )


def audit_summary(
    results: list[VariantAudit],
    findings: list[Finding],
    counts: Verdict,
    seconds: float,
) -> AuditSummary:
    """The worst verdict, and the exit code that follows from the findings."""
    ran = [r for r in results if r.verdict != NOT_RUN]
    bad = [r for r in ran if r.verdict == BUG]
    odd = [r for r in ran if r.verdict == SUSPICIOUS]
    if bad:
        verdict, named = BUG, bad
    else:
        verdict, named = (SUSPICIOUS, odd) if odd else (CONSISTENT, ran)
        blind = [r for r in ran if r.verdict == UNBOUNDED]
        unseen = [r for r in ran if r.verdict == IN_RANGE]
        if (blind or unseen) and not odd:
            verdict, named = (UNBOUNDED, blind) if blind else (IN_RANGE, unseen)
    return AuditSummary(
        verdict=verdict,
        recommendation=_recommendation(verdict, named, len(ran)),
        checked=len(ran),
        skipped=len(results) - len(ran),
        seconds=seconds,
        exit_code=audit_exit_code(verdict, findings, counts),
    )


def _recommendation(verdict: str, named: list[VariantAudit], ran: int) -> str:
    """One line that a user can act on."""
    names = ", ".join(dict.fromkeys(r.variant for r in named))
    if verdict == CONSISTENT:
        most = max(r.ratio or 0.0 for r in named)
        all_of_it = "the run stays" if ran == 1 else f"all {ran} runs stay"
        text = (
            f"rounding: {all_of_it} within the bounds, at most {most:.2g} "
            f"times the bound and {max(r.z or 0.0 for r in named):.2g} sigma"
        )
        handed = sum(len(r.hand_overs) + r.hand_overs_alike for r in named)
        if handed:
            text += f"; {handed} hand-overs bit for bit"
        unbounded = sum(r.unbounded for r in named)
        if unbounded:
            elements = sum(r.elements for r in named)
            text += f"; {unbounded:,} of {elements:,} elements have no finite bound"
        return text
    if verdict == UNBOUNDED:
        share = min(r.bounded_share or 0.0 for r in named)
        return (
            f"not decided: {names}: as few as {math.floor(100 * share)} % of the "
            "elements have a finite bound, and none of these exceeds it"
        )
    if verdict == IN_RANGE:
        most = max(r.z or 0.0 for r in named)
        return (
            f"{names}: logits as random roundings make them, at most {most:.2g} sigma "
            "at a token; no sublayer was seen, so nothing is certified: "
            "layer.I.input and layer.I.output in the dump would be held to bounds"
        )
    if verdict == SUSPICIOUS and not any(r.layers for r in named):
        return (
            f"no rounding by all estimates: {names}; no bound was held, since no "
            "sublayer was seen"
        )
    if verdict == SUSPICIOUS:
        return f"look at {names}: within the bounds, but not like random rounding"
    lost = [one for r in named for one in r.hand_overs if not one.held]
    if lost:
        more = f", and at {len(lost) - 1} more hand-overs" if len(lost) > 1 else ""
        why = f": {lost[0].looks_like}" if lost[0].looks_like else ""
        return f"not rounding: {names}; {lost[0]}{why}{more}"
    first = named[0].first_violation
    assert first is not None
    times = first.measured / first.bound if first.bound > 0 else float("inf")
    text = (
        f"not rounding: {names}; first at layer {first.layer}, token {first.token}, "
        f"{first.tensor}: {times:.2g} times its bound"
    )
    known = list(dict.fromkeys(r.variant for r in named if r.known is not None))
    return f"{text}; a known defect: {', '.join(known)}" if known else text


def assumptions(ways: list[Way]) -> list[str]:
    """What the verdict rests on, each line once."""
    lines = [
        "each run is held to exact arithmetic on its own inputs, sublayer by sublayer; "
        "two runs are never held to each other",
        "only the text's own tokens count, not padding nor company in a batch",
        f"suspicious: an output's L2 error at a token above {Z_LIMIT:g} times its root "
        "mean square under random roundings of the declared stores",
    ]
    if any(way.logits is not None for way in ways):
        lines.append(
            "logits alone: sigma is what random roundings of the declared stores do to "
            f"them (T3), an estimate; a token above {Z_LIMIT:g} is no rounding by it, "
            "and below nothing is certified"
        )
    for way in ways:
        for segment in way.segments:
            execution = segment.execution
            lines += [f"{execution.name}: {text}" for text in execution.assumptions]
    return list(dict.fromkeys(lines))
