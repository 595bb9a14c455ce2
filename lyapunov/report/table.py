"""The report on a terminal: header, one row a layer, logits, findings, verdict."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lyapunov.findings._catalogue import ERROR
from lyapunov.report import _words as words
from lyapunov.report._headline import headline
from lyapunov.report._sentences import change_sentence, output_lines, percent
from lyapunov.results._check import Finding, LayerDivergence, LayerExponents, Report


_ASCII_HEAD = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


@dataclass(frozen=True)
class Glyphs:
    """The signs that a table needs beyond ASCII, or their stand-ins."""

    exponent: str
    times: str
    dash: str
    marks: dict[str, str]


UNICODE = Glyphs("λ", "×", "–", {"held": "✓", "findings": "✗", "incomplete": "!"})
PLAIN = Glyphs("exp", "x", "-", {"held": "+", "findings": "x", "incomplete": "!"})

STYLES = {"held": "bold green", "findings": "bold red", "incomplete": "bold yellow"}


def glyphs_for(encoding: str | None) -> Glyphs:
    """The signs that an encoding can take."""
    signs = "λ×–✓✗±─╴…"
    try:
        signs.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return UNICODE


def to_table(
    report: Report,
    *,
    width: int = 80,
    color: bool = False,
    encoding: str | None = "utf-8",
    quiet: bool = False,
    verbose: bool = False,
) -> str:
    """The report as a terminal shows it.

    **Arguments:**

    - `report`: what a check found.
    - `width`: columns at hand; 80 are enough for two precisions.
    - `color`: whether to write colour codes. Colour never says anything alone.
    - `encoding`: of the terminal; one without the signs gets ASCII.
    - `quiet`: findings, verdict and recommendation only.
    - `verbose`: also where each sublayer's bound is lost and what each stack is to
      be given.

    **Returns:**

    Text that ends in a newline.
    """
    glyphs = glyphs_for(encoding)
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=max(width, 40),
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        safe_box=glyphs is PLAIN,
    )
    if not quiet:
        _header(console, report)
        for table in _layer_tables(report, console, width, glyphs):
            console.print()
            console.print(table)
        console.print(Text(words.LEGEND, style="dim"))
        _growth(console, report, glyphs)
        if any(precision.output.compared for precision in report.precisions):
            console.print()
            console.print(_logits(report, glyphs))
        _estimates(console, report)
        _changes(console, report)
        if verbose:
            _losses(console, report, glyphs)
    else:
        console.print(Text(report.checkpoint.source, style="bold"))
    show_findings(console, report.findings, words.modules_of(report))
    _verdict(console, report, glyphs, verbose)
    text = "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
    if glyphs is PLAIN:
        for sign, stand_in in (("±", "+-"), ("×", "x"), ("–", "-"), ("…", "~")):
            text = text.replace(sign, stand_in)
        text = text.encode(encoding or "ascii", "replace").decode(encoding or "ascii")
    return text


def _header(console: Console, report: Report) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("checkpoint", Text(report.checkpoint.source, style="bold"))
    grid.add_row("", Text(words.checkpoint_sentence(report)))
    grid.add_row("tokens", Text(words.tokens_sentence(report)))
    grid.add_row("exponents", Text(words.exponent_sentence(report.exponents)))
    if report.reference is not None:
        grid.add_row("loss", Text(words.loss_sentence(report.reference)))
    for precision in report.precisions:
        grid.add_row(
            precision.precision,
            Text(words.execution_sentence(precision, report.exponents)),
        )
    console.print(grid)


def _layer_tables(
    report: Report, console: Console, width: int, glyphs: Glyphs
) -> list[Table]:
    """One table, airy or close, where everything fits, else one for the exponents
    and one for each execution; with the modules' names where they fit too."""
    every = list(range(len(report.precisions)))
    unbounded = console.options.update(width=10_000)
    named = [row.module for row in words.rows(report)]
    names = [list(map(str, named)), words.short_modules(named)]
    shown = [*names, None] if any(named) else [None]

    def fits(table: Table) -> bool:
        return Measurement.get(console, unbounded, table).maximum <= width

    for modules in shown:
        for gap in (1, 0):
            if modules is names[0] and not gap:
                continue
            table = _layers(report, glyphs, modules, gap=gap, executions=every)
            if fits(table):
                return [table]
    made = (_layers(report, glyphs, modules, executions=[]) for modules in shown)
    first = next(filter(fits, made), None)
    tables = [_layers(report, glyphs, None, executions=[]) if first is None else first]
    for i in every:
        tables.append(_layers(report, glyphs, None, exponents=False, executions=[i]))
    return tables


def frame(glyphs: Glyphs, gap: int = 1) -> Table:
    """An empty table in the style of all of them."""
    return Table(
        box=SIMPLE_HEAD if glyphs is UNICODE else _ASCII_HEAD,
        padding=(0, gap, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="bold",
        collapse_padding=True,
    )


def _layers(
    report: Report,
    glyphs: Glyphs,
    modules: list[str] | None,
    *,
    gap: int = 1,
    exponents: bool = True,
    executions: list[int],
) -> Table:
    table = frame(glyphs, gap)
    table.add_column("\n#", justify="right", no_wrap=True)
    table.add_column("\nkind", no_wrap=True)
    if modules is not None:
        table.add_column("\nmodule", no_wrap=True)
    if exponents:
        table.add_column(f"{glyphs.exponent}\nmax", justify="right", no_wrap=True)
        table.add_column(f"{glyphs.exponent}\nmin", justify="right", no_wrap=True)
        table.add_column("memory\np90", justify="right", no_wrap=True)
    for i in executions:
        name = report.precisions[i].precision
        for head in (f" {name}\n rel L2", "\nT1", "\nfloor", "\nviol"):
            table.add_column(head, justify="right", no_wrap=True)
    for place, row in enumerate(words.rows(report)):
        cells: list[str | Text] = [str(row.layer), row.kind]
        if modules is not None:
            cells.append(modules[place])
        if exponents:
            cells += _exponent_cells(row.exponents)
        for i in executions:
            cells += _divergence_cells(row.divergences[i], glyphs)
        table.add_row(*cells)
    return table


def _exponent_cells(row: LayerExponents | None) -> list[str | Text]:
    if row is None:
        return [words.NOTHING] * 3
    largest: str | Text = words.number(row.max)
    if row.max is not None and not row.max < 0:
        largest = Text(f"!{largest}", style="bold red")
    return [largest, words.number(row.min), words.memory(row.memory_tokens)]


def _divergence_cells(row: LayerDivergence | None, glyphs: Glyphs) -> list[str | Text]:
    if row is None:
        return [words.NOTHING] * 4
    violations: str | Text = words.above(row, words.count(float(row.violations)))
    if row.violations:
        violations = Text(f"!{violations}", style="bold red")
    return [
        words.number(words.relative(row.local_l2, row.reference_l2)),
        words.ratio(row.bound_t1_ratio, glyphs.times),
        words.ratio(row.floor_t1_ratio, glyphs.times),
        violations if row.elements_total or row.violations else words.NOTHING,
    ]


def _logits(report: Report, glyphs: Glyphs) -> Table:
    table = frame(glyphs)
    table.add_column("logits", no_wrap=True)
    for head in ("rel L2", "max", "KL mean", "KL max", "flips", "ties", "of"):
        table.add_column(head, justify="right", no_wrap=True)
    for precision in report.precisions:
        output = precision.output
        if not output.compared:
            continue
        table.add_row(
            precision.precision,
            words.number(output.measured_rel_l2),
            words.number(output.measured_max),
            words.number(output.kl_mean),
            words.number(output.kl_max),
            f"{output.argmax_flips:,}",
            f"{output.argmax_ties:,}",
            f"{output.argmax_total:,}",
        )
    return table


# Distances that a terminal has room for.
_SHOWN = (0, 1, 4, 16, 64, 256, 1024)


def _growth(console: Console, report: Report, glyphs: Glyphs) -> None:
    """SSMs and attention on one scale, a row a kind."""
    rows = words.growth_rows(report.exponents.layers)
    if not rows:
        return
    shown = [d for d in rows[0].response if d in _SHOWN]
    table = frame(glyphs)
    table.add_column("kind", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    for distance in shown:
        table.add_column(f"+{distance}", justify="right", no_wrap=True)
    for row in rows:
        cells = [words.number(row.response[distance]) for distance in shown]
        table.add_row(row.kind, words.number(row.gain), *cells)
    console.print()
    console.print(table)
    console.print(Text(words.GROWTH_LEGEND, style="dim"))


def _estimates(console: Console, report: Report) -> None:
    """Predicted, certified and decided, a block an execution."""
    for precision in report.precisions:
        lines = output_lines(precision, report.checkpoint.n_layers)
        if lines:
            console.print()
            what = "logits" if precision.output.compared else "sublayers"
            console.print(_block(f"{precision.precision} {what}", lines))


def _changes(console: Console, report: Report) -> None:
    """Changed weight sets, a line each."""
    if report.parameter_changes:
        console.print()
        lines = [
            (change.name, change_sentence(change))
            for change in report.parameter_changes
        ]
        console.print(_block("changed weights", lines))


def _block(title: str, lines: list[tuple[str, str]]) -> Group:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(max_width=24, overflow="fold")
    grid.add_column(overflow="fold")
    for label, text in lines:
        grid.add_row(f"  {label}", Text(text))
    return Group(Text(title, style="bold"), grid)


def _losses(console: Console, report: Report, glyphs: Glyphs) -> None:
    """Where the bound is lost and where the error comes from, a row a sublayer."""
    for precision in report.precisions:
        rows = [
            row
            for row in precision.layers
            if row.binding_site or row.sigma_share is not None
        ]
        if not rows:
            continue
        table = frame(glyphs)
        table.add_column("\n#", justify="right", no_wrap=True)
        table.add_column(f"{precision.precision}\nbound lost at", no_wrap=True)
        for head in ("share of\nradius", "share of\nvariance", "certified\nradius"):
            table.add_column(head, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(
                str(row.layer),
                row.binding_site or words.NOTHING,
                percent(row.binding_share),
                percent(row.sigma_share),
                words.number(row.certified_l2),
            )
        console.print()
        console.print(table)


def show_findings(
    console: Console,
    findings: Sequence[Finding],
    modules: Mapping[int, str] | None = None,
) -> None:
    """A line for each code and precision; `modules` are by sublayer."""
    if not findings:
        return
    console.print()
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for group in words.groups(findings, modules):
        style = "bold red" if group.severity == ERROR else "bold yellow"
        text = Text.assemble((f"{group.where}: ", "bold"), group.message)
        grid.add_row(
            Text(group.severity, style=style),
            Text(group.code, style="bold"),
            Text(group.precision or ""),
            text,
        )
    console.print(grid)


def _verdict(console: Console, report: Report, glyphs: Glyphs, verbose: bool) -> None:
    line = headline(report)
    console.print()
    console.print(Text(f"{glyphs.marks[line.style]} {line}", style=STYLES[line.style]))
    if report.summary.baseline:
        console.print(Text(f"baseline: {report.summary.baseline}"))
    if report.summary.recommendation:
        console.print(Text(report.summary.recommendation))
    if report.summary.benchmark_note:
        console.print(Text(report.summary.benchmark_note, style="dim"))
    if verbose and report.summary.flags:
        console.print()
        lines = [
            (flag["stack"], f"{flag['flag']}  ({flag['why']})")
            for flag in report.summary.flags
        ]
        console.print(_block("what to give", lines))
