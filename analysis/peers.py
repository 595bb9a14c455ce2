"""Lyapunov exponents side by side with other libraries: answers and times.

`python -m analysis.peers` times Lorenz-63 (RK4, step 0.01, 100,000 steps), the Henon
map (100,000 steps) and a diagonal system driven by its inputs (1024 channels, 4096
tokens) in every library that is installed, and writes peers.json,
peers.md and peers.svg. `pip install lyapax chaotax clvlib lyapynov pynamicalsys jitcode
sympy` into the environment first; those that are missing are named.

Libraries take turns, round by round, so that a busy machine slows all of them; a time
is the smallest of all rounds but the first, which compiles. Of one chaotic trajectory
no two codes compute the same orbit: errors for Lorenz and Henon say how far one
trajectory is from the limit and cannot rank them. Of the diagonal system the answer is
known: a caller who splits it by hand into 1024 scalar systems gets all exponents from
chaotax, which is no generic use and counts apart, as do runs that orthonormalise at
every tenth step. jitcode's integrator is adaptive and renews vectors every 0.1: other
work.
"""

import importlib.metadata
import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np

from studies.files import write
from studies.problems import Problem
from studies.study import Study, refuse_failed

from . import _peers_cases as cases


ROUNDS = 4
# Right: within what one trajectory is from the limit; exactly, for the diagonal one.
ALLOWED = {"lorenz": 0.03, "henon": 0.01, "diagonal": 1e-3}
TITLES = {
    "lorenz": "Lorenz-63, 3 exponents",
    "henon": "Henon, 2 exponents",
    "diagonal": "diagonal, d = 1024: ours all, peers 16",
}
# Counted apart from what users of a library type first.
APART = (", every 10", ", split by hand")
LARGEST = 16
LIBRARIES = ("lyapax", "chaotax", "clvlib", "lyapynov", "pynamicalsys", "jitcode")
STUDY = Study(
    "analysis.peers",
    "minutes on quiet cores",
    Path(__file__).parent / "results" / "peers.json",
    ("matplotlib",),
    more=f"the peers (pip install {' '.join(LIBRARIES)} sympy)",
)


def study(system: str, makers: dict, rounds: int, small: bool = False) -> list[dict]:
    """One row a library: seconds of every round, error, or why it did not run."""
    rows, runs = {}, {}
    for name, make in makers.items():
        rows[name] = {"library": name, "seconds": [], "error": None, "failed": None}
        try:
            runs[name] = make()
        except ImportError as problem:
            rows[name]["failed"] = f"not installed: {problem}"
    exact = cases.truth(system, small)
    for number in range(rounds):
        for name, run in list(runs.items()):
            start = time.perf_counter()
            try:
                found = np.asarray(run(), np.float64)
            except Exception as problem:  # a peer's failure is a result
                rows[name]["failed"] = f"{type(problem).__name__}: {problem}"[:200]
                del runs[name]
                continue
            rows[name]["seconds"].append(time.perf_counter() - start)
            found = np.sort(found[np.isfinite(found)])[::-1]
            shown = min(len(found), len(exact))
            rows[name]["error"] = float(np.abs(found[:shown] - exact[:shown]).max())
            rows[name]["exponents"] = shown
            rows[name]["values"] = found[:LARGEST].tolist()
            rows[name]["sum"] = float(found.sum())
            print(f"{system}, round {number}, {name}", file=sys.stderr, flush=True)
    return [finished(row, system) for row in rows.values()]


def finished(row: dict, system: str) -> dict:
    """First and best time, and whether the answer is right."""
    seconds = row["seconds"]
    row["cold"] = seconds[0] if seconds else None
    row["warm"] = min(seconds[1:]) if len(seconds) > 1 else None
    row["right"] = None if row["error"] is None else row["error"] <= ALLOWED[system]
    return row


def best_peer(rows: list[dict], apart: str = "") -> dict | None:
    """The fastest library but ours whose answer is right.

    **Arguments:**

    - `apart`: of those whose name ends so; otherwise of those that count by default.
    """
    others = [
        r
        for r in rows
        if not r["library"].startswith("ours")
        and r["warm"]
        and r["right"]
        and (r["library"].endswith(apart) if apart else not _apart(r))
    ]
    return min(others, key=lambda r: r["warm"], default=None)


def ratio(rows: list[dict], apart: str = "") -> float | None:
    """The best peer's warm time over ours, run in the same way."""
    other = best_peer(rows, apart)
    mine = [r for r in rows if r["library"] == f"ours{apart}"] or rows[:1]
    ours = mine[0]["warm"]
    return other["warm"] / ours if other and ours else None


def _apart(row: dict) -> bool:
    return row["library"].endswith(APART)


def table(systems: dict[str, list[dict]]) -> str:
    """As markdown: warm seconds, and the first call's in brackets."""
    names = []
    for rows in systems.values():
        names += [r["library"] for r in rows if r["library"] not in names]
    head = "| | " + " | ".join(TITLES[s] for s in systems) + " |"
    lines = [head, "|---" * (len(systems) + 1) + "|"]
    for name in names:
        cells = []
        for rows in systems.values():
            row = next((r for r in rows if r["library"] == name), None)
            cells.append(_cell(row))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict | None) -> str:
    if row is None:
        return "-"
    if row["warm"] is None:
        return "failed"
    text = f"{row['warm']:.2g} s ({row['cold']:.2g})"
    return text if row["right"] else f"{text}, **off by {row['error']:.2g}**"


def draw(systems: dict[str, list[dict]], path: Path) -> None:
    """Warm times as bars on one logarithmic scale a system."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(systems), figsize=(11, 3.2))
    for axis, (system, rows) in zip(np.atleast_1d(axes), systems.items(), strict=True):
        shown = sorted((r for r in rows if r["warm"]), key=lambda r: -r["warm"])
        colours = [
            ("#1b6ca8" if r["library"].startswith("ours") else "#9aa5b1")
            if r["right"]
            else "#c44"
            for r in shown
        ]
        names = [
            r["library"] if r["right"] else f"{r['library']}, wrong" for r in shown
        ]
        axis.barh(names, [r["warm"] for r in shown], color=colours)
        for place, row in enumerate(shown):
            axis.text(row["warm"], place, f" {row['warm']:.2g} s", va="center", size=8)
        axis.set_xscale("log")
        axis.set_xlim(right=20 * max(r["warm"] for r in shown))
        axis.set_title(TITLES[system], size=9)
        axis.set_xlabel("seconds, warm", size=8)
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def environment() -> dict:
    """Versions of everything that took part."""
    found = {"cpus": os.cpu_count(), "python": sys.version.split()[0]}
    for name in (*LIBRARIES, "jax", "jaxlib", "numpy", "numba", "scipy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def without(makers: dict, left_out: list[str]) -> dict:
    """The makers but those of libraries that were left out, in all their variants."""
    return {
        name: make
        for name, make in makers.items()
        if not any(name == lost or name.startswith(f"{lost},") for lost in left_out)
    }


def failures(systems: dict[str, list[dict]]) -> list[str]:
    """Libraries that gave nothing, and why: `lorenz, chaotax: not installed: ...`."""
    return [
        f"{system}, {row['library']}: {row['failed']}"
        for system, rows in systems.items()
        for row in rows
        if row["failed"]
    ]


def main(given: list[str] | None = None) -> None:
    """Run all and write the files."""
    parser = STUDY.parser(__doc__)
    parser.add_argument(
        "--without", nargs="+", default=[], choices=LIBRARIES, help="leave out"
    )
    options = parser.parse_args(given)
    if options.without and options.out == STUDY.committed:
        parser.error("--commit takes all libraries: leave out --without")
    wanted = [name for name in LIBRARIES if name not in options.without]
    STUDY.begin(options.out)
    absent = [name for name in wanted if find_spec(name) is None]
    if absent:
        raise Problem(
            f"not installed: {', '.join(absent)}",
            f"pip install {' '.join(absent)}, or --without {' '.join(absent)}",
        )
    jax.config.update("jax_enable_x64", True)
    systems = {
        system: study(system, without(makers, options.without), ROUNDS)
        for system, makers in cases.cases().items()
    }
    result = {
        "command": "python -m analysis.peers",
        "environment": environment(),
        "rounds": ROUNDS,
        "allowed": ALLOWED,
        "load": os.getloadavg(),
        "peer_over_ours": {
            f"{system}{apart}": ratio(rows, apart)
            for system, rows in systems.items()
            for apart in ("", *APART)
            if best_peer(rows, apart)
        },
        "systems": systems,
    }
    refuse_failed(options.out, failures(systems))
    write(options.out, json.dumps(result, indent=2) + "\n")
    write(options.out.with_suffix(".md"), table(systems))
    draw(systems, options.out.with_suffix(".svg"))
    print(table(systems))
    print(json.dumps(result["peer_over_ours"]))


if __name__ == "__main__":
    main()
