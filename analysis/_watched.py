"""The command as users run it, in a process that notes when what happened.

A line of JSON goes to a file for each program that XLA compiled or read from its
cache, when the model is loaded, and at the end, with what was waited for weights. Times
are those of `time.monotonic`, which all processes of a machine share.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import lyapunov


WAITED = "/lyapunov/parameters/waited"
COMPILED = "/jax/core/compile/backend_compile_duration"


def main(given: list[str]) -> None:
    """Run `lyapunov-check` and end the process.

    **Arguments:**

    - `given`: the file of the notes, then what `lyapunov-check` is given.
    """
    notes, *arguments = given
    import jax

    def note(what: str, **about: Any) -> None:
        line = json.dumps({"what": what, "at": time.monotonic(), **about})
        with Path(notes).open("a") as file:
            file.write(line + "\n")

    def heard(event: str, duration_secs: float, **about: Any) -> None:
        if event == COMPILED:
            note("compiled", seconds=duration_secs, name=str(about.get("fun_name")))
        elif event == WAITED:
            waited[0] += duration_secs

    load, leave = lyapunov.load, os._exit
    waited = [0.0]

    def loading(*asked: Any, **named: Any) -> Any:
        model = load(*asked, **named)
        note("loaded")
        return model

    def ended() -> None:
        seen = jax.local_devices()[0].memory_stats() or {}
        memory = seen.get("peak_bytes_in_use")
        note("answered", device_bytes=memory, waited=waited[0])

    def leaving(code: int) -> None:
        ended()
        leave(code)

    jax.monitoring.register_event_duration_secs_listener(heard)
    lyapunov.load, os._exit = loading, leaving  # type: ignore[assignment]
    sys.argv = ["lyapunov-check", *arguments]
    try:
        runpy.run_module("lyapunov", run_name="__main__")
    finally:
        ended()
