"""Ctrl-C answers at once: the work runs in a thread, the main one waits for signals.

Python hands signals to the main thread between two of its own instructions, and one
compilation of XLA can take minutes. The thread that does the work is left behind where
it does not end by itself: the process then ends without waiting for it.
"""

import contextlib
import contextvars
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import click

from lyapunov.command._endings import INTERRUPTED


Result = TypeVar("Result")

# a wait without an end is not interrupted on every system
LOOK_UP = 0.2

_left_behind: list[threading.Thread] = []


def interruptible(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises, done in a thread of its own.

    **Raises:** `KeyboardInterrupt` at once on Ctrl-C, the work being left behind; a
    second Ctrl-C then ends the process.
    """
    outcome: dict[str, Any] = {}
    done = threading.Event()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome["result"] = context.run(work)
        except BaseException as error:
            outcome["error"] = error
        finally:
            done.set()

    thread = threading.Thread(target=run, name="lyapunov-check", daemon=True)
    try:
        thread.start()
        while not done.wait(LOOK_UP):
            pass
    except KeyboardInterrupt:
        if not done.is_set():
            _left_behind.append(thread)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
            click.echo("\nstopping" if sys.stderr.isatty() else "stopping", err=True)
        raise
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def leave(code: int) -> None:
    """End the process with what is written flushed, waiting for no thread.

    JAX and torch take seconds to tidy up what ends with the process anyway. Where
    neither was loaded and no work is left behind, nothing is done.
    """
    at_work = any(thread.is_alive() for thread in _left_behind)
    if not at_work and not {"jaxlib", "torch"} & set(sys.modules):
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
