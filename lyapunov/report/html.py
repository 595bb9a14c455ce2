"""The report as one self-contained HTML page: no script, nothing from the network."""

import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from lyapunov._errors import MissingExtraError
from lyapunov.findings._catalogue import CATALOGUE
from lyapunov.report import _words as words
from lyapunov.report._headline import headline
from lyapunov.report._sentences import change_sentence, output_lines, percent
from lyapunov.results._check import ParameterChangeReport, PrecisionReport, Report


MARKS = {"held": "✓", "findings": "✗", "incomplete": "!"}


def to_html(entries: Report | Sequence[Report | Mapping[str, Any]]) -> str:
    """A page of one report, or of several one after the other.

    **Arguments:**

    - `entries`: a report, or reports and `{"checkpoint": ..., "error": ...}`.

    **Returns:**

    A complete HTML document.

    **Raises:** `MissingExtraError` where jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2

        from lyapunov.report.plots import pictures
    except ImportError as error:
        raise _missing(error) from error
    if isinstance(entries, Report):
        entries = [entries]
    views = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, Report):
            views.append({"failure": entry})
            continue
        prefix = f"r{i}-"
        try:
            drawn = pictures(entry, prefix)
        except ImportError as error:
            raise _missing(error) from error
        views.append(_view(entry, prefix, drawn))
    home = importlib.resources.files("lyapunov.report")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.from_string(home.joinpath("page.html.j2").read_text("utf-8"))
    return template.render(
        views=views,
        css=home.joinpath("page.css").read_text("utf-8"),
        title=_title(entries),
        legend=words.LEGEND,
    )


def _missing(error: ImportError) -> MissingExtraError:
    return MissingExtraError(
        f"an HTML report needs {error.name or 'matplotlib and jinja2'}, "
        "not installed here",
        hint="pip install 'lyapunov-check[report]'",
    )


def _title(entries: Sequence[Report | Mapping[str, Any]]) -> str:
    if len(entries) > 1:
        return f"lyapunov-check: {len(entries)} checkpoints"
    entry = entries[0]
    if isinstance(entry, Report):
        return f"{entry.checkpoint.source}: {headline(entry).word.lower()}"
    return f"{entry['checkpoint']['source']}: could not be checked"


def _view(report: Report, prefix: str, drawn: Sequence[Any]) -> dict[str, Any]:
    """What the template needs, all of it already in words."""
    line = headline(report)
    return {
        "failure": None,
        "prefix": prefix,
        "report": report,
        "style": line.style,
        "mark": MARKS[line.style],
        "verdict": line.sentence,
        "counts": line.counts,
        "facts": _facts(report),
        "findings": [
            (
                group,
                CATALOGUE[group.code].explanation if group.code in CATALOGUE else "",
            )
            for group in words.groups(report.findings, words.modules_of(report))
        ],
        "pictures": drawn,
        "logits": _logits(report),
        "estimates": [
            (f"{p.precision}: {_beyond_numbers(p)}", lines)
            for p in report.precisions
            if (lines := output_lines(p, report.checkpoint.n_layers))
        ],
        "changes": [
            (change, change_sentence(change), _change(change))
            for change in report.parameter_changes
        ],
        "layers": _exponents(report),
        "executions": [(p, _divergences(p)) for p in report.precisions],
        "settings": [(key, _text(value)) for key, value in report.settings.items()],
        "environment": [
            (key, _text(value)) for key, value in report.environment.items()
        ],
    }


def _facts(report: Report) -> list[tuple[str, str]]:
    facts = [
        ("checkpoint", words.checkpoint_sentence(report)),
        ("tokens", words.tokens_sentence(report)),
        ("exponents", words.exponent_sentence(report.exponents)),
    ]
    if report.summary.baseline:
        facts.append(("baseline", report.summary.baseline))
    if report.reference is not None:
        facts.append(("loss", words.loss_sentence(report.reference)))
    facts += [
        (p.precision, words.execution_sentence(p, report.exponents))
        for p in report.precisions
    ]
    return facts


def _beyond_numbers(precision: PrecisionReport) -> str:
    if not precision.output.compared:
        return "sublayers"
    return "logits, predicted and certified"


def _logits(report: Report) -> dict[str, Any]:
    head = ["rel L2", "max", "KL mean", "KL max", "flips", "ties", "tokens"]
    margins = sorted(
        {q for p in report.precisions for q in p.output.margin_quantiles or {}},
        key=float,
    )
    head += [f"margin at {float(q):g}" for q in margins]
    lines = []
    for precision in report.precisions:
        output = precision.output
        if not output.compared:
            continue
        cells = [
            words.number(output.measured_rel_l2, 3),
            words.number(output.measured_max, 3),
            words.number(output.kl_mean, 3),
            words.number(output.kl_max, 3),
            f"{output.argmax_flips:,}",
            f"{output.argmax_ties:,}",
            f"{output.argmax_total:,}",
        ]
        known = output.margin_quantiles or {}
        cells += [words.number(known.get(q), 3) for q in margins]
        lines.append((precision.precision, cells))
    return {"head": head, "lines": lines}


def _exponents(report: Report) -> dict[str, Any]:
    head = ["kind", "module", "λ max", "± stderr", "λ min", "memory p50", "p90", "max"]
    head += ["decay min", "decay max", "dt min", "dt mean", "dt max"]
    head += ["|state| max", "|output| max"]
    growth = any(row.growth for row in report.exponents.layers)
    if growth:
        head += ["gain", "1 token later", "farthest"]
    head.append("note")
    lines = []
    for row in report.exponents.layers:
        memory = row.memory_tokens
        cells = [row.kind, row.module or words.NOTHING]
        cells += [words.number(x, 3) for x in (row.max, row.stderr, row.min)]
        cells += (
            [words.count(x) for x in (memory.p50, memory.p90, memory.max)]
            if memory
            else [words.NOTHING] * 3
        )
        cells += [words.number(row.decay_min, 3), words.decay(row.decay_max)]
        cells += [words.number(x, 3) for x in (row.dt_min, row.dt_mean, row.dt_max)]
        cells += [words.number(x, 3) for x in (row.max_abs_state, row.max_abs_output)]
        if growth:
            seen: list[float | None] = [None] * 3
            if row.growth:
                response = row.growth.response
                later = response[min(1, len(response) - 1)]
                seen = [row.growth.gain, later, response[-1]]
            cells += [words.number(x, 3) for x in seen]
        notes = [row.reason or "", *row.suspicions]
        if memory and memory.exceeds_sample:
            notes.append("memory longer than the sample")
        cells.append("; ".join(note for note in notes if note))
        lines.append((row.layer, cells))
    return {"head": head, "lines": lines}


def _divergences(precision: PrecisionReport) -> dict[str, Any]:
    head = ["kind", "module", "rel L2", "local L2", "local max", "accumulated L2"]
    head += ["weights alone L2", "T1 bound L2", "T1 bound / measured", "floor"]
    head += ["T0 bound / measured", "T1 radius L2", "above bound", "elements"]
    head += ["without a finite bound"]
    head += ["largest stored", "stagnation", "bound lost at", "share of radius"]
    head += ["share of variance", "certified radius"]
    lines = []
    for row in precision.layers:
        largest = max((row.max_abs_stored or {}).values(), default=None)
        cells = [
            row.kind,
            row.module or words.NOTHING,
            words.number(words.relative(row.local_l2, row.reference_l2), 3),
        ]
        cells += [
            words.number(x, 3)
            for x in (row.local_l2, row.local_max, row.accumulated_l2, row.weights_l2)
        ]
        cells.append(words.number(row.bound_t1_l2, 3))
        cells += [
            words.ratio(x)
            for x in (row.bound_t1_ratio, row.floor_t1_ratio, row.bound_t0_ratio)
        ]
        cells += [words.number(row.radius_l2, 3), f"{row.violations:,}"]
        cells += [f"{row.elements_total:,}", f"{row.elements_unbounded:,}"]
        cells.append(words.number(largest, 3))
        cells.append(
            words.NOTHING if row.stagnation is None else f"{row.stagnation:.2%}"
        )
        cells += [row.binding_site or words.NOTHING, percent(row.binding_share)]
        cells += [percent(row.sigma_share), words.number(row.certified_l2, 3)]
        lines.append((row.layer, cells))
    return {"head": head, "lines": lines}


def _change(change: ParameterChangeReport) -> dict[str, Any]:
    head = ["kind", "effect L2", "effect max", "bound L2", "bound / effect", "floor"]
    head += [
        "above bound",
        "without a finite bound",
        "accumulated L2",
        "reference L2",
        "weights moved",
    ]
    lines = []
    for row in change.layers:
        cells = [row.kind]
        cells += [words.number(x, 3) for x in (row.local_l2, row.local_max)]
        cells += [words.number(row.bound_l2, 3), words.ratio(row.bound_ratio)]
        cells += [words.ratio(row.floor_ratio), f"{row.violations:,}"]
        cells.append(f"{row.elements_unbounded:,}")
        cells += [words.number(x, 3) for x in (row.accumulated_l2, row.reference_l2)]
        cells.append(
            ", ".join(f"{name} {words.number(x)}" for name, x in row.weights.items())
        )
        lines.append((row.layer, cells))
    return {"head": head, "lines": lines}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none"
        )
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value) or "none"
    return "default" if value is None else str(value)
