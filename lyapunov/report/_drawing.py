"""How a figure is drawn: one drawing, a Matplotlib figure or SVG of the page.

Its colours are the page's own by day, and in the page's SVG stand for its CSS
variables; text stays text. Nothing is referenced from outside, and the same report
gives the same bytes.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


INK, MUTED, GRID = "#1c2128", "#59636e", "#d9dee4"
BLUE, ORANGE, GREEN, RED = "#0b5fae", "#b45309", "#157347", "#b42318"

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
    """One figure with its words."""

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Any], None]

    def figure(self) -> Any:
        """Draw it as a `matplotlib.figure.Figure`."""
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(_SETTINGS):
            figure = Figure(figsize=SIZE, layout="constrained")
            axes = figure.add_subplot()
            self.draw(axes)
            if axes.get_legend_handles_labels()[0]:
                figure.legend(loc="outside lower center", ncols=2)
        return figure

    @property
    def svg(self) -> str:
        """Draw it as an element of the page."""
        import matplotlib

        stream = io.StringIO()
        salt: dict[Any, Any] = {"svg.hashsalt": f"lyapunov-{self.name}"}
        with matplotlib.rc_context({**_SETTINGS, **salt}):
            self.figure().savefig(
                stream, format="svg", transparent=True, metadata={"Date": None}
            )
        return _inline(stream.getvalue(), self.name, self.alt)

    def file(self, suffix: str) -> bytes:
        """Draw it as a file that stands by itself, with its title.

        **Arguments:**

        - `suffix`: `.svg` or `.png`.
        """
        import matplotlib

        stream, figure = io.BytesIO(), self.titled()
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            dated = {"Date": None} if suffix == ".svg" else {}
            figure.savefig(stream, format=suffix[1:], dpi=200, metadata=dated)
        return stream.getvalue()

    def titled(self) -> Any:
        """Draw it with its title over it, which a page has above its figures."""
        figure = self.figure()
        figure.suptitle(self.title, fontsize=10)
        return figure


def color_bar(axes: Any, color: str, largest: float, label: str) -> None:
    """What so much of a colour stands for, from 0 to `largest`; it grows with the
    square root."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba

    steps = [i / 16 for i in range(17)]
    colors = ListedColormap([to_rgba(color, round(a + 1 / 32, 2)) for a in steps[:-1]])
    norm = BoundaryNorm([largest * a**2 for a in steps], 16)
    ticks = [largest * a**2 for a in (0, 0.5, 0.75, 1)]
    bar = axes.figure.colorbar(
        ScalarMappable(norm, colors), ax=axes, label=label, ticks=ticks, drawedges=False
    )
    bar.ax.set_yticklabels([f"{tick:.2g}" for tick in ticks])
    bar.ax.grid(False)


def pages(pictures: Sequence[Picture]) -> bytes:
    """One PDF of all figures, a page each."""
    from matplotlib.backends.backend_pdf import PdfPages

    stream = io.BytesIO()
    with PdfPages(stream, metadata={"CreationDate": None}) as pdf:
        for one in pictures:
            pdf.savefig(one.titled())
    return stream.getvalue()


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
