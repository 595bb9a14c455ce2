"""What a check found, as a document of sections."""

import functools
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import Any

from lyapunov.report import _columns as columns, _legends as legends, _words as words
from lyapunov.report._headline import headline
from lyapunov.report._network_output import network_output
from lyapunov.report._sections import (
    Columns,
    Document,
    Form,
    Line,
    Note,
    Section,
    Table,
    meant,
    written,
)
from lyapunov.report._sentences import change_sentence, output_lines
from lyapunov.report._stored_weights import stored_weights
from lyapunov.results._check import ParameterChangeReport, PrecisionReport, Report


ODD = ("logits", "no bound", "cause")
"""Lines on what something is wrong with; the others are for whom asks for more."""
MORE = Form.VERBOSE | Form.WRITTEN


def so_far(report: Report) -> Document:
    """What is known of a report that is not finished: no verdict, and no legends."""
    sections = [_layers(report)] if report.exponents.layers else []
    logits = _logits(report)
    sections += [*logits, *(_beyond_the_table(report) if logits else [])]
    return Document(
        title=report.checkpoint.source,
        verdict="",
        word="",
        facts=_facts(report),
        sections=[replace(one, notes=()) for one in sections],
    )


def _served(report: Report) -> list[Section]:
    """What serving stacks do by default, a line each."""
    lines = []
    for one in report.summary.served:
        state = f"state in {one.state}" if one.state else "no state's format"
        told = [f"{state} ({one.why}), window in {one.window}"]
        if one.kl_mean is not None:
            told.append(f"mean KL {one.kl_mean:.2g} nats here")
        if one.argmax_total:
            told.append(f"{one.argmax_flips} of {one.argmax_total} top tokens change")
        if one.ask:
            told.append(f"not measured: {one.ask}")
        name = f"{one.stack} {one.version}, {one.precision}"
        lines.append(Line(name, "; ".join([*told, *one.notes])))
    if not lines:
        return []
    return [Section("Served by default", lines=lines, forms=MORE)]


def document(report: Report) -> Document:
    """Verdict, findings, logits, sublayers, and what it rests on."""
    if not report.summary.verdict:
        return so_far(report)
    line, summary = headline(report), report.summary
    baseline = [f"baseline: {summary.baseline}"] if summary.baseline else []
    given = [Line(f["stack"], f["why"], f["flag"]) for f in summary.flags]
    logits = [
        *network_output(report),
        *_logits(report),
        *_beyond_the_table(report),
        *_changes(report),
    ]
    sections = [
        Section(
            "Figures", pictures=functools.partial(_pictures, report), forms=Form.PAGE
        ),
        # where there is room what the logits do comes first
        *_only(logits, Form.PAGE),
        _layers(report),
        *_growth(report),
        *_only(logits, ~Form.PAGE),
        *_losses(report),
        *stored_weights(report.checkpoint),
        Section(
            "Not computed",
            lines=[Line(name, why) for name, why in report.not_computed.items()],
            forms=Form.VERBOSE | Form.WRITTEN,
        ),
        *_served(report),
        *written(report),
    ]
    return Document(
        title=report.checkpoint.source,
        verdict=line.sentence,
        word=line.word.lower(),
        style=line.style,
        counts=line.counts,
        advice=[*baseline, *filter(None, [summary.recommendation])],
        given=given,
        aside=summary.benchmark_note or "",
        facts=_facts(report),
        findings=words.groups(report.findings, words.modules_of(report)),
        sections=[one for one in sections if not one.empty],
        tool=words.tool(report),
    )


def _only(sections: Sequence[Section], forms: Form) -> list[Section]:
    """Sections at a place that is right for some forms."""
    return [replace(one, forms=one.forms & forms) for one in meant(sections, forms)]


def _pictures(report: Report, prefix: str) -> Sequence[Any]:
    from lyapunov.report.plots import pictures

    return pictures(report, prefix)


def _facts(report: Report) -> list[Line]:
    facts = [
        Line("network", words.checkpoint_sentence(report)),
        Line("tokens", words.tokens_sentence(report)),
    ]
    n, found = report.checkpoint.n_layers, len(report.exponents.layers)
    if found:
        part = "" if found == n else f"; so far, of {found} of {n} sublayers"
        sentence = words.exponent_sentence(report.exponents)
        facts.append(Line("exponents", f"{sentence}{part}"))
    if report.reference is not None:
        facts.append(Line("loss", words.loss_sentence(report.reference)))
    for precision in report.precisions:
        sentence = words.execution_sentence(precision, report.exponents)
        facts.append(Line(precision.precision, sentence))
    return facts


def _layers(report: Report) -> Section:
    """Exponents and every execution's divergence, a row a sublayer."""
    groups = [
        Columns(
            columns.within(
                columns.of("exponents"), columns.exponents(report.exponents.layers)
            ),
            title="Exponents",
            note=legends.EXPONENTS_LEGEND
            + legends.HEADS_LEGEND * any(r.heads for r in report.exponents.layers),
        )
    ]
    left_out = report.not_computed
    shown = columns.looked_for(columns.divergences(), left_out)
    groups += [
        Columns(
            columns.within(_divergence(i), shown),
            name=p.precision,
            title=f"{p.precision}: {p.execution}",
        )
        for i, p in enumerate(report.precisions)
    ]
    notes = [Note(legends.legend(legends.LEGEND, left_out), Form.SHORT)]
    if report.precisions:
        notes.append(Note(legends.legend(legends.PAGE_LEGEND, left_out), Form.PAGE))
    table = Table(words.rows(report), columns.PLACE, groups)
    return Section("Layers", table=table, notes=notes)


def _divergence(i: int) -> Callable[[words.Row], Any]:
    """Of a row, what the execution of this number did."""
    return lambda row: row.divergences[i]


# Distances that a line has room for.
_SHOWN = (0, 1, 4, 16, 64, 256, 1024)


def _growth(report: Report) -> list[Section]:
    """SSMs and attention on one scale, a row a kind."""
    rows = words.growth_rows(report.exponents.layers)
    if not rows:
        return []
    shown = [distance for distance in rows[0].response if distance in _SHOWN]
    table = Table(rows, [columns.KIND], [Columns(columns.growth(shown))])
    return [
        Section(
            "Growth of perturbations", table=table, notes=[Note(legends.GROWTH_LEGEND)]
        )
    ]


def _losses(report: Report) -> list[Section]:
    """Where the bound is lost and where the error comes from, a row a sublayer; a page
    has it beside the bounds."""
    rows = [
        row
        for row in words.rows(report)
        if any(
            d and (d.binding_site or d.sigma_share is not None) for d in row.divergences
        )
    ]
    if not rows:
        return []
    shown = columns.looked_for(columns.BOUND_LOST, report.not_computed)
    groups = [
        Columns(columns.within(_divergence(i), shown), p.precision)
        for i, p in enumerate(report.precisions)
    ]
    table = Table(rows, [columns.LAYER], groups)
    forms = Form.VERBOSE | Form.MARKDOWN
    return [Section("Where the bound is lost", table=table, forms=forms)]


# --- The logits ------------------------------------------------------------------


def _logits(report: Report) -> list[Section]:
    rows = [p for p in report.precisions if p.output.compared]
    if not rows:
        return []
    shown = [*columns.LOGITS, *columns.margins([p.output for p in rows])]
    groups = [Columns(columns.within(columns.of("output"), shown))]
    told = (
        "rel L2 and max: difference of the logits. KL in nats per token. Flips: top "
        "token changed; changes between equal leaders of the reference (ties) are "
        "counted apart. Margin: the reference's top logit less the second, at "
        "quantiles over tokens."
    )
    return [
        Section(
            "Logits against the fp64 reference",
            table=Table(rows, [columns.EXECUTION], groups),
            notes=[Note(told, Form.WRITTEN)],
        )
    ]


def _beyond_the_table(report: Report) -> list[Section]:
    """Predicted, certified and decided, a section an execution."""
    made = []
    for precision in report.precisions:
        lines = output_lines(precision, report.checkpoint.n_layers)
        if lines:
            made.append(_told(precision, lines, report.not_computed))
    if made and any(p.output.compared for p in report.precisions):
        note = legends.legend(legends.LOGITS_LEGEND, report.not_computed)
        made[-1] = replace(made[-1], notes=[Note(note, Form.WRITTEN)] if note else [])
    return made


def _told(
    precision: PrecisionReport,
    lines: Sequence[tuple[str, str]],
    left_out: Container[str],
) -> Section:
    what = "sublayers"
    if precision.output.compared:
        tiers = {"predicted": "sigma_t3", "certified": "certified_until_layer"}
        known = [name for name, figure in tiers.items() if figure not in left_out]
        what = ", ".join(["logits", *filter(None, [" and ".join(known)])])
    told = [Line(*line, forms=Form.EVERY if line[0] in ODD else MORE) for line in lines]
    return Section(f"{precision.precision}: {what}", lines=told, level=3)


def _changes(report: Report) -> list[Section]:
    """Changed weight sets: a line each, on a page a table each as well."""
    changes = report.parameter_changes
    if not changes:
        return []
    shown = columns.looked_for(columns.CHANGE, report.not_computed)
    told = [Line(_name(change), change_sentence(change)) for change in changes]
    note = Note(
        legends.legend(legends.CHANGES_LEGEND, report.not_computed),
        Form.PAGE,
    )
    return [
        Section("Changed weights", lines=told, notes=[note]),
        *(
            Section(
                f"Changed weights: {_name(change)}",
                table=Table(
                    change.layers,
                    [columns.LAYER, columns.KIND],
                    [Columns(shown)],
                ),
                level=3,
                forms=Form.PAGE,
            )
            for change in changes
        ),
    ]


def _name(change: ParameterChangeReport) -> str:
    return f"{change.name} ({change.kind})"
