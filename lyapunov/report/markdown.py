"""The report as Markdown, for an issue or a model card."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lyapunov.report import _words as words
from lyapunov.report._headline import headline
from lyapunov.report._sentences import change_sentence, output_lines, percent
from lyapunov.results._check import Report


def to_markdown(entries: Report | Sequence[Report | Mapping[str, Any]]) -> str:
    """Markdown of one report, or of several one after the other.

    **Arguments:**

    - `entries`: a report, or reports and `{"checkpoint": ..., "error": ...}`.

    **Returns:**

    Text that ends in a newline.
    """
    if isinstance(entries, Report):
        entries = [entries]
    parts = [_one(e) if isinstance(e, Report) else _failure(e) for e in entries]
    return "\n\n".join(parts) + "\n"


def _failure(entry: Mapping[str, Any]) -> str:
    source = entry["checkpoint"]["source"]
    return f"# {_plain(source)}\n\nCould not be checked: {entry['error']['message']}"


def _one(report: Report) -> str:
    blocks = [
        f"# {_plain(report.checkpoint.source)}",
        f"**{_plain(str(headline(report)))}**",
        _plain(report.summary.recommendation),
        _plain(report.summary.benchmark_note or ""),
        _flags(report),
        _facts(report),
        "## Layers",
        _layers(report),
        *_losses(report),
        words.LEGEND.replace("*", "\\*"),
    ]
    if any(precision.output.compared for precision in report.precisions):
        blocks += ["## Logits", _logits(report)]
    blocks += _estimates(report)
    if report.parameter_changes:
        blocks += ["## Changed weights", _changes(report)]
    blocks += ["## Findings", _findings(report)]
    if report.assumptions:
        blocks += ["## Assumptions", _bullets(map(_plain, report.assumptions))]
    settings = [f"{key}: {_setting(value)}" for key, value in report.settings.items()]
    blocks += ["## Settings", _bullets(map(_plain, settings))]
    return "\n\n".join(block for block in blocks if block)


def _facts(report: Report) -> str:
    facts = [
        f"checkpoint: {words.checkpoint_sentence(report)}",
        f"tokens: {words.tokens_sentence(report)}",
        f"exponents: {words.exponent_sentence(report.exponents)}",
    ]
    if report.reference is not None:
        facts.append(f"loss: {words.loss_sentence(report.reference)}")
    facts += [
        f"{p.precision}: {words.execution_sentence(p, report.exponents)}"
        for p in report.precisions
    ]
    if report.summary.baseline:
        facts.append(f"baseline: {report.summary.baseline}")
    facts.append(f"{report.tool.get('name', '')} {report.tool.get('version', '')}")
    return _bullets(_plain(fact) for fact in facts)


def _layers(report: Report) -> str:
    head = ["#", "kind", "module", "λ max", "λ min", "memory p90"]
    for precision in report.precisions:
        name = precision.precision
        head += [f"{name} rel L2", f"{name} T1", f"{name} floor", f"{name} viol"]
    lines = []
    for row in words.rows(report):
        own = row.exponents
        cells = [str(row.layer), row.kind, row.module or words.NOTHING]
        cells += (
            [words.NOTHING] * 3
            if own is None
            else [
                words.number(own.max),
                words.number(own.min),
                words.memory(own.memory_tokens),
            ]
        )
        for divergence in row.divergences:
            if divergence is None:
                cells += [words.NOTHING] * 4
                continue
            local = words.relative(divergence.local_l2, divergence.reference_l2)
            cells += [
                words.number(local),
                words.ratio(divergence.bound_t1_ratio),
                words.ratio(divergence.floor_t1_ratio),
                words.above(divergence, f"{divergence.violations:,}"),
            ]
        lines.append(cells)
    return _table(head, lines, left=3)


def _logits(report: Report) -> str:
    head = ["precision", "rel L2", "max", "KL mean", "KL max", "flips", "ties", "of"]
    lines = [
        [
            p.precision,
            words.number(p.output.measured_rel_l2),
            words.number(p.output.measured_max),
            words.number(p.output.kl_mean),
            words.number(p.output.kl_max),
            f"{p.output.argmax_flips:,}",
            f"{p.output.argmax_ties:,}",
            f"{p.output.argmax_total:,}",
        ]
        for p in report.precisions
        if p.output.compared
    ]
    return _table(head, lines, left=1)


def _estimates(report: Report) -> list[str]:
    """Predicted, certified and decided, a list an execution."""
    blocks = []
    for precision in report.precisions:
        lines = output_lines(precision, report.checkpoint.n_layers)
        if lines:
            told = _bullets(f"{label}: {_plain(text)}" for label, text in lines)
            blocks.append(f"**{precision.precision}**\n\n{told}")
    return blocks


def _losses(report: Report) -> list[str]:
    """Where each sublayer's bound is lost, and what it adds to the predicted error."""
    head, rows = ["#"], {}
    for i, precision in enumerate(report.precisions):
        name = precision.precision
        head += [f"{name} bound lost at", "share of radius", "share of variance"]
        for row in precision.layers:
            if row.binding_site or row.sigma_share is not None:
                cells = rows.setdefault(
                    row.layer, [words.NOTHING] * (3 * len(report.precisions))
                )
                cells[3 * i : 3 * i + 3] = [
                    row.binding_site or words.NOTHING,
                    percent(row.binding_share),
                    percent(row.sigma_share),
                ]
    if not rows:
        return []
    lines = [[str(layer), *rows[layer]] for layer in sorted(rows)]
    return [_table(head, lines, left=1)]


def _changes(report: Report) -> str:
    return _bullets(
        f"**{_plain(change.name)}** ({change.kind}): {_plain(change_sentence(change))}"
        for change in report.parameter_changes
    )


def _flags(report: Report) -> str:
    return _bullets(
        f"{flag['stack']}: `{flag['flag']}` ({_plain(flag['why'])})"
        for flag in report.summary.flags
    )


def _findings(report: Report) -> str:
    if not report.findings:
        return "None."
    lines = []
    for group in words.groups(report.findings, words.modules_of(report)):
        place = f"{group.precision}, {group.where}" if group.precision else group.where
        lines.append(
            f"**{group.code}** {group.title} ({group.severity}; {place}): "
            f"{_plain(group.message)}"
        )
    return _bullets(lines)


def _table(head: list[str], lines: list[list[str]], left: int) -> str:
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join(
        f"| {' | '.join(_cell(cell) for cell in cells)} |"
        for cells in [head, rule, *lines]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _plain(text: str) -> str:
    """Text from outside, so that it neither marks up nor breaks out of its line."""
    escaped = " ".join(text.split())
    for sign in ("\\", "`", "*", "_", "<", "[", "|"):
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "none"
    return "default" if value is None else str(value)
