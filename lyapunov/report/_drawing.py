"""How a figure is drawn: colours that follow the page, SVG that stands on its own.

Each colour that Matplotlib writes stands for a CSS variable of the page; text stays
text. Nothing is referenced from outside, and the same report gives the same bytes.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


INK, MUTED, GRID = "#010101", "#020202", "#030303"
BLUE, ORANGE, GREEN, RED = "#040404", "#050505", "#060606", "#070707"

VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "line",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    RED: "red",
}
SERIES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"), (RED, "-."))
SIZE = (4.6, 3.1)

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Picture:
    """One figure of the page."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str


def positive(value: float | None) -> float:
    """A value for a logarithmic axis; NaN, which is not drawn, for any other."""
    return value if value is not None and 0 < value < math.inf else math.nan


def centres(n: int, length: int) -> list[float]:
    """The middles of n equal blocks of tokens."""
    return [(i + 0.5) * length / n for i in range(n)]


def line(
    axes: Any,
    x: Sequence[float],
    y: Sequence[float],
    color: str,
    style: str,
    label: str,
    marker: str,
) -> None:
    """A line on a logarithmic axis, where there is anything to draw."""
    if any(math.isfinite(value) for value in y):
        axes.set_yscale("log")
        axes.plot(
            x, y, color=color, linestyle=style or "none", label=label, marker=marker
        )


def whole_numbers(axis: Any) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def picture(
    name: str, title: str, caption: str, alt: str, draw: Callable[[Any], None]
) -> Picture:
    """One figure with its words."""
    return Picture(name, title, caption, alt, _svg(name, alt, draw))


def _svg(name: str, alt: str, draw: Callable[[Any], None]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": f"lyapunov-{name}"}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=2)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _inline(stream.getvalue(), name, alt)


def _inline(svg: str, name: str, alt: str) -> str:
    """Matplotlib's document as an element of the page: no prologue, no metadata,
    ids of its own, colours from the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{name}-", svg)
    svg = svg.replace('xlink:href="', 'href="')
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    view = re.search(r'viewBox="[^"]*"', svg)
    escaped = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'<svg {view.group(0) if view else ""} role="img" aria-label="{escaped}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
    return re.sub(r"font: [^;\"]*?(\d+)px [^;\"]*", r"font-size: \1px", svg).strip()
