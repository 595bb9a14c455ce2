"""Predicted against measured on CUDA: bounds, estimates and emulation beside it.

`python -m analysis.cross_check` needs an NVIDIA GPU with mamba_ssm, causal_conv1d and
transformers. Trained networks (Mamba-1, -2, -3, GPT-NeoX) and random ones of the 130M
and 2.8B shapes run on the kernels and in the emulator; every element of every stored
tensor is held to T0 and T1, the logits to what T3 predicted. It writes
cross_check.json, .md and .png, a case at a time, each in a process of
its own; a run that was cut goes on where it was.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from studies.files import as_json, finite, write
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
from ._cross_page import draw, page


RESULTS = Path(__file__).parent / "results" / "cross_check.json"
SCRATCH = Path(tempfile.gettempdir()) / "cross_check"
STUDY = Study(
    "analysis.cross_check",
    "3.6 hours of processes, side by side beside an H200; it goes on where it ended",
    RESULTS,
    ("mamba_ssm", "causal_conv1d", "transformers", "matplotlib"),
    gpu=True,
    more="or --rehearse, which needs none of these",
)


def row(report, precision) -> dict:
    """What one execution of one report says."""
    layers, output = precision.layers, precision.output
    t0 = [ratio for layer in layers for ratio in (layer.bound_t0 or {}).values()]
    t1 = [layer.bound_t1_ratio for layer in layers if layer.bound_t1_ratio]
    last = layers[-1]
    # of an effort without bounds nothing is counted
    count = precision.count if last.violations is not None else lambda _: None
    return {
        "execution": precision.execution,
        "precision": precision.precision,
        "measured_by": precision.measured_by,
        "violations": count("violations"),
        "elements": count("elements_bounded"),
        "unbounded": count("elements_unbounded"),
        "t0_ratio": [min(t0), max(t0)] if t0 else None,
        "t1_ratio": [min(t1), max(t1)] if t1 else None,
        "rel_l2": output.measured_rel_l2,
        "sigma_t3": output.sigma_t3,
        "sigma_withheld": output.sigma_withheld,
        "calibration_z": output.calibration_z,
        "weights_rel_l2": output.weights_rel_l2,
        "kl_mean": output.kl_mean,
        "kl_max": output.kl_max,
        "flips": output.argmax_flips,
        "ties": output.argmax_ties,
        "reference_ties": output.reference_ties,
        "tokens": output.argmax_total,
        "predicted_stable": output.decisions and output.decisions.predicted_stable,
        "predicted_flipped": output.decisions and output.decisions.predicted_flipped,
        "by_position": {
            "kl": output.kl_by_position,
            "local": last.local_by_position,
            "bound": last.bound_by_position,
            "accumulated": last.accumulated_by_position,
        },
    }


def rows(case: Case, folder: Path, rehearse: bool) -> list[dict]:
    """A row a precision, measured and, where it is small, emulated."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import lyapunov

    model = lyapunov.load(source(case.model, folder))
    found = []
    for precision in case.precisions:
        for measure in case.measures[-1:] if rehearse else case.measures:
            began = time.perf_counter()
            report = lyapunov.check(
                model,
                tokens(model, case),
                precisions=[precision],
                mode=case.mode,
                measure=measure,
                growth=False,
            )
            found.append(
                {"case": case.name, "model": case.model, "mode": case.mode}
                | {"batch": case.batch, "length": case.length}
                | row(report, report.precisions[0])
                | {"seconds": round(time.perf_counter() - began, 1)}
                | {"environment": report.environment | _gpu(rehearse)}
            )
            print(json.dumps(finite(found[-1])), flush=True)
    return found


def _gpu(rehearse: bool) -> dict:
    """What ran, beside the environment of the report."""
    if rehearse:
        return {}
    import mamba_ssm
    import torch
    import transformers

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "mamba_ssm": mamba_ssm.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda,
    }


class Results:
    """The rows so far, on disk after every one."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict] = []
        self.environments: list[dict] = []
        self.failed: dict[str, str] = {}
        if path.exists():
            before = json.loads(path.read_text())
            self.rows, self.environments = before["rows"], before["environments"]
            self.failed = before["failed"]

    def missing(self, case: Case) -> Case | None:
        """The precisions of a case that have no row yet."""
        have = {row["precision"] for row in self.rows if row["case"] == case.name}
        left = tuple(p for p in case.precisions if p not in have)
        return case._replace(precisions=left) if left else None

    def add(self, case: Case, found: list[dict], problem: str | None) -> None:
        """The rows of one process, and what ended it early.

        Of a precision that was only half measured nothing is kept, so that it is run
        again.
        """
        for one in found:
            environment = one.pop("environment")
            if environment not in self.environments:
                self.environments.append(environment)
            one["environment"] = self.environments.index(environment)
        self.rows += found
        self.failed.pop(case.name, None)
        if problem:
            self.failed[case.name] = problem
        self.write()

    def write(self) -> None:
        """json and md, whole or not at all."""
        names = {case.name: i for i, case in enumerate(cases())}
        self.rows.sort(key=lambda one: names.get(one["case"], len(names)))
        result = {
            "command": "python -m analysis.cross_check",
            "environments": self.environments,
            "failed": self.failed,
            "rows": self.rows,
        }
        write(self.path, as_json(result))
        write(self.path.with_suffix(".md"), page(result))


class Running:
    """One case in its process."""

    def __init__(self, case: Case, arguments):
        self.case = case
        self.wanted = 1 if arguments.rehearse else len(case.measures)
        self.log = arguments.scratch / f"{case.name.replace(' ', '-')}.log"
        command, environment = own_process("analysis.cross_check", case, arguments)
        self.began = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment,
            )

    def finished(self) -> tuple[list[dict], str]:
        """Its whole precisions, and what went wrong."""
        log = self.log.read_text()
        found, problem = told(log, log, self.process.returncode)
        if problem and found:
            last = found[-1]["precision"]
            if sum(one["precision"] == last for one in found) < self.wanted:
                found = [one for one in found if one["precision"] != last]
        return found, problem


def run_all(arguments) -> Results:
    """Every case that has no row yet, several at a time, within the budget."""
    results = Results(arguments.out)
    every = rehearsed() if arguments.rehearse else cases()
    asked = [c for c in every if all(x in c.name for x in arguments.only)]
    waiting = [left for case in asked if (left := results.missing(case))]
    total, done, began = len(waiting), 0, time.monotonic()
    running: list[Running] = []
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    while waiting or running:
        spent = time.monotonic() - began
        late = spent > arguments.budget
        while waiting and not late and len(running) < arguments.jobs:
            # a large network in one process at a time: it writes its checkpoint
            busy = {one.case.model for one in running if one.case.large}
            fits = [case for case in waiting if case.model not in busy]
            if not fits:
                break
            # those that take longest first
            fits.sort(key=lambda case: not case.large)
            waiting.remove(fits[0])
            running.append(Running(fits[0], arguments))
        for one in list(running):
            if late:
                one.process.kill()
                one.process.wait()
            if one.process.poll() is None:
                continue
            running.remove(one)
            done += 1
            found, problem = one.finished()
            results.add(one.case, found, "out of time" if late else problem)
            bad = sum(row["violations"] for row in found)
            took = time.monotonic() - one.began
            left = (time.monotonic() - began) / done * (total - done)
            print(
                f"{done}/{total} {one.case.name}: {len(found)} rows, {bad} violations, "
                f"{took:.0f} s{'; ' + problem if problem else ''}; {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
        if late and not running:
            break
        time.sleep(0.2)
    return results


def main(given: list[str] | None = None) -> None:
    """Run what is missing, or one case of it."""
    parser = STUDY.parser(__doc__, "--results")
    parser.add_argument("--scratch", type=Path, default=SCRATCH)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds")
    parser.add_argument("--only", nargs="*", default=[], help="parts of cases' names")
    add_case(parser)
    arguments = parser.parse_args(given)
    if case := case_of(arguments):
        rows(case, arguments.scratch, arguments.rehearse)
        return
    if arguments.rehearse:
        if arguments.out == STUDY.committed:
            parser.error("a rehearsal is not committed: leave out one of them")
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    else:
        STUDY.begin(arguments.out)
    results = run_all(arguments)
    results.write()
    if results.rows:
        draw(results.rows, arguments.out.with_suffix(".png"))
    bad = sum(row["violations"] for row in results.rows)
    print(f"{bad} violations in {len(results.rows)} executions")
    for name, problem in results.failed.items():
        print(f"not finished: {name}: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main()
