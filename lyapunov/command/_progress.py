"""Progress on stderr: on a terminal what is known so far over a bar with the time left,
elsewhere a line a minute, or a line a step with -v."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO


BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"
"""JAX's name for compiling a program, which may be reading it from the cache."""


class Compilations:
    """Count the programs that this process compiles, from `watch` on."""

    def __init__(self):
        self.begun = self.done = 0
        self.expected = 0
        """About how many there will be; 0 where nobody knows."""
        self._watching = False

    def watch(self) -> None:
        """Have JAX tell of every program; a second time changes nothing."""
        if self._watching:
            return
        self._watching = True
        import jax.monitoring

        jax.monitoring.register_scalar_listener(self._begins)
        jax.monitoring.register_event_duration_secs_listener(self._ends)

    def _begins(self, event: str, *_: Any, **__: Any) -> None:
        self.begun += event == BACKEND_COMPILE

    def _ends(self, event: str, *_: Any, **__: Any) -> None:
        self.done += event == BACKEND_COMPILE

    def __str__(self) -> str:
        """How far it is, in words; empty before the first."""
        working = self.begun > self.done
        n = self.done + working
        if not n:
            return ""
        of = f" of about {self.expected}" if n <= self.expected else ""
        return f"compiling {n}{of}" if working else f"{n} programs compiled"


COMPILATIONS = Compilations()
"""Of this process."""


class SilentProgress:
    """Hear what a check tells its caller while it works, and say nothing."""

    def start(self, total: int, what: str) -> None:
        """A stretch of `total` steps begins."""

    def advance(self, n: int = 1, what: str | None = None) -> None:
        """`n` steps are done; `what` comes next."""

    def known(self, report: Any) -> None:
        """`report` is what is known so far, without a verdict."""

    def compiles(self, n: int) -> None:
        """About `n` programs will be compiled."""
        COMPILATIONS.expected = COMPILATIONS.done + n

    def close(self) -> None:
        """Nothing more will come."""


class LineProgress(SilentProgress):
    """Plain lines, for logs.

    **Arguments:**

    - `every`: seconds from line to line; None is a line a step.
    """

    def __init__(self, stream: TextIO, every: float | None = None):
        self._stream = stream
        self._every = every
        self._total = 0
        self._done = 0
        self._what = ""
        self._begun = time.monotonic()
        self._closed = threading.Event()
        if every is not None:
            threading.Thread(target=self._tick, daemon=True).start()

    def start(self, total: int, what: str) -> None:
        """Announce the stretch."""
        self._total, self._done, self._what = total, 0, what
        if self._every is None:
            self._say(f"{what}: {total} steps")

    def advance(self, n: int = 1, what: str | None = None) -> None:
        """Say how far it is."""
        self._done += n
        self._what = what or self._what
        if self._every is None:
            self._say(self._place())

    def close(self) -> None:
        """Say nothing more."""
        self._closed.set()

    def _tick(self) -> None:
        while not self._closed.wait(self._every):
            self._say(self._place() if self._total else "loading")

    def _place(self) -> str:
        compiling = f"; {COMPILATIONS}" if str(COMPILATIONS) else ""
        return f"{self._what}: {self._done} of {self._total}{compiling}"

    def _say(self, text: str) -> None:
        elapsed = time.monotonic() - self._begun
        self._stream.write(f"{elapsed:7.1f} s  {text}\n")
        self._stream.flush()


class BarProgress(SilentProgress):
    """What is known so far, and a bar with the time left; gone once the work is done,
    when the whole report takes its place."""

    def __init__(self, stream: TextIO, *, color: bool | None = None):
        self._stream = stream
        self._color = color
        self._bar: Any = None
        self._task: Any = None
        self._report: Any = None
        self._closed = False
        self._lock = threading.Lock()

    def start(self, total: int, what: str) -> None:
        """Show the bar, or start it again for another stretch."""
        self._open()
        if self._bar is None:
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total)

    def advance(self, n: int = 1, what: str | None = None) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=n)
            if what is not None:
                self._bar.update(self._task, description=what)

    def known(self, report: Any) -> None:
        """Show it with the next refresh."""
        self._report = report
        self._open()

    def close(self) -> None:
        """Take it all away and give the cursor back."""
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.stop()
                self._bar = self._task = None

    def _open(self) -> None:
        with self._lock:
            # work that was left behind goes on
            if self._bar is None and not self._closed:
                self._bar = self._made()
                self._bar.start()

    def _made(self) -> Any:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        shown, outer = _Shown(color=self._color is not False), self
        console = Console(
            file=self._stream, no_color=True if self._color is False else None
        )

        class Whole(Progress):
            def get_renderables(self) -> Iterator[Any]:
                yield from shown.lines(outer._report, console)
                yield self.make_tasks_table(self.tasks)

        return Whole(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
            refresh_per_second=4,
        )


class _Shown:
    """What is known so far as a terminal shows it, made anew where there is more."""

    ROOM = 3
    """Lines that the bar, what is compiled and the cursor take."""

    def __init__(self, color: bool):
        self._color = color
        self._of: Any = None
        self._size: Any = None
        self._lines: list[str] = []
        self._fits = 10_000

    def lines(self, report: Any, console: Any) -> Iterator[Any]:
        """The report's lines, as many as there is room for, then what is compiled."""
        from rich.text import Text

        if report is not None:
            if report is not self._of or console.size != self._size:
                if console.size != self._size:
                    self._fits = 10_000
                self._of, self._size = report, console.size
                self._lines = self._made(report, console)
            yield Text.from_ansi("\n".join(self._lines))
        if str(COMPILATIONS):
            yield Text(str(COMPILATIONS), style="dim")

    def _made(self, report: Any, console: Any) -> list[str]:
        from lyapunov.report import to_table

        def table(rows: int) -> list[str]:
            text = to_table(
                report,
                rows=rows,
                width=console.width,
                color=self._color and not console.no_color,
                encoding=console.encoding,
            )
            return text.splitlines()

        room = max(console.height - self.ROOM, 1)
        # the last rows are those that are new; about as many fit as before
        rows = max(1, min(self._fits + 2, len(report.exponents.layers)))
        lines = table(rows)
        while len(lines) > room and rows > 1:
            rows -= max(1, min(rows - 1, (len(lines) - room) // 4))
            lines = table(rows)
        self._fits = rows
        return lines if len(lines) <= room else [lines[0], *lines[1 - room :]]


def choose_progress(
    *,
    wanted: bool = True,
    quiet: bool = False,
    verbose: bool = False,
    color: bool | None = None,
    stream: TextIO | None = None,
) -> SilentProgress:
    """The kind of progress that suits the stream (stderr) and the options."""
    stream = sys.stderr if stream is None else stream
    if quiet or not wanted or stream is None:
        return SilentProgress()
    # a dumb terminal cannot take a line back
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return BarProgress(stream, color=color)
    return LineProgress(stream, None if verbose else 60.0)
