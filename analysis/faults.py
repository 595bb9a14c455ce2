"""mamba_ssm's CUDA kernels, broken on purpose: is every fault caught, and where?

`python -m analysis.faults` needs an NVIDIA GPU with mamba_ssm. The trained networks run
unbroken and then with each fault of `_kernel_faults`, which patches what mamba_ssm
calls; the first layers' stored tensors are held to T0 and T1. Then a factor 1 + 2^-k at
one place, for the smallest that is still caught. It writes faults.json,
.md and .png, each network and mode in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from studies.files import write
from studies.study import Study, refuse_failed

from . import pictures
from ._cross_cases import TRAINED, Case, tokens
from ._kernel_faults import FACTORS, FAULTS, Fault, patched


RESULTS = Path(__file__).parent / "results" / "faults.json"
STUDY = Study(
    "analysis.faults",
    "minutes on an H200",
    RESULTS,
    ("mamba_ssm", "transformers", "matplotlib"),
    gpu=True,
)
BATCH, STEPS = 2, 64
LENGTHS = {"mamba1": 300, "mamba2": 600, "mamba3": 300}
"""Tokens of a prefill: three chunks of Mamba-2, five of Mamba-3."""
LAYERS = 3
"""The third is the first with a stream that has more bits than bf16."""
MOST_BITS = 20


class Bench:
    """One network in one mode: its bounds are compiled once, for all faults."""

    def __init__(self, name: str, mode: str):
        import jax

        jax.config.update("jax_enable_x64", True)
        import lyapunov
        from lyapunov.bounds.local import with_operator_norms
        from lyapunov.implementations import executions_for

        self.model = lyapunov.load(str(TRAINED[name]))
        length = LENGTHS[name] if mode == "prefill" else STEPS
        case = Case(name, mode, BATCH, length, ("bf16",))
        self.ids = tokens(self.model, case)
        self.execution = executions_for(
            self.model.config,
            ["bf16"],
            architecture=self.model.layout.architecture,
            mode=mode,
            measure="mamba_ssm",
        )[0]
        self.parameters = []
        for layer in self.model.sublayers[:LAYERS]:
            of = self.execution.of(layer.kind)
            held = with_operator_norms(self.model.parameters(layer.layer, of))
            original = with_operator_norms(self.model.parameters(layer.layer))
            self.parameters.append((of, held, original, self.model.start(held)))

    def records(self) -> list:
        """What the first layers did."""
        from lyapunov.implementations.mamba_ssm.runner import MambaSsm

        run = MambaSsm(self.execution).trace(self.model, self.ids)
        return [next(run) for _ in range(LAYERS)]

    def verdict(self, records: list) -> dict:
        """Violations by stored tensor, and the first in the order of the flow."""
        from lyapunov.bounds.local import operation_bounds, sublayer_bound
        from lyapunov.sublayers.sites import FLOW_ORDER

        found: dict[str, int] = {}
        first = None
        elements = 0
        for record, given in zip(records, self.parameters, strict=True):
            flow = self.model.sublayers[record.layer].flow
            execution, held, original, start = given
            t0 = operation_bounds(execution, flow, record, held, start)
            t1 = sublayer_bound(execution, flow, record, held, original, start)
            ordered = sorted(t0, key=FLOW_ORDER.index)
            rows = [(site, t0[site], record.stored[site]) for site in ordered]
            rows.append(("sublayer output", t1.comparison, record.output))
            for site, comparison, tensor in rows:
                violations = np.asarray(comparison.violations)
                elements += tensor.size
                if not violations.any():
                    continue
                place = f"layer {record.layer}, {site}"
                found[place] = int(violations.sum())
                if first is None:
                    batch, token = np.argwhere(violations)[0]
                    first = f"{place}, text {batch}, token {token}"
        return {
            "violations": sum(found.values()),
            "elements": elements,
            "first": first,
            "where": found,
        }

    def tried(self, fault: Fault | None) -> dict:
        """One run, broken or not."""
        began = time.perf_counter()
        with patched(fault):
            records = self.records()
        verdict = self.verdict(records)
        return verdict | {"seconds": round(time.perf_counter() - began, 2)}


def row(name: str, mode: str, what: str, verdict: dict, **more) -> dict:
    """A line of the result."""
    found = {"model": name, "mode": mode, "fault": what} | more | verdict
    print(json.dumps(found), flush=True)
    return found


def one(name: str, mode: str) -> None:
    """All faults of one network and mode; a line of JSON each."""
    bench = Bench(name, mode)
    row(name, mode, "none", bench.tried(None), right=True)
    for fault in FAULTS[name, mode]:
        row(name, mode, fault.name, bench.tried(fault), right=fault.right)
    for place, fault in FACTORS.get((name, mode), {}).items():
        smallest = None
        for bits in range(1, MOST_BITS + 1):
            if not bench.tried(fault(bits))["violations"]:
                break
            smallest = bits
        print(
            json.dumps(
                {"model": name, "mode": mode, "factor": place, "bits": smallest}
            ),
            flush=True,
        )


def page(result: dict) -> str:
    """Both tables."""
    lines = [
        "# Faults in mamba_ssm's kernels",
        "",
        "; ".join(f"{key} {value}" for key, value in result["environment"].items()),
        "",
        f"bf16, {BATCH} texts of {LENGTHS['mamba1']} tokens (Mamba-2 "
        f"{LENGTHS['mamba2']}, decoding {STEPS}), the first {LAYERS} layers of the "
        "trained networks. `python -m analysis.faults`",
        "",
        *[f"not finished: {k}: {v}\n" for k, v in result["problems"].items()],
        "| network | mode | fault | violations | of | first caught at |",
        "|---|---|---|---|---|---|",
    ]
    for line in result["faults"]:
        cells = [line["model"], line["mode"], line["fault"]]
        cells += [f"{line['violations']:,}", f"{line['elements']:,}"]
        lines.append(f"| {' | '.join([*cells, line['first'] or '-'])} |")
    lines += [
        "",
        "The smallest k at which a factor 1 + 2^-k is still caught (bf16 has 8 bits):",
        "",
        "| network | mode | times 1 + 2^-k | k |",
        "|---|---|---|---|",
    ]
    for line in result["factors"]:
        cells = [line["model"], line["mode"], line["factor"], str(line["bits"] or "-")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def environment() -> dict:
    """What ran."""
    import mamba_ssm
    import torch

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "mamba_ssm": mamba_ssm.__version__,
    }


def run_all(results: Path, budget: float, only: list[str]) -> dict:
    """Networks and modes side by side; of the others the last result is kept."""
    wanted = [key for key in FAULTS if all(part in key for part in only)]
    before = json.loads(results.read_text()) if results.exists() else {}
    kept = lambda what: [
        line
        for line in before.get(what, [])
        if (line["model"], line["mode"]) not in wanted
    ]
    began = time.monotonic()
    running = []
    with tempfile.TemporaryDirectory() as folder:
        for name, mode in wanted:
            log = Path(folder) / f"{name}-{mode}.log"
            command = [sys.executable, "-m", "analysis.faults", "--one", name, mode]
            with log.open("w") as file:
                process = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=file,
                    # bounds on the cores: five networks share the card
                    env=os.environ | {"JAX_PLATFORMS": "cpu"},
                )
            running.append((name, mode, log, process))
        found: list[dict] = []
        problems = {}
        for name, mode, log, process in running:
            left = max(budget - (time.monotonic() - began), 0.1)
            try:
                process.wait(left)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            lines = log.read_text().splitlines()
            found += [json.loads(line) for line in lines if line.startswith("{")]
            if process.returncode:
                told = [line for line in lines if line and not line.startswith("{")]
                problems[f"{name}, {mode}"] = "\n".join(told[-3:]) or "out of time"
            print(f"{name}, {mode}: {len(lines)} lines", file=sys.stderr, flush=True)
    result = {
        "command": "python -m analysis.faults",
        "environment": environment(),
        "problems": problems,
        "faults": kept("faults") + [line for line in found if "fault" in line],
        "factors": kept("factors") + [line for line in found if "factor" in line],
    }
    refuse_failed(results, [f"{name}: {why}" for name, why in problems.items()])
    write(results, json.dumps(result, indent=1) + "\n")
    write(results.with_suffix(".md"), page(result))
    pictures.faults(result, results.with_suffix(".png"))
    return result


def main(given: list[str] | None = None) -> None:
    """All of it, or one network in one mode."""
    parser = STUDY.parser(__doc__, "--results")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds")
    parser.add_argument("--only", nargs="*", default=[], help="network, mode or both")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.one:
        one(*arguments.one)
        return
    STUDY.begin(arguments.out)
    result = run_all(arguments.out, arguments.budget, arguments.only)
    wrong = [line for line in result["faults"] if line["right"] and line["violations"]]
    broken = [line for line in result["faults"] if not line["right"]]
    caught = sum(bool(line["violations"]) for line in broken)
    print(f"{caught} of {len(broken)} faults caught, {len(wrong)} right runs accused")
    for name, problem in result["problems"].items():
        print(f"not finished: {name}: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main()
