"""What a check would cost, on a terminal."""

import io

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lyapunov.questions._plan import Plan
from lyapunov.report import _words as words
from lyapunov.report.table import frame, glyphs_for, show_findings


def to_plan_table(
    plan: Plan, *, width: int = 80, color: bool = False, encoding: str | None = "utf-8"
) -> str:
    """A plan as a terminal shows it.

    **Arguments:**

    - `width`: columns at hand.
    - `color`: whether to write colour codes.
    - `encoding`: of the terminal; one without the signs gets ASCII.

    **Returns:** text that ends in a newline.
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
    )
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    head.add_row("checkpoint", Text(plan.checkpoint, style="bold"))
    head.add_row(
        "",
        f"{plan.architecture}, {words.layers(plan.n_layers, plan.n_blocks)}, "
        f"{words.parameters(plan.n_params)} parameters",
    )
    head.add_row("tokens", f"{plan.batch} {glyphs.times} {plan.length}")
    head.add_row("runs", Text("\n".join(plan.executions) or "the reference alone"))
    head.add_row("device", plan.device)
    console.print(head)
    console.print()
    table = frame(glyphs)
    table.add_column("stage", no_wrap=True)
    for name in ("forwards", "time", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in plan.stages:
        table.add_row(
            stage.name,
            words.number(stage.forwards),
            duration(stage.seconds),
            size(stage.bytes),
        )
    console.print(table)
    console.print(
        f"one forward in fp64: {duration(plan.forward_seconds)}; time includes "
        "compiling",
        style="dim",
    )
    console.print()
    free = (
        "" if plan.available_bytes is None else f", {size(plan.available_bytes)} free"
    )
    console.print(
        Text(
            f"about {duration(plan.seconds)}, at most about {size(plan.peak_bytes)} of "
            f"memory{free}",
            style="bold",
        )
    )
    if not plan.fits:
        console.print(
            "more memory than is free: lower --length or --batch, or give one "
            "--precision at a time"
        )
    show_findings(console, plan.findings)
    text = "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
    return text.encode(encoding or "ascii", "replace").decode(encoding or "ascii")


def duration(seconds: float) -> str:
    """A time that nobody should take to the second: `0.4 s`, `40 s`, `3 min`, `2 h`."""
    if seconds < 100:
        return f"{words.number(seconds, 1 if seconds >= 10 else 2)} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def size(n: int) -> str:
    """Bytes: `310 MiB`, `1.4 GiB`."""
    if n < 2**30:
        return f"{n / 2**20:.0f} MiB"
    return f"{words.number(n / 2**30)} GiB"
