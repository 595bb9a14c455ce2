"""Networks on vLLM's own operators: bounds and estimates beside what is measured.

`python -m analysis.vllm_kernels` needs an NVIDIA GPU with Triton, and vLLM 0.33.0 or
its kernel files (LYAPUNOV_VLLM_FILES). The trained Mamba-2 and both delta rules run
whole, by steps, handed over from call to call and in company, Mamba-1 by steps; every
element of every tensor
that is seen is held to its bounds, and emulated beside it. What the operators are
handed is broken on purpose. It writes vllm_kernels.json and .md; each row is a process
of its own, and a run that was cut goes on where it was. `--smoke` runs a tiny network
on a CPU, in Triton's interpreter (`TRITON_INTERPRET=1`).
"""

import argparse
import importlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from studies.files import write
from studies.study import Study, promote

from ._rows_apart import known_rows, print_row, run_apart, short, table
from ._vllm_cases import Case, cases as mamba_cases, smoke
from ._vllm_delta import delta_cases
from ._vllm_faults import fault_of, patched
from .cross_check import row


ROOT = Path(__file__).parents[1]
STUDY = Study(
    "analysis.vllm_kernels",
    "15 minutes for Mamba beside an H200 with 16 cores, and more for delta rules; it "
    "goes on where it ended",
    Path(__file__).parent / "results" / "vllm_kernels.json",
    ("torch", "triton"),
    gpu=True,
    more="vLLM 0.33.0 or its kernel files",
)
COUNTED = (
    *("violations", "elements", "unbounded", "t0_ratio", "t1_ratio", "rel_l2"),
    *("sigma_t3", "calibration_z", "kl_mean", "flips", "first_violation"),
)
"""What rows without a check have not."""


def cases() -> list[Case]:
    """All of them."""
    return [*mamba_cases(), *delta_cases()]


def loaded(name: str, folder: str) -> Any:
    """A trained network, or the tiny one, whose weights are drawn and lie in a folder
    for as long as it is used."""
    import lyapunov

    if name != "tiny":
        return lyapunov.load(ROOT / "experiments" / "models" / name)
    import numpy as np

    from oracles.checkpoints.mamba_ssm import drawn, full_config, mamba_ssm_shapes, save

    shape = {"layer": "Mamba2", "d_state": 6, "headdim": 8, "ngroups": 2}
    config = full_config({"ssm_cfg": shape | {"chunk_size": 8}})
    weights = drawn(mamba_ssm_shapes(config), np.random.default_rng(0))
    return lyapunov.load(save(Path(folder), weights, config))


def tokens(model: Any, case: Case) -> Any:
    """The text, (batch, seq)."""
    from .perturbation import english

    batch = fault_of(case.fault, case.stack)[0].batch if case.fault else 1
    return english(model, batch * case.length).reshape(batch, case.length)


def run(case: Case) -> dict[str, Any]:
    """A case's row."""
    import jax

    jax.config.update("jax_enable_x64", True)
    began = time.perf_counter()
    if case.way == "rounding":
        return _row(case, _rounded(case), began)
    every = 8 if case.model == "tiny" else 64
    broken = patched(case.fault, every, case.stack) if case.fault else nullcontext()
    with tempfile.TemporaryDirectory() as folder, broken:
        model = loaded(case.model, folder)
        if case.shares:
            found = _emulated_beside(model, case)
        elif case.way in ("prefill", "decode"):
            found = _checked(model, case)
        else:
            found = _audited(model, case)
    return _row(case, found, began)


def _row(case: Case, found: dict[str, Any], began: float) -> dict[str, Any]:
    """What was found, and how it was made."""
    package = importlib.import_module(f"lyapunov.implementations.{case.stack}")
    environment = found.pop("environment") | _gpu(case.stack, package)
    made = {name: environment.pop(name) for name in ("date", "command")}
    return {
        "case": case.name,
        **case._asdict(),
        **found,
        "tuned": package.tuned(),
        "date": made["date"],
        "seconds": round(time.perf_counter() - began, 1),
        "environment": environment,
    }


def _checked(model: Any, case: Case) -> dict[str, Any]:
    """One precision of a check."""
    import lyapunov

    report = lyapunov.check(
        model,
        tokens(model, case),
        precisions=[case.precision],
        mode=case.way,
        measure=case.measure,
        state_precision=case.state,
        effort=case.effort or "standard",
        growth=False,
    )
    found = row(report, report.precisions[0])
    positions = found.pop("by_position")
    violated = (
        {"layer": one.layer, **one.first_violation}
        for one in report.precisions[0].layers
        if one.first_violation
    )
    return {
        **found,
        "kl_last": positions["kl"][-1] if positions["kl"] else None,
        "first_violation": next(violated, None),
        "environment": report.environment,
    }


def _audited(model: Any, case: Case) -> dict[str, Any]:
    """One way of an audit, under the names of a check's row."""
    import dataclasses

    import lyapunov

    report = lyapunov.audit(
        model,
        case.measure,
        tokens(model, case),
        precisions=[case.precision],
        variants=[case.way],
        state_precision=case.state,
    )
    (one,) = report.variants
    if not one.executions:
        raise RuntimeError(f"{one.verdict}: {one.reason}")
    first = one.first_violation
    logits = one.logits[0] if one.logits else None
    of_logits = lambda name: getattr(logits, name, None)
    return {
        "execution": "; ".join(one.executions),
        "precision": one.precision,
        "measured_by": case.measure,
        "verdict": one.verdict,
        "violations": one.violations,
        "elements": one.elements,
        "unbounded": one.unbounded,
        "t0_ratio": _times_below([layer.ratio_t0 for layer in one.layers]),
        "t1_ratio": _times_below([layer.ratio_t1 for layer in one.layers]),
        "z": one.z,
        "rel_l2": of_logits("rel_l2"),
        "sigma_t3": of_logits("sigma"),
        "calibration_z": of_logits("z_rms"),
        "kl_mean": of_logits("kl_mean"),
        "flips": of_logits("flips"),
        "tokens": one.tokens,
        "first_violation": None if first is None else dataclasses.asdict(first),
        "environment": report.environment,
    }


def _times_below(ratios: list[float | None]) -> list[float] | None:
    """Bounds over what was measured, least and most of the layers."""
    found = [1.0 / ratio for ratio in ratios if ratio]
    return [min(found), max(found)] if found else None


def _emulated_beside(model: Any, case: Case) -> dict[str, Any]:
    """Shares of stored numbers that the emulation has otherwise."""
    from lyapunov.implementations import executions_for
    from lyapunov.questions import environment

    from ._vllm_shares import shares

    (execution,) = executions_for(
        model.config,
        [case.precision],
        architecture=model.layout.architecture,
        mode=case.way,
        measure=case.measure,
        state_precision=case.state,
    )
    return {
        "execution": execution.name,
        **dict.fromkeys(COUNTED),
        "tokens": case.length,
        "differ": shares(model, tokens(model, case), execution),
        "environment": environment(),
    }


def _rounded(case: Case) -> dict[str, Any]:
    """One step, whose state is rounded stochastically by many seeds."""
    from lyapunov.questions import environment

    from ._vllm_rounding import by_seeds

    return {
        "execution": "FlashInfer's step, fp16 state rounded stochastically",
        **dict.fromkeys(COUNTED),
        "tokens": case.length,
        "rounding": by_seeds(case.length),
        "environment": environment(),
    }


def _gpu(stack: str, package: Any) -> dict[str, str]:
    """What the operators ran on, beside the environment of the report."""
    import torch
    import triton

    there = torch.cuda.is_available()
    return {
        stack: package.operators().version,
        "triton": triton.__version__,
        "gpu": torch.cuda.get_device_name() if there else "Triton's interpreter",
    }


class Asked(NamedTuple):
    """What one stack's study is of."""

    title: str
    """Of its page."""
    cases: Callable[[], list[Case]]
    smoke: Callable[[], Iterator[Case]]


ASKED = Asked("Networks on vLLM's operators", cases, smoke)


def main(given: list[str] | None = None) -> None:
    """Run what is missing, or one case of it."""
    conduct(STUDY, __doc__, ASKED, given)


def conduct(
    study: Study, doc: str | None, of: Asked, given: list[str] | None = None
) -> None:
    """Run what is missing of a stack's study, or one case of it."""
    parser = study.parser(doc)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, on a CPU")
    parser.add_argument(
        "--only", action="append", default=[], help="cases whose names hold this"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args(given)
    if asked.case:
        print_row(run(Case(*json.loads(asked.case))))
        return
    if asked.smoke and asked.out == study.committed:
        parser.error("--smoke is a try, and is not committed")
    (study._replace(gpu=False) if asked.smoke else study).begin(asked.out)
    working = study.working(asked.out)
    result = known_rows(None if asked.smoke else study.committed)
    have = {one["case"] for one in result["rows"]}
    waiting = list(of.smoke()) if asked.smoke else of.cases()
    waiting = [case for case in waiting if case.name not in have]
    wanted = [
        case
        for case in waiting
        if not asked.only or any(text in case.name for text in asked.only)
    ]
    left = run_apart(
        study.name,
        result,
        wanted,
        working,
        asked.jobs,
        asked.budget,
        lambda one: f", differ {_said(one)}" if one.get("differ") else "",
    )
    write(working.with_suffix(".md"), page(result, of))
    later = [case.name for case in waiting if case not in wanted]
    promote(working, asked.out, [*result["failed"], *left, *later])


NOTE = (
    "Bounds over what was measured are T0 and T1, of all layers; of calls",
    "(chunks, initial_state, packed, batched, drafts) over the element that",
    "is nearest to its bound. Rows with a fault were broken on purpose:",
    "violations are wanted there.",
)


def page(result: dict[str, Any], of: Asked = ASKED) -> str:
    """The rows as Markdown."""
    every = [*of.cases(), *of.smoke()]
    order = {case.name: place for place, case in enumerate(every)}
    rows = sorted(result["rows"], key=lambda one: order[one["case"]])
    held = (one for one in rows if not one["shares"] and not one.get("rounding"))
    lines = [f"# {of.title}", "", *table(held)]
    lines += ["", *NOTE]
    beside = [f"- {one['case']}: {_said(one)}" for one in rows if one["shares"]]
    if beside:
        lines += [
            "",
            "Stored numbers that an emulation has otherwise, each sublayer on",
        ]
        lines += ["what the operators' run of it read:", "", *beside]
    for one in rows:
        if found := one.get("rounding"):
            lines += ["", f"One step of FlashInfer's by {found['seeds']} seeds:", ""]
            lines += [f"- {name}: {short(value)}" for name, value in found.items()]
    missing = [f"- not there: {k}: {v}" for k, v in result["failed"].items()]
    return "\n".join([*lines, *([""] if missing else []), *missing]) + "\n"


def _said(one: dict[str, Any]) -> str:
    """Shares by site."""
    parts = (
        f"{site} {found['differ']} of {found['elements']}"
        for site, found in one["differ"].items()
    )
    return "; ".join(parts)


if __name__ == "__main__":
    main()
