"""Assert that progress shows where it should and nowhere else."""

import dataclasses
import io
import itertools
import time

import pytest
from rich.console import Console

from lyapunov.command import _progress
from lyapunov.command._progress import (
    BACKEND_COMPILE,
    BarProgress,
    Compilations,
    LineProgress,
    SilentProgress,
    choose_progress,
)
from lyapunov.report import to_table
from lyapunov.results._check import UNDECIDED, OutputDivergence

from .conftest import example


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch):
    """Other tests' commands have counted what they compiled in this process."""
    monkeypatch.setattr(_progress, "COMPILATIONS", Compilations())


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
        (io.StringIO, {}, LineProgress),
        (io.StringIO, {"quiet": True}, SilentProgress),
        (io.StringIO, {"verbose": True}, LineProgress),
        (io.StringIO, {"verbose": True, "wanted": False}, SilentProgress),
    ],
)
def test_kind_suits_the_stream_and_the_options(stream, options, kind, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    progress = choose_progress(stream=stream(), **options)
    assert type(progress) is kind
    _work(progress)
    monkeypatch.setenv("TERM", "dumb")
    assert not isinstance(choose_progress(stream=stream(), **options), BarProgress)


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


def test_without_a_terminal_a_line_tells_it_every_minute(monkeypatch):
    """Assert it of a shorter minute, also while one step takes long; no line more
    after the end, and none of a check that ends within the first."""
    counted = Compilations()
    monkeypatch.setattr(_progress, "COMPILATIONS", counted)
    assert getattr(choose_progress(stream=io.StringIO()), "_every", None) == 60
    short, stream = io.StringIO(), io.StringIO()
    _work(LineProgress(short, 60.0))
    assert short.getvalue() == ""
    progress = LineProgress(stream, 0.01)
    wait_for(stream, "s  loading\n")
    progress.start(3, "checking")
    progress.advance(1, "layer 0")
    counted._begins(BACKEND_COMPILE, 0.0, fun_name="f")
    wait_for(stream, "s  layer 0: 1 of 3; compiling 1\n")
    progress.close()
    time.sleep(0.03)
    before = stream.getvalue()
    time.sleep(0.05)
    assert stream.getvalue() == before


def wait_for(stream, text):
    deadline = time.monotonic() + 5
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.005)


def test_compilations_are_counted():
    """Assert it by JAX's own events, of which others are not of compiling."""
    import jax
    import jax.numpy as jnp

    counted = Compilations()
    assert str(counted) == ""
    counted.expected = 2
    counted._begins(BACKEND_COMPILE, 0.0)
    assert str(counted) == "compiling 1 of about 2"
    counted._ends(BACKEND_COMPILE, 0.1)
    counted._ends("/jax/core/compile/jaxpr_trace_duration", 0.1)
    assert str(counted) == "1 programs compiled"
    for _ in range(2):
        counted._begins(BACKEND_COMPILE, 0.0)
    assert str(counted) == "compiling 2 of about 2"
    for _ in range(2):
        counted._ends(BACKEND_COMPILE, 0.0)
    counted._begins(BACKEND_COMPILE, 0.0)
    assert str(counted) == "compiling 4", "more than were expected"
    watched = Compilations()
    watched.watch()
    watched.watch()
    try:
        jax.jit(lambda x: jnp.cosh(x) * 3.25).lower(1.0).compile()
        assert (watched.begun, watched.done) == (1, 1)
    finally:
        jax.monitoring.unregister_scalar_listener(watched._begins)
        jax.monitoring.unregister_event_duration_listener(watched._ends)


# --- What is known so far ---------------------------------------------------------


def so_far(rows: int, n_layers: int = 24):
    """What is known of so many sublayers, of the last its exponents alone."""
    whole = example.example_report(n_layers)
    return dataclasses.replace(
        whole,
        exponents=dataclasses.replace(
            whole.exponents, layers=whole.exponents.layers[:rows]
        ),
        precisions=[
            dataclasses.replace(
                p, layers=p.layers[: rows - 1], output=OutputDivergence()
            )
            for p in whole.precisions
        ],
        findings=[],
        summary=UNDECIDED,
    )


def test_what_is_not_finished_has_no_verdict_and_no_legend():
    text = to_table(so_far(3))
    assert text.startswith("checkpoint  state-spaces/mamba-130m-hf\n")
    assert "so far, of 3 of 24 sublayers" in " ".join(text.split())
    assert "HELD" not in text
    assert "sublayers checked" not in text
    assert "Exponents in nats" not in text
    rows = [line for line in text.splitlines() if " mamba1 " in line]
    assert len(rows) == 3
    assert rows[0].count("×") == 2, "a bound for each execution"
    assert rows[2].count("×") == 0, "its executions are still at work"
    header = to_table(so_far(0))
    assert "tokens" in header
    assert "exponents" not in header
    assert "Layers" not in header


@pytest.mark.parametrize("height", [12, 24])
def test_as_much_as_there_is_room_for(height):
    """Assert that the header stays, that the newest row is there, and each once."""
    for width, rows in itertools.product((80, 200), (1, 24)):
        console = Console(file=Terminal(), width=width, height=height)
        lines = _progress._Shown(color=False)._made(so_far(rows), console)
        assert len(lines) <= height - 3
        assert lines[0].startswith("checkpoint")
        last = lines[max(i for i, line in enumerate(lines) if "───" in line) :]
        numbers = [
            line.split()[0] for line in last if line[:1].isdigit() or line[:1] == " "
        ]
        assert len(set(numbers)) == len(numbers)
        assert numbers[-1] == str(rows - 1)
        if len(numbers) < rows:
            assert len(lines) > height - 7, "room for one more"


def test_a_terminal_shows_what_is_known_over_the_bar_and_takes_it_away(
    monkeypatch, capsys
):
    """Assert that nothing stays, and nothing of it goes to stdout."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    stream = Terminal()
    progress = BarProgress(stream)
    progress.known(so_far(0))
    progress.start(24, "checking")
    progress.known(so_far(2))
    progress.advance(1, "layer 1")
    progress._bar.refresh()
    height = progress._bar.live._live_render._shape[1]
    progress.close()
    shown = stream.getvalue()
    assert "129M parameters" in shown
    assert "layer 1" in shown
    assert height > 10
    # the cursor goes up over every line, each wiped
    assert shown.count("\x1b[1A\x1b[2K", shown.rindex("layer 1")) == height
    progress.known(so_far(3))  # by work that was left behind
    assert stream.getvalue() == shown
    assert capsys.readouterr().out == ""
