"""The study of how long a user waits: what it sees on a terminal, and its table."""

import os
import threading
import time

import pytest

from analysis import _first_answer_page as table, first_answer


def test_a_terminal_is_read_for_header_and_first_row():
    """Assert when each stood there, colours and cursor movements apart."""
    master, slave = os.openpty()
    parts = [
        "\x1b[?25l\x1b[1mcheckpoint\x1b[0m  x\n\x1b[1mnetwork   \x1b[0m  mamba1\n",
        "checking 3 of 5\n\x1b[2K0  mamba1  backbone.layers.0.mixer  -0.01\n",
        "1  mamba1  backbone.layers.1.mixer  -0.02\n",
    ]

    def speak():
        for part in parts:
            time.sleep(0.1)
            os.write(slave, part.encode())
        time.sleep(0.1)
        os.close(slave)

    began = time.monotonic()
    speaker = threading.Thread(target=speak)
    speaker.start()
    text, seen = first_answer._read(master, began, 30.0)
    speaker.join()
    os.close(master)
    assert text == "".join(parts).replace("\n", "\r\n")
    assert 0.1 <= seen["header"] < seen["first_row"] <= time.monotonic() - began - 0.1


def test_a_run_without_end_is_given_up():
    """Assert it for a terminal on which nothing comes."""
    master, slave = os.openpty()
    text, seen = first_answer._read(master, time.monotonic(), 0.05)
    os.close(slave)
    os.close(master)
    assert text is None
    assert seen == {"header": None, "first_row": None}


@pytest.fixture
def result():
    run = {
        "seconds": 20.0,
        "cpu_seconds": 31.5,
        "peak_gib": 0.5,
        "exit_code": 0,
        "load_before": 0.1,
        "header": 1.8,
        "first_row": 3.3,
        "loaded": 1.3,
        "programs": 22,
        "compile_seconds": 17.25,
        "slowest": {},
        "device_peak_gib": None,
    }
    whole = {
        "row": "mamba3",
        "effort": "standard",
        "device": "cpu",
        "cold": [run, run | {"seconds": 25.0}],
        "warm": [run | {"cpu_seconds": 7.5}],
        "environment": "here",
    }
    lost = whole | {"row": "audit", "effort": "", "cold": [], "failed": "stopped"}
    return {
        "command": "python -m analysis.first_answer",
        "rows": [whole, lost | {"warm": []}],
        "environments": {"here": {"cores": 2, "device": None}},
    }


def test_the_table_has_goals_and_what_was_measured(result):
    """Assert a row's figures: CPU seconds where the goal counts them."""
    lines = table.page(result).splitlines()
    (cold,) = [line for line in lines if line.startswith("| mamba3 standard cpu |")]
    assert cold == (
        "| mamba3 standard cpu | CPU s | cold | 30 |  | 31.5 | 20 | 31.5 | 22 | 17.2 | "
        "1.8 | 2 | 0.5 |"
    )
    assert "| 8 |  | 7.5 |" in lines[lines.index(cold) + 1]
    (lost,) = [line for line in lines if line.startswith("| audit cpu |")]
    assert "| 45 | 184 | stopped |" in lost
    assert {len(line.split("|")) for line in lines if line.startswith("|")} == {15}


def test_every_goal_is_of_a_row_that_there_is():
    """Assert names, devices and efforts of goals and of figures from before."""
    for name in {**table.GOALS, **table.BEFORE}:
        row, *effort, device = name.split()
        known = first_answer.ROWS[row]
        assert device in known.devices
        assert (effort or [""])[0] in (*first_answer.EFFORTS, "")
        assert bool(effort) == (known.efforts != ("",))
