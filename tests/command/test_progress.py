"""Assert that progress shows where it should and nowhere else."""

import io

import pytest

from lyapunov.command._progress import (
    BarProgress,
    LineProgress,
    SilentProgress,
    choose_progress,
)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def _work(progress):
    progress.start(3, "layers")
    for i in range(3):
        progress.advance(1, f"layer {i}")
    progress.start(2, "bounds")
    progress.advance(n=2)
    progress.close()
    progress.close()


@pytest.mark.parametrize(
    ("stream", "options", "kind"),
    [
        (Terminal, {}, BarProgress),
        (Terminal, {"verbose": True}, BarProgress),
        (Terminal, {"wanted": False}, SilentProgress),
        (Terminal, {"quiet": True}, SilentProgress),
        (io.StringIO, {}, SilentProgress),
        (io.StringIO, {"verbose": True}, LineProgress),
        (io.StringIO, {"verbose": True, "wanted": False}, SilentProgress),
    ],
)
def test_kind_suits_the_stream_and_the_options(stream, options, kind):
    progress = choose_progress(stream=stream(), **options)
    assert type(progress) is kind
    _work(progress)


def test_lines_tell_what_and_how_far():
    stream = io.StringIO()
    _work(LineProgress(stream))
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("s  layers: 3 steps")
    assert lines[3].endswith("layer 2: 3 of 3")
    assert lines[-1].endswith("bounds: 2 of 2")


def test_bar_shows_the_time_left_and_goes_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = BarProgress(stream)
    progress.start(4, "layers [x]")
    progress.advance(1)
    progress.close()
    shown = stream.getvalue()
    assert "layers [x]" in shown
    assert "-:--:--" in shown or "0:0" in shown
    assert shown.rstrip("\r").endswith("\x1b[2K") or "\x1b[?25h" in shown
    progress.close()


def test_closing_before_the_start_and_advancing_after_the_end_are_no_errors():
    for progress in (BarProgress(Terminal()), LineProgress(io.StringIO())):
        progress.close()
        progress.advance()
