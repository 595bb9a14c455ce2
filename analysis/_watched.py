"""The command as users run it, in a process that notes when what happened.

A line of JSON goes to a file for each program that XLA compiled or read from its
cache, when the model is loaded, and when the answer is there. Times are those of
`time.monotonic`, which all processes of a machine share.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from lyapunov.command import _cli, _session


COMPILED = "/jax/core/compile/backend_compile_duration"


def main(given: list[str]) -> None:
    """Run `lyapunov-check` and end the process.

    **Arguments:**

    - `given`: the file of the notes, then what `lyapunov-check` is given.
    """
    notes, *arguments = given

    def note(what: str, **about: Any) -> None:
        line = json.dumps({"what": what, "at": time.monotonic(), **about})
        with Path(notes).open("a") as file:
            file.write(line + "\n")

    prepare, opened, checked = (
        _session._prepare_jax,
        _session._open,
        _session._checked,
    )

    def heard(event: str, duration_secs: float, **about: Any) -> None:
        if event == COMPILED:
            note("compiled", seconds=duration_secs, name=str(about.get("fun_name")))

    def preparing(*asked: Any) -> None:
        prepare(*asked)
        import jax

        jax.monitoring.register_event_duration_secs_listener(heard)

    def opening(*asked: Any) -> Any:
        model = opened(*asked)
        note("loaded")
        return model

    def checking(*asked: Any) -> Any:
        report = checked(*asked)
        import jax

        seen = jax.local_devices()[0].memory_stats() or {}
        note("answered", device_bytes=seen.get("peak_bytes_in_use"))
        return report

    _session._prepare_jax = preparing
    _session._open = opening
    _session._checked = checking
    sys.argv = ["lyapunov-check", *arguments]
    _cli.main()
