"""What was predicted, certified and decided, in words: the same in every form.

An estimate is never called a bound here, nor a bound an estimate: each line says
which of measured, predicted, worst case to first order and certified it is.
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from lyapunov.formats._weight_table import EACH_BY_ITSELF
from lyapunov.report import _words as words
from lyapunov.results._check import (
    Decisions,
    OutputDivergence,
    ParameterChangeReport,
    PrecisionReport,
    TextDivergence,
)


def output_lines(precision: PrecisionReport, n_layers: int) -> list[tuple[str, str]]:
    """What the report knows of an execution's logits beyond the table of them:
    a label and a sentence each; nothing where nothing is known.

    **Arguments:**

    - `n_layers`: sublayers of the checkpoint.
    """
    output = precision.output
    known = (
        ("measured", _measured(output)),
        ("predicted", _predicted(output)),
        ("worst case", _worst_case(output)),
        ("certified", _certified(output, n_layers)),
        ("top tokens", _decided(output.decisions)),
        ("logits", _unusual(output)),
        ("texts", _spread(output.texts)),
        ("position", _growth(output.kl_by_position)),
        ("error from", _sources(precision)),
        ("bound lost", _lost(precision)),
        ("no bound", _unbounded(precision)),
        ("cause", output.cause or ""),
    )
    return [(label, text) for label, text in known if text]


def _measured(output: OutputDivergence) -> str:
    """Only beside something to compare it with; the table has it anyway."""
    measured = output.measured_rel_l2
    if output.weights_rel_l2 is None or measured is None or math.isnan(measured):
        return ""
    return (
        f"{words.number(output.measured_rel_l2)}; rounding the weights alone moves "
        f"them by {words.number(output.weights_rel_l2)}"
    )


def _predicted(output: OutputDivergence) -> str:
    if output.sigma_t3 is None:
        return f"withheld: {output.sigma_withheld}" if output.sigma_withheld else ""
    z = output.calibration_z
    inside = ["1 sigma, an estimate"]
    if z is not None:
        at = f" at {output.n_readouts:,} tokens" if output.n_readouts else ""
        inside.append(f"z {words.number(z)}{at}")
    if output.n_probes:
        inside.append(words.plural(output.n_probes, "probe"))
    text = (
        f"{words.number(output.sigma_t3)}"
        f"{_relative_error(output.sigma_t3, output.sigma_t3_stderr)} "
        f"({', '.join(inside)})"
    )
    if output.nonlinearity is not None:
        text += f"; {percent(output.nonlinearity)} beyond first order"
    return text


def _worst_case(output: OutputDivergence) -> str:
    if output.estimate_t2 is None:
        return ""
    return (
        f"{words.number(output.estimate_t2)}"
        f"{_relative_error(output.estimate_t2, output.estimate_t2_stderr)} "
        "(to first order, an estimate)"
    )


def _relative_error(value: float, error: float | None) -> str:
    """A standard error relative to its value: ` ± 12 %`."""
    if error is None or not value or not math.isfinite(error / value):
        return ""
    return f" ± {100 * error / value:.2g} %"


def _certified(output: OutputDivergence, n_layers: int) -> str:
    until = output.certified_until_layer
    if until is None:
        return ""
    reach = "all" if until == n_layers else str(until or "none")
    text = f"end to end through {reach} of {words.plural(n_layers, 'sublayer')}"
    if output.stopped_by and until != n_layers:
        text += f", stopped by {output.stopped_by}"
    return text


def _decided(decisions: Decisions | None) -> str:
    if decisions is None:
        return ""
    of = f" of {decisions.total:,}"
    parts = []
    if decisions.certified_stable is not None:
        parts.append(
            f"{decisions.certified_stable:,}{of} certified stable "
            f"({decisions.certified_flipped:,} flipped)"
        )
        of = ""
    parts.append(
        f"{decisions.predicted_stable:,}{of} predicted stable at 4 sigma "
        f"({decisions.predicted_flipped:,} flipped)"
    )
    if decisions.ties:
        parts.append(words.plural(decisions.ties, "tie"))
    return ", ".join(parts)


def _unusual(output: OutputDivergence) -> str:
    """What logits hardly ever are, where they are it; empty of sound ones."""
    counts = (
        (output.non_finite, "{} not finite"),
        (output.reference_non_finite, "{} not finite in the reference"),
        (output.constant_tokens, "all equal at {} tokens where the reference's differ"),
        (output.reference_ties, "the reference ties its leaders at {} tokens"),
    )
    told = [text.format(f"{count:,}") for count, text in counts if count]
    if output.measured_rel_l2 is not None and math.isnan(output.measured_rel_l2):
        told.append("the reference's are one value a token, so no relative distance")
    return ", ".join(told)


def _spread(texts: Sequence[TextDivergence] | None) -> str:
    """Least, median and most over the sequences."""
    if not texts:
        return ""
    parts = []
    for name, values in (
        ("rel L2", [text.measured_rel_l2 for text in texts]),
        ("KL mean", [text.kl_mean for text in texts]),
    ):
        # of a reference of one value a token no distance is defined
        undefined = name == "rel L2" and all(
            math.isfinite(text.kl_mean)
            for text in texts
            if math.isnan(text.measured_rel_l2)
        )
        parts.append(
            f"{name} {_three(values, 'not defined' if undefined else 'not finite')}"
        )
    flips = [text.argmax_flips for text in texts]
    parts.append(
        f"flips {min(flips):,} to {statistics.median(flips):g} to {max(flips):,}"
    )
    return f"of {len(texts)}, least to median to most: {', '.join(parts)}"


def _three(values: Sequence[float | None], otherwise: str) -> str:
    known = sorted(
        value for value in values if value is not None and not math.isnan(value)
    )
    if len(known) < len(values):
        return otherwise
    chosen = known[0], statistics.median(known), known[-1]
    return " to ".join(words.number(value) for value in chosen)


def _growth(by_position: Sequence[float] | None) -> str:
    """The mean KL of the last quarter of the positions over that of the first."""
    if not by_position or len(by_position) < 8:
        return ""
    quarter = len(by_position) // 4
    first = statistics.fmean(by_position[:quarter])
    last = statistics.fmean(by_position[-quarter:])
    if not (0 < first < math.inf and 0 <= last < math.inf):
        return ""
    return (
        f"mean KL of the last quarter is {words.ratio(last / first)} that of the first"
    )


def _sources(precision: PrecisionReport) -> str:
    """The sublayers and the stores that T3's variance at the logits comes from."""
    layers = [
        (row.sigma_share, row.layer) for row in precision.layers if row.sigma_share
    ]
    sites = [(v, k) for k, v in (precision.output.sigma_by_site or {}).items() if v]
    parts = [
        f"{kind} {', '.join(f'{name} ({percent(part)})' for part, name in most[:3])}"
        for kind, most in (
            ("layers", sorted(layers, reverse=True)),
            ("stores", sorted(sites, reverse=True)),
        )
        if most
    ]
    if precision.output.state_share is not None:
        every = precision.state_stored_every
        stored = "" if every == 1 else f", stored every {every} tokens"
        share = percent(precision.output.state_share)
        parts.append(f"rounding the state{stored} ({share}, by a probe of it alone)")
    return f"{'; '.join(parts)} of the predicted variance" if parts else ""


def _lost(precision: PrecisionReport) -> str:
    """The stores whose operations cost the T1 radius most, and in how many layers."""
    sites = Counter(row.binding_site for row in precision.layers if row.binding_site)
    if not sites:
        return ""
    told = [f"{site} in {n}" for site, n in sites.most_common(4)]
    return f"mostly at {', '.join(told)} of {words.plural(sites.total(), 'sublayer')}"


def _unbounded(precision: PrecisionReport) -> str:
    """Elements that no finite bound holds, and the tensors that they are of."""
    rows = [row for row in precision.layers if row.elements_unbounded]
    if not rows:
        return ""
    some = sum(row.elements_unbounded or 0 for row in rows)
    total = sum(row.elements_total or 0 for row in precision.layers)
    tensors = Counter(name for row in rows for name in row.unbounded or {})
    told = ", ".join(f"{name} in {n}" for name, n in tensors.most_common(4))
    text = f"{some:,} of {total:,} elements have no finite bound"
    of = words.plural(len(precision.layers), "sublayer")
    return f"{text}: {told} of {of}" if told else text


def percent(value: float | None) -> str:
    """A share in percent: `24 %`, `0.31 %`, a dash for nothing."""
    if value is None or not math.isfinite(value):
        return words.number(value)
    return f"{words.number(100 * value)} %"


def change_sentence(change: ParameterChangeReport) -> str:
    """What a changed weight set does to the logits, beside its prediction."""
    output = change.output
    text = (
        f"logits moved by {words.number(output.measured_rel_l2)} of their size, "
        f"{words.number(change.predicted_rel_l2)} to first order in the change"
    )
    if change.nonlinearity is not None:
        text += (
            f" (which leaves {percent(change.nonlinearity)} of the move unexplained)"
        )
    text += (
        f", KL mean {words.number(output.kl_mean)}, flips {output.argmax_flips:,} of "
        f"{output.argmax_total:,} ({words.plural(output.argmax_ties, 'tie')})"
    )
    ratios = [row.bound_ratio for row in change.layers if row.bound_ratio is not None]
    if ratios:
        ends = dict.fromkeys((_times(min(ratios)), _times(max(ratios))))
        text += (
            f"; by sublayer, weights as far apart move its output by at most "
            f"{' to '.join(ends)} times as much (certified)"
        )
    if change.weight_format not in (None, EACH_BY_ITSELF):
        text += (
            f"; {change.weight_format}: {', '.join(change.rounded)}; "
            f"kept: {', '.join(change.kept) or 'nothing'}"
        )
    return text


def _times(value: float) -> str:
    """A factor: `1.4`, `12,000`."""
    return f"{value:,.0f}" if 100 <= value < 1e7 else words.number(value)
