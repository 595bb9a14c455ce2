"""Progress on stderr: a bar with time left on a terminal, lines with -v elsewhere."""

import sys
import time
from typing import Any, TextIO


class SilentProgress:
    """Hear what a check tells its caller while it works, and say nothing."""

    def start(self, total: int, what: str) -> None:
        """A stretch of `total` steps begins."""

    def advance(self, n: int = 1, what: str | None = None) -> None:
        """`n` steps are done; `what` comes next."""

    def close(self) -> None:
        """Nothing more will come."""


class LineProgress(SilentProgress):
    """One plain line a step, for logs."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._total = 0
        self._done = 0
        self._what = ""
        self._begun = time.monotonic()

    def start(self, total: int, what: str) -> None:
        """Announce the stretch."""
        self._total, self._done, self._what = total, 0, what
        self._say(f"{what}: {total} steps")

    def advance(self, n: int = 1, what: str | None = None) -> None:
        """Say how far it is."""
        self._done += n
        self._what = what or self._what
        self._say(f"{self._what}: {self._done} of {self._total}")

    def _say(self, text: str) -> None:
        elapsed = time.monotonic() - self._begun
        self._stream.write(f"{elapsed:7.1f} s  {text}\n")
        self._stream.flush()


class BarProgress(SilentProgress):
    """A bar with the time left; gone once the work is done."""

    def __init__(self, stream: TextIO, *, color: bool | None = None):
        self._stream = stream
        self._color = color
        self._bar: Any = None
        self._task: Any = None
        self._closed = False

    def start(self, total: int, what: str) -> None:
        """Show the bar, or start it again for another stretch."""
        if self._closed:  # work that was left behind goes on
            return
        if self._bar is None:
            self._bar = self._open()
            self._bar.start()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total)

    def advance(self, n: int = 1, what: str | None = None) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, advance=n)
            if what is not None:
                self._bar.update(self._task, description=what)

    def close(self) -> None:
        """Take the bar away and give the cursor back."""
        self._closed = True
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _open(self) -> Any:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        console = Console(
            file=self._stream, no_color=True if self._color is False else None
        )
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
        )


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
    if stream.isatty():
        return BarProgress(stream, color=color)
    return LineProgress(stream) if verbose else SilentProgress()
