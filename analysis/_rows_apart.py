"""Rows of a study, each in a process of its own, and a result that grows with them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from studies.files import as_json, finite, write

from ._cross_cases import told


def print_row(found: dict[str, Any]) -> None:
    """Hand a row to the process that waits for it."""
    print(json.dumps(finite(found)), flush=True)


def known_rows(path: Path | None) -> dict[str, Any]:
    """The result so far; an empty one where there is none."""
    if path is not None and path.exists():
        return json.loads(path.read_text())
    return {"environments": [], "rows": [], "failed": {}}


def run_apart(
    study: str,
    result: dict[str, Any],
    waiting: list,
    path: Path,
    jobs: int,
    budget: float,
    more: Callable[[dict[str, Any]], str] = lambda row: "",
    options: tuple[str, ...] = (),
) -> list[str]:
    """Run cases side by side; gives the names of those for which no time was left.

    **Arguments:**

    - `study`: its module, which runs one case for `--case` and prints its row.
    - `result`: with `environments`, `rows` and `failed`; is filled in.
    - `waiting`: named tuples with a `name`.
    - `path`: of the result, written after every row.
    - `budget`: seconds.
    - `more`: what to say of a row beside its counts.
    - `options`: of the study, given to every process.
    """
    running: dict[Any, subprocess.Popen] = {}
    ended = time.monotonic() + budget
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    while waiting or running:
        late = time.monotonic() > ended
        while waiting and not late and len(running) < jobs:
            case = waiting.pop(0)
            running[case] = subprocess.Popen(
                [sys.executable, "-m", study, *options, "--case", json.dumps(case)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        for case, process in list(running.items()):
            if late:
                process.kill()
            elif process.poll() is None:
                continue
            rows, problem = told(*process.communicate(), process.returncode)
            del running[case]
            _take_in(result, case, rows, "out of time" if late else problem, more)
            write(path, as_json(result))
        if late:
            break
        time.sleep(0.2)
    return [case.name for case in waiting]


def _take_in(
    result: dict, case: Any, rows: list[dict], problem: str, more: Callable
) -> None:
    if not rows:
        result["failed"][case.name] = problem or "it printed no row"
        print(f"{case.name}: {result['failed'][case.name]}", file=sys.stderr)
        return
    found = rows[-1]
    environment = found.pop("environment")
    if environment not in result["environments"]:
        result["environments"].append(environment)
    found["environment"] = result["environments"].index(environment)
    result["rows"].append(found)
    result["failed"].pop(case.name, None)
    if found["violations"] is None:
        said = f"rel L2 {found['rel_l2']}, z {found['calibration_z']}"
    else:
        said = f"{found['violations']} violations, t1 {found['t1_ratio']}"
    if found.get("first_violation"):
        said += f", first {found['first_violation']}"
    said += more(found)
    print(f"{case.name}: {said}, {found['seconds']} s", file=sys.stderr, flush=True)


def short(x: float | None) -> str:
    """Three digits; no bound, or none that was measured, as a dash."""
    return "–" if x is None else f"{x:.3g}"


def span(pair: list[float | None] | None) -> str:
    """Least to most."""
    return "–" if pair is None else " to ".join(map(short, pair))


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Rows of a check or an audit as lines of Markdown."""
    heads = ("case", "violations", "elements", "without a bound", "T0", "T1")
    heads += ("rel L2", "sigma", "z", "KL", "flips")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for one in rows:
        cells = [one["case"]]
        cells += [
            "–" if one[name] is None else one[name]
            for name in ("violations", "elements", "unbounded")
        ]
        cells += [span(one["t0_ratio"]), span(one["t1_ratio"])]
        cells += [
            short(one[name])
            for name in ("rel_l2", "sigma_t3", "calibration_z", "kl_mean")
        ]
        cells.append(f"{one['flips']} of {one['tokens']}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines
