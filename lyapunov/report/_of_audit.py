"""What an audit found, as a document of sections."""

from dataclasses import dataclass

from lyapunov.report import _words as words
from lyapunov.report._columns import EXECUTION, of
from lyapunov.report._sections import (
    Column,
    Columns,
    Document,
    Form,
    Line,
    Note,
    Section,
    Table,
    as_it_is,
    whole,
    written,
)
from lyapunov.results._audit import (
    BUG,
    CONSISTENT,
    IN_RANGE,
    NOT_RUN,
    REFERENCE,
    SUSPICIOUS,
    UNBOUNDED,
    AuditReport,
    HandOverAudit,
    LayerAudit,
    LogitsAudit,
    VariantAudit,
)


STYLES = {
    CONSISTENT: "held",
    SUSPICIOUS: "incomplete",
    UNBOUNDED: "incomplete",
    IN_RANGE: "incomplete",
    BUG: "findings",
    NOT_RUN: "incomplete",
}
LEGEND = (
    "of bound: largest measured over certified bound of a sublayer's output (above 1 "
    "is no rounding). z: largest L2 error of an output at a token, in sigmas of random "
    "roundings (above 6 is suspicious). Layers and tokens count from 0."
)


def document(report: AuditReport) -> Document:
    """Verdict, findings, a row for each way that the text was run."""
    summary = report.summary
    counts = [f"{words.plural(summary.checked, 'way')} of running it checked"]
    if summary.skipped:
        counts.append(f"{summary.skipped} skipped")
    return Document(
        title=report.checkpoint.source,
        verdict=summary.verdict,
        word=summary.verdict,
        style=STYLES[summary.verdict],
        counts=", ".join([*counts, words.seconds(report)]),
        advice=[summary.recommendation],
        facts=[
            Line("audited", report.source),
            Line("network", words.checkpoint_sentence(report)),
            Line("tokens", words.tokens_sentence(report)),
        ],
        # each by itself: two ways with one defect are two findings
        findings=[g for f in report.findings for g in words.groups([f])],
        sections=[
            _ways(report),
            *_hand_overs(report),
            *_logits(report),
            *_layers(report),
            *written(report),
        ],
        tool=words.tool(report),
    )


_WAY = Column("run", of("variant"), as_it_is, word=True)


def _ways(report: AuditReport) -> Section:
    columns = [
        Column(
            "verdict",
            of("verdict"),
            lambda verdict, _: "rounding" if verdict == CONSISTENT else verdict,
            alarm=lambda verdict: verdict == BUG,
            word=True,
        ),
        Column("of bound", of("ratio")),
        Column("z", of("z")),
        Column("first at", _first, as_it_is, word=True, wrap=True),
    ]
    return Section(
        "Ways that the text was run",
        table=Table(report.variants, [_WAY, EXECUTION], [Columns(columns)]),
        notes=[Note(LEGEND), *map(Note, _remarks(report))],
    )


def _first(variant: VariantAudit) -> str | None:
    first = variant.first_violation
    if first is None:
        beyond = [x.first_beyond for x in variant.logits if x.first_beyond is not None]
        return f"token {beyond[0]}" if beyond and not variant.layers else None
    return f"layer {first.layer}, token {first.token}, {first.tensor}"


@dataclass(frozen=True)
class _Part:
    """One of several rows of a way that the text was run."""

    variant: str
    precision: str
    row: LayerAudit | LogitsAudit | HandOverAudit


def _parts(report: AuditReport, name: str) -> list[_Part]:
    return [
        _Part(variant.variant, variant.precision, row)
        for variant in report.variants
        for row in getattr(variant, name)
    ]


def _logits(report: AuditReport) -> list[Section]:
    rows = _parts(report, "logits")
    if not rows:
        return []
    alone = any(variant.logits and not variant.layers for variant in report.variants)
    estimated = [
        Column("sigma", of("row.sigma")),
        Column("z", of("row.z")),
        Column("z, rms", of("row.z_rms"), forms=Form.WRITTEN),
        Column("KL mean", of("row.kl_mean")),
    ]
    columns = [
        Column("against", of("row.against"), as_it_is, word=True),
        Column("rel L2", of("row.rel_l2")),
        *(estimated if alone else ()),
        Column("max", of("row.max"), forms=Form.WRITTEN),
        Column("KL max", of("row.kl_max")),
        Column("flips", of("row.flips"), whole),
        Column("ties", of("row.ties"), whole, forms=Form.WRITTEN),
    ]
    table = Table(rows, [_WAY, EXECUTION], [Columns(columns)])
    note = (
        "sigma: rel L2 that random roundings make (T3), an estimate; z: distance at a "
        "token in sigmas, above 6 is no rounding by it. Nothing here is certified."
        if alone
        else "Information, and no part of the verdict."
    )
    forms = Form.EVERY if alone else Form.WRITTEN
    return [Section("Logits", table=table, notes=[Note(note)], forms=forms)]


def _hand_overs(report: AuditReport) -> list[Section]:
    """Where calls go on from one another, of a dump."""
    rows = _parts(report, "hand_overs")
    if not rows:
        return []
    columns = [
        Column("call", of("row.call"), as_it_is),
        Column("hand-over", of("row.how"), as_it_is, word=True),
        Column("at token", of("row.token"), as_it_is),
        Column("from call", of("row.source"), as_it_is),
        Column(
            "verdict", lambda part: _copied(part.row), as_it_is,
            alarm=lambda word: word == BUG, word=True,
        ),
        Column("compared", of("row.elements"), whole),
        Column("differ", of("row.differing"), whole, alarm=lambda n: n > 0),
    ]  # fmt: skip
    table = Table(rows, [_WAY], [Columns(columns)])
    notes = [
        "what a call began with against what the call before left, and windows against "
        "the convolution's inputs, bit for bit; through int8 within half a step of a "
        "row"
    ]
    notes += [
        f"{variant.variant}: {variant.hand_overs_alike:,} more, from step to step, "
        "agreed bit for bit where the dump was written"
        for variant in report.variants
        if variant.hand_overs_alike
    ]
    notes += [
        f"{part.variant}, call {part.row.call}: {words_of}"
        for part in rows
        if isinstance(part.row, HandOverAudit)
        for words_of in (part.row.looks_like, part.row.note)
        if words_of
    ]
    return [Section("Hand-overs", table=table, notes=[Note(text) for text in notes])]


def _copied(row: HandOverAudit) -> str:
    if not row.held:
        return BUG
    return "held" if row.elements else "not seen"


def _layers(report: AuditReport) -> list[Section]:
    columns = [
        Column("layer", of("row.layer"), as_it_is),
        Column("kind", of("row.kind"), as_it_is, word=True),
        Column("above bound", of("row.violations"), whole, alarm=lambda n: n > 0),
        Column("elements", of("row.elements"), whole),
        Column("without a finite bound", of("row.unbounded"), whole),
        Column("stores, of bound", of("row.ratio_t0")),
        Column("output, of bound", of("row.ratio_t1")),
        Column("z", of("row.z")),
        Column("z at token", of("row.z_token"), whole),
    ]
    rows = _parts(report, "layers")
    if not rows:
        return []
    table = Table(rows, [_WAY, EXECUTION], [Columns(columns)])
    return [Section("Layers", table=table, forms=Form.PAGE)]


def _remarks(report: AuditReport) -> list[str]:
    """Why runs are missing, and the runs' logits beside each other."""
    reasons: dict[str, list[str]] = {}
    known: dict[str, list[str]] = {}
    for variant in report.variants:
        if variant.reason is not None:
            reasons.setdefault(variant.reason, []).append(variant.variant)
        if variant.known is not None:
            known.setdefault(str(variant.known), []).append(variant.variant)
    lines = [
        f"not run: {', '.join(dict.fromkeys(names))}: {reason}"
        for reason, names in reasons.items()
    ]
    lines += [
        f"{variant.variant} in {variant.precision}: {variant.unbounded:,} of "
        f"{variant.elements:,} elements have no finite bound"
        for variant in report.variants
        if variant.unbounded
    ]
    # each defect once, with the ways that met it
    lines += [f"{', '.join(dict.fromkeys(v))}: {text}" for text, v in known.items()]
    apart = [
        (logits.rel_l2 or 0.0, logits.flips, variant, logits.against)
        for variant in report.variants
        for logits in variant.logits
        if logits.against != REFERENCE
    ]
    if apart:
        distance, flips, variant, against = max(apart, key=lambda row: row[:2])
        lines.append(
            f"logits furthest apart: {variant.variant} and {against} in "
            f"{variant.precision}, rel L2 {words.number(distance)}, {flips} top tokens "
            "changed"
        )
    return lines
