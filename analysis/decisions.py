"""Greedy tokens on CUDA: how many change, and how many of those predicted not to.

`python -m analysis.decisions` runs the cases of `analysis.cross_check` on the kernels
and counts tokens alone: bounds are found for the first sublayer and no other. A token
is changed where the choices differ, each by lowest index; only ties of the reference
are told apart. It writes decisions.json and .md, a case at a time, each in a process of
its own; a run that was cut goes on where it was.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from studies.files import write
from studies.study import Study

from ._cross_cases import (
    Case,
    add_case,
    case_of,
    cases,
    own_process,
    rehearsed,
    source,
    tokens,
    told,
)


STUDY = Study(
    "analysis.decisions",
    "minutes on an H200 with 16 cores; it goes on where it ended",
    Path(__file__).parent / "results" / "decisions.json",
    ("mamba_ssm", "causal_conv1d", "transformers"),
    more="an NVIDIA GPU, or --rehearse, which needs none of these",
)
SCRATCH = Path(tempfile.gettempdir()) / "decisions"
COUNTS = ("tokens", "changed", "ties", "predicted_stable", "predicted_changed")


def count(case: Case, folder: Path, rehearse: bool) -> None:
    """Print a row a precision, as a line of JSON each."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import lyapunov

    model = lyapunov.load(source(case.model, folder))
    for precision in case.precisions:
        began = time.perf_counter()
        report = lyapunov.check(
            model,
            tokens(model, case),
            precisions=[precision],
            mode=case.mode,
            measure=case.measures[-1 if rehearse else 0],
            layers=[0],
            effort="quick",
        )
        (found,) = report.precisions
        output = found.output
        assert output.decisions is not None
        row = {
            **{"case": case.name, "model": case.model, "mode": case.mode},
            **{"batch": case.batch, "length": case.length},
            **{"precision": precision, "measured_by": found.measured_by},
            "tokens": output.argmax_total,
            "changed": output.argmax_flips,
            "ties": output.argmax_ties,
            "predicted_stable": output.decisions.predicted_stable,
            "predicted_changed": output.decisions.predicted_flipped,
            "sigma_withheld": output.sigma_withheld,
            "calibration_z": output.calibration_z,
            "seconds": round(time.perf_counter() - began, 1),
            "environment": report.environment,
        }
        print(json.dumps(row), flush=True)


def in_a_process(case: Case, options: argparse.Namespace) -> tuple[list[dict], str]:
    """The rows of one case, and what went wrong or nothing."""
    left = options.until - time.monotonic()
    if left < 5:
        return [], "no time left"
    command, environment = own_process("analysis.decisions", case, options)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        out, said = process.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        process.kill()
        out, said = process.communicate()[0], "out of time"
    return told(out, said, process.returncode)


def run_all(options: argparse.Namespace) -> dict:
    """Every case that has no row yet, several at a time, within the budget."""
    path = options.out
    result = {"command": "python -m analysis.decisions", "failed": {}, "rows": []}
    if path.exists():
        result |= json.loads(path.read_text())
    options.scratch.mkdir(parents=True, exist_ok=True)
    have = {(row["case"], row["precision"]) for row in result["rows"]}
    waiting = []
    for case in rehearsed() if options.rehearse else cases():
        left = tuple(p for p in case.precisions if (case.name, p) not in have)
        if left and all(part in case.name for part in options.only):
            waiting.append(case._replace(precisions=left))
    for name in {case.model for case in waiting}:
        source(name, options.scratch)  # random networks are written once
    with ThreadPoolExecutor(options.jobs) as workers:
        running = [(c, workers.submit(in_a_process, c, options)) for c in waiting]
        for done, (case, future) in enumerate(running, 1):
            rows, problem = future.result()
            result["rows"] += rows
            result["failed"].pop(case.name, None)
            if problem:
                result["failed"][case.name] = problem
            write(path, json.dumps(result, indent=1) + "\n")
            write(path.with_suffix(".md"), page(result))
            said = problem or f"{len(rows)} rows"
            print(f"{done}/{len(running)} {case.name}: {said}", file=sys.stderr)
    return result


def total(rows: list[dict]) -> dict[str, int]:
    """The counts of several rows, added up."""
    return {key: sum(row[key] for row in rows) for key in COUNTS}


def page(result: dict) -> str:
    """A line a network, mode and format, and the sum of all."""
    rows = result["rows"]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["mode"], row["precision"]), []).append(row)
    machines = dict.fromkeys(
        ", ".join(
            f"{key} {row['environment'][key]}"
            for key in ("device", "python", "jax", "torch", "transformers", "mamba_ssm")
            if row["environment"].get(key)
        )
        for row in rows
    )
    lines = ["# Greedy tokens on CUDA", "", f"`{result['command']}`", *machines, ""]
    lines += [f"not finished: {k}: {why}" for k, why in result["failed"].items()]
    lines += [
        "",
        "Changed: the lowest index of the largest logit is another than in fp64. Ties: "
        "changed between equal leaders of the reference, counted apart. Predicted "
        "stable: the margin to every other token exceeds 4 sigma.",
        "",
        "| network | mode | format | tokens | changed | ties | predicted stable "
        "| of those changed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    summed = [((*key, ""), total(found)) for key, found in groups.items()]
    for key, counts in [*summed, (("all", "", "", ""), total(rows))]:
        cells = [*key[:3], *(f"{counts[name]:,}" for name in COUNTS)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(given: list[str] | None = None) -> None:
    """Run what is missing, or one case of it."""
    parser = STUDY.parser(__doc__)
    parser.add_argument("--scratch", type=Path, default=SCRATCH, help="for networks")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds")
    parser.add_argument("--only", nargs="*", default=[], help="parts of cases' names")
    add_case(parser)
    options = parser.parse_args(given)
    if case := case_of(options):
        count(case, options.scratch, options.rehearse)
        return
    if options.rehearse and options.out == STUDY.committed:
        parser.error("a rehearsal is not committed: leave out one of them")
    if not options.rehearse:
        STUDY.begin(options.out)
    options.until = time.monotonic() + options.budget
    result = run_all(options)
    print(page(result))
    for name, problem in result["failed"].items():
        print(f"not finished: {name}: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main()
