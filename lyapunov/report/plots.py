"""Figures of a report: what each shows, in words and as a drawing."""

import itertools
import math
from typing import Any

from lyapunov.report import _words as words
from lyapunov.report._drawing import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    RED,
    SERIES,
    Picture,
    centres,
    color_bar,
    line,
    positive,
    whole_numbers,
)
from lyapunov.report._sentences import percent
from lyapunov.results._check import (
    LayerDivergence,
    LayerExponents,
    PrecisionReport,
    Report,
)


def pictures(report: Report, prefix: str = "") -> list[Picture]:
    """Every figure for which the report has data.

    **Arguments:**

    - `report`: what a check found.
    - `prefix`: goes before every id, so that several reports share a page.
    """
    made = [_spectrum(report, prefix), _decays(report, prefix)]
    for precision in report.precisions:
        made.append(_by_layer(precision, prefix))
        made.append(_by_position(precision, report.tokens.length, prefix))
    made += [_shares(report, prefix), _logits(report, prefix)]
    return [one for one in made if one is not None]


# --- What is shown ---------------------------------------------------------------


def _spectrum(report: Report, prefix: str) -> Picture | None:
    layers = [row for row in report.exponents.layers if row.quantiles]
    if not layers:
        return None
    numbers = [row.layer for row in layers]
    growing = [row.layer for row in layers if row.max is not None and row.max >= 0]

    def draw(axes: Any) -> None:
        for low, high, alpha in ((0.0, 1.0, 0.2), (0.05, 0.95, 0.3), (0.25, 0.75, 0.4)):
            slow = [_quantile(row, high) for row in layers]
            fast = [_quantile(row, low) for row in layers]
            axes.bar(
                numbers,
                [b - a for a, b in zip(slow, fast, strict=True)],
                bottom=slow,
                width=0.7,
                color=BLUE,
                alpha=alpha,
                linewidth=0,
                label=f"{high - low:.0%} of channels and states",
            )
        middle = [_quantile(row, 0.5) for row in layers]
        axes.plot(numbers, middle, "_", color=INK, label="median")
        ends = [_quantile(row, q) for row in layers for q in (0.0, 1.0)]
        shown = [value for value in ends if math.isfinite(value)] or [1.0]
        axes.set_yscale("log")
        axes.set_ylim(1.6 * max(shown), min(shown) / 1.6)
        axes.set_axisbelow(True)
        axes.yaxis.set_major_formatter(lambda value, _: f"-{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        if growing:
            axes.plot(
                growing,
                [1.0] * len(growing),
                "^",
                color=RED,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                label="not negative",
            )
        axes.set_xlabel("sublayer")
        axes.set_ylabel("exponent, nats per token")
        whole_numbers(axes.xaxis)

    sentence = words.exponent_sentence(report.exponents)
    alt = f"Exponents of {len(layers)} sublayers: {sentence}."
    if growing:
        alt += f" Not negative in layers {', '.join(map(str, growing))}."
    return Picture(
        f"{prefix}spectrum",
        "Exponent spectrum",
        "How fast each layer forgets: exponents over channels and states. "
        "Nearer to 0 (upwards) is longer memory.",
        alt,
        draw,
    )


def _quantile(row: LayerExponents, q: float) -> float:
    """Minus the exponent at a quantile; nothing where a log axis has no place."""
    quantiles = row.quantiles or []
    value = quantiles[round(q * (len(quantiles) - 1))]
    return -value if value is not None and -math.inf < value < 0 else math.nan


def _decays(report: Report, prefix: str) -> Picture | None:
    layers = [row for row in report.exponents.layers if row.decay_histogram]
    if not layers:
        return None
    edges = (layers[0].decay_histogram or {})["edges"]
    shares = [(row.decay_histogram or {})["share"] for row in layers]
    largest = max(max(share) for share in shares) or 1.0
    used = [x for x in range(len(edges) - 1) if any(share[x] for share in shares)]
    first, last = (used[0], used[-1] + 1) if used else (0, len(edges) - 1)

    def draw(axes: Any) -> None:
        from matplotlib.collections import PolyCollection
        from matplotlib.colors import to_rgba

        cells, colors = [], []
        for y, share in enumerate(shares):
            for x in range(first, last):
                strength = math.sqrt(share[x] / largest)
                if strength > 0.02:
                    cells.append([(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)])
                    colors.append(to_rgba(BLUE, round(strength, 2)))
        axes.add_collection(PolyCollection(cells, facecolors=colors, linewidths=0))
        color_bar(axes, BLUE, largest, "share of decays")
        axes.set_xlim(first, last)
        axes.set_ylim(len(layers), 0)
        step = max(1, math.ceil((last - first) / 5))
        # none nearer to the last than they are to one another
        ticks = [*range(first, last - step + 1, step), last]
        axes.set_xticks(ticks, [words.decay(edges[tick]) for tick in ticks])
        every = max(1, math.ceil(len(layers) / 8))
        axes.set_yticks(
            [i + 0.5 for i in range(0, len(layers), every)],
            [str(layers[i].layer) for i in range(0, len(layers), every)],
        )
        axes.grid(False)
        axes.set_xlabel("decay d, in even steps of log10(-ln d)")
        axes.set_ylabel("sublayer")

    slowest = max(row.decay_max or 0.0 for row in layers)
    fastest = min(1.0 if row.decay_min is None else row.decay_min for row in layers)
    return Picture(
        f"{prefix}decays",
        "Decay histogram",
        "Which decays occur, over channels, states and tokens: the stronger the "
        f"colour, the more (at most {largest:.0%}; colour grows with the square root). "
        "A decay of 1 keeps everything, 0 nothing.",
        f"Histogram of decays by layer, from {fastest:.3g} to {slowest:.6g}.",
        draw,
    )


def _by_layer(precision: PrecisionReport, prefix: str) -> Picture | None:
    layers = [row for row in precision.layers if row.local_l2 is not None]
    if not layers:
        return None
    numbers = [row.layer for row in layers]
    name = precision.precision
    bounded = any(row.elements_total is not None for row in layers)

    def draw(axes: Any) -> None:
        # a line through one point is no line
        alone = "_" if len(layers) == 1 else ""
        if bounded:
            bounds = [_relative(row, row.bound_t1_l2) for row in layers]
            line(axes, numbers, bounds, ORANGE, "-", "T1 bound (certified)", alone)
        total = [_relative(row, row.accumulated_l2) for row in layers]
        line(axes, numbers, total, GREEN, ":", "measured, accumulated", alone)
        local = [_relative(row, row.local_l2) for row in layers]
        line(axes, numbers, local, BLUE, "", "measured, local", "o")
        above = [(r.layer, _relative(r, r.local_l2)) for r in layers if r.violations]
        if above:
            x, y = zip(*above, strict=True)
            line(axes, list(x), list(y), RED, "", "above the bound", "X")
        axes.set_xlabel("sublayer")
        axes.set_ylabel("rel L2, of the sublayer's output")
        whole_numbers(axes.xaxis)

    ratios = [row.bound_t1_ratio for row in layers if row.bound_t1_ratio is not None]
    what = "divergence and T1 bound" if bounded else "divergence"
    under = " under its certified bound" if bounded else ""
    alt = f"Measured local {what}, {len(layers)} sublayers in {name}."
    if ratios:
        alt += f" Bound over measured: {min(ratios):.3g} to {max(ratios):.3g}."
    if bounded:
        broken = sum(row.violations or 0 for row in layers)
        alt += f" Elements above the bound: {broken}."
    unbounded = sum(row.elements_unbounded or 0 for row in layers)
    if unbounded:
        alt += f" Elements without a finite bound: {unbounded}."
    return Picture(
        f"{prefix}layers-{name}",
        f"Certified bound and measured, {name}" if bounded else f"Measured, {name}",
        f"Each layer on its own input (local){under}; and the "
        "divergence from the reference trajectory (accumulated), which has no bound "
        "here.",
        alt,
        draw,
    )


def _by_position(
    precision: PrecisionReport, length: int, prefix: str
) -> Picture | None:
    layers = [row for row in precision.layers if row.local_by_position]
    if not layers:
        return None
    worst = max(layers, key=lambda row: (bool(row.violations), _badness(row)))
    name = precision.precision
    tokens = centres(len(worst.local_by_position or []), length)
    what = "Divergence and bound" if worst.bound_by_position else "Divergence"

    def draw(axes: Any) -> None:
        for values, color, style, label in (
            (worst.bound_by_position, ORANGE, "-", "T1 bound (certified)"),
            (worst.accumulated_by_position, GREEN, ":", "measured, accumulated"),
            (worst.local_by_position, BLUE, "-", "measured, local"),
        ):
            if values:
                shown = [_relative(worst, value) for value in values]
                line(axes, tokens[: len(shown)], shown, color, style, label, "")
        axes.set_xlabel("token")
        axes.set_ylabel("L2 of a block, of the output's")

    return Picture(
        f"{prefix}tokens-{name}",
        f"Along the sequence, {name}, layer {worst.layer}",
        f"Layer {worst.layer}, the first to look at: "
        + ("it breaks its bound. " if worst.violations else "largest rel L2. ")
        + "In blocks of tokens; a line that climbs is error that piles up.",
        f"{what} of layer {worst.layer} in {name} along {length} tokens.",
        draw,
    )


def _relative(row: LayerDivergence, value: float | None) -> float:
    """As the tables have it, over the L2 norm of the sublayer's output."""
    return positive(words.relative(value, row.reference_l2))


def _badness(row: LayerDivergence) -> float:
    value = words.relative(row.local_l2, row.reference_l2)
    return value if value is not None and math.isfinite(value) else -1.0


def _shares(report: Report, prefix: str) -> Picture | None:
    """Which layer is at fault for the logits' predicted error."""
    shown = [
        (p.precision, known)
        for p in report.precisions
        if (known := [r for r in p.layers if r.sigma_share is not None])
    ]
    if not shown:
        return None

    def draw(axes: Any) -> None:
        width = 0.8 / len(shown)
        colors = itertools.cycle(color for color, _ in SERIES)
        for i, (name, rows) in enumerate(shown):
            axes.bar(
                [row.layer - 0.4 + (i + 0.5) * width for row in rows],
                [100 * (row.sigma_share or 0.0) for row in rows],
                width=width,
                color=next(colors),
                linewidth=0,
                label=name,
            )
        axes.set_axisbelow(True)
        axes.set_xlabel("layer")
        axes.set_ylabel("share of variance, %")
        whole_numbers(axes.xaxis)

    worst = []
    for name, rows in shown:
        top = max(rows, key=lambda row: row.sigma_share or 0.0)
        worst.append(f"{name} layer {top.layer} ({percent(top.sigma_share)})")
    return Picture(
        f"{prefix}shares",
        "Where the logits' error comes from",
        "Share of the predicted variance (an estimate) that each layer's roundings "
        "have at the logits.",
        f"Share of the predicted variance by layer; largest: {', '.join(worst)}.",
        draw,
    )


def _logits(report: Report, prefix: str) -> Picture | None:
    shown = [p for p in report.precisions if p.output.kl_by_position]
    if not shown:
        return None

    def draw(axes: Any) -> None:
        for (color, style), precision in zip(
            itertools.cycle(SERIES), shown, strict=False
        ):
            values = [positive(v) for v in precision.output.kl_by_position or []]
            tokens = centres(len(values), report.tokens.length)
            line(axes, tokens, values, color, style, precision.precision, "")
        axes.set_xlabel("token")
        axes.set_ylabel("KL divergence, nats")

    means = ", ".join(f"{p.precision} {words.number(p.output.kl_mean)}" for p in shown)
    return Picture(
        f"{prefix}logits",
        "Logit divergence by position",
        "KL(reference || execution) of the next-token distribution, in blocks of "
        "tokens.",
        f"KL divergence along the sequence; mean: {means} nats.",
        draw,
    )
