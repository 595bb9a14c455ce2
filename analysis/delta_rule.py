"""Delta rules on fla's kernels: bounds and estimates beside what was measured.

`python -m analysis.delta_rule` needs an NVIDIA GPU with fla-core and transformers. The
trained Gated DeltaNet and Kimi Delta Attention run whole and by steps; every element of
every tensor that is seen is held to its bounds. Kernels are broken on purpose, as
shipped ones were. State formats are compared by steps, emulated. It writes
delta_rule.json and .md; each row is a process of its own, and a run that was cut goes
on where it was.
"""

import argparse
import json
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from studies.files import write
from studies.study import Study, promote

from ._delta_faults import breakable, patched
from ._rows_apart import known_rows, print_row, run_apart, table
from .cross_check import row


ROOT = Path(__file__).parents[1]
STUDY = Study(
    "analysis.delta_rule",
    "20 minutes beside an H200 with 16 cores; it goes on where it ended",
    Path(__file__).parent / "results" / "delta_rule.json",
    ("fla", "transformers", "torch"),
    gpu=True,
)
MODELS = ("gated_delta", "kimi_delta")
PRECISIONS = ("bf16", "fp16", "fp32")
STATES = ("fp32", "bf16", "fp16", "bf16-stochastic", "int8-scaled", "fp8_e4m3-scaled")
BROKEN = 512
"""Tokens on which kernels are broken."""
LONG = 8192
"""Tokens without bounds, which would take hours: drift, estimate, KL and flips."""


class Case(NamedTuple):
    """One execution of one network."""

    model: str
    mode: str
    length: int
    precision: str
    measure: str
    state: str | None = None
    fault: str | None = None
    effort: str | None = None

    @property
    def name(self) -> str:
        """Says all of it."""
        return ", ".join(str(part) for part in self if part is not None)


def cases() -> list[Case]:
    """All of them, those that take longest first."""
    found = []
    lengths = (("prefill", 2049), ("prefill", 512), ("decode", 128), ("prefill", 128))
    for mode, length in lengths:
        for model in MODELS:
            found += [Case(model, mode, length, p, "fla") for p in PRECISIONS]
        if length == BROKEN:
            found += [
                Case(model, mode, length, "bf16", "fla", fault=name)
                for model in MODELS
                for name in breakable(model)
            ]
            found += [
                Case(model, "decode", 128, "bf16", "emulated", state=state)
                for model in MODELS
                for state in STATES
            ]
    for model in MODELS:
        found += [
            Case(model, "prefill", LONG, p, "fla", effort="quick") for p in PRECISIONS
        ]
    return [case for case in found if folder(case.model).exists()]


def folder(model: str) -> Path:
    """Where a trained network lies."""
    return ROOT / "experiments" / "models" / model


def run(case: Case) -> dict[str, Any]:
    """A case's row."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import lyapunov

    from .perturbation import english

    model = lyapunov.load(folder(case.model))
    ids = english(model, case.length).reshape(1, -1)
    began = time.perf_counter()
    with patched(case.fault, case.model) if case.fault else nullcontext():
        report = lyapunov.check(
            model,
            ids,
            precisions=[case.precision],
            mode=case.mode,
            measure=case.measure,
            state_precision=case.state,
            effort=case.effort or "standard",
            growth=False,
        )
    found = row(report, report.precisions[0])
    positions = found.pop("by_position")
    return {
        "case": case.name,
        **case._asdict(),
        **found,
        "kl_last": positions["kl"][-1] if positions["kl"] else None,
        "first_violation": next(
            (
                {"layer": one.layer, **one.first_violation}
                for one in report.precisions[0].layers
                if one.first_violation
            ),
            None,
        ),
        "exponents": {"max": report.exponents.max, "min": report.exponents.min},
        "seconds": round(time.perf_counter() - began, 1),
        "environment": report.environment | _gpu(),
    }


def _gpu() -> dict[str, str]:
    """What the kernels ran on, beside the environment of the report."""
    import torch

    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def main(given: list[str] | None = None) -> None:
    """Run what is missing, or one case of it."""
    parser = STUDY.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args(given)
    if asked.case:
        print_row(run(Case(*json.loads(asked.case))))
        return
    STUDY.begin(asked.out)
    working, result = STUDY.working(asked.out), known_rows(STUDY.committed)
    have = {one["case"] for one in result["rows"]}
    waiting = [case for case in cases() if case.name not in have]
    left = run_apart(STUDY.name, result, waiting, working, asked.jobs, asked.budget)
    write(working.with_suffix(".md"), page(result))
    promote(working, asked.out, [*result["failed"], *left])


def page(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    order = {case.name: place for place, case in enumerate(cases())}
    rows = sorted(result["rows"], key=lambda row: order[row["case"]])
    lines = ["# Delta rules on fla's kernels", "", *table(rows)]
    missing = [f"- not there: {k}: {v}" for k, v in result["failed"].items()]
    lines += ["", *missing, ""] if missing else [""]
    lines += [
        "Rows with a fault are of kernels that were broken on purpose: violations are",
        "what is wanted there. Rows of steps with a state format are emulated.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
