"""Which format servers should keep a state in: format, period and stack, measured.

`python -m analysis.served_states` runs trained networks by steps as vLLM and SGLang
serve them in bf16, emulated, with every state format that a flag leads to and some that
none does, stored at every token, once a window of drafts, or once a ring of ReplaySSM.
Beside what was measured stands T3's prediction with its calibration z; "withheld" where
a report would withhold it. Attention and MLPs beside a Mamba-2 are declared as torch
operations: of the servers' own nothing was read.

- KL and flips are against fp64, over 4 texts of 512 tokens; the error is that of the
  mean over texts, and differences are taken text by text from the same server with an
  fp32 state.
- The state's own: everything else in fp32. Its share is of the squared distance of the
  logits. Where its KL is far below the whole, a difference from an fp32 state is of
  other roundings that fell otherwise.
- Two published shapes are followed without a network: random weights remember nothing,
  so their KL would say nothing. Beside a head's error stands how long it remembers.
- The first text is that of `analysis.vllm_kernels`, whose rows on an H200 stand beside
  the same rows here.

Each network is a process of its own, and a run that was cut goes on where it was.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from studies.files import as_json, write
from studies.study import Study, promote

from ._served_cases import IMPLEMENTATION, MODELS, Case, cases, kept_bytes
from ._served_page import draw, page
from ._served_shapes import SHAPES, costs, memories, rows
from .state_formats import TEXTS, TOKENS, compare, divergences, logits, passages


ROOT = Path(__file__).parents[1]
STUDY = Study(
    "analysis.served_states",
    "20 minutes of one core; a cut run goes on",
    Path(__file__).parent / "results" / "served_states.json",
    ("matplotlib",),
)
KERNELS = Path(__file__).parent / "results" / "vllm_kernels.json"
PARTS = (*MODELS, "shapes")


class Network:
    """A trained network with its reference, and what its states cost by themselves."""

    def __init__(self, name: str):
        import lyapunov

        self.model = lyapunov.load(ROOT / "experiments" / "models" / name)
        self.texts = passages(self.model)
        *self.records, self.head = lyapunov.trace(self.model, self.texts)
        self.exact = logits(self.model, self.head)
        self._alone: dict[Any, dict[str, Any]] = {}

    def row(self, case: Case) -> dict[str, Any]:
        """A case's row."""
        import lyapunov

        began = time.perf_counter()
        (execution,) = lyapunov.executions_for(
            self.model.config,
            ["bf16"],
            architecture=self.model.layout.architecture,
            mode="decode",
            measure=f"{IMPLEMENTATION[case.stack]} {case.flags}".strip(),
            state_precision=None if case.reached else case.state,
        )
        run = self._run(execution)
        own = logits(self.model, run)
        kl = divergences(self.exact[0], own[0])
        alone = self._by_itself(execution, case)
        found = compare(self.exact, own)
        kept = execution.state_precision
        return {
            "case": case.name,
            **case._asdict(),
            "flags": case.flags,
            # a window of drafts may be stored otherwise than was asked for
            "kept": kept,
            "execution": execution.name,
            **found,
            **self._predicted(execution, run),
            "alone": alone,
            "share": (alone["rel_l2"] / found["rel_l2"]) ** 2,
            "state_bytes": kept_bytes(self.model.config.sublayers, case),
            "first": {
                "kl_mean": float(kl.mean()),
                "kl_se": float(kl.std(ddof=1)) / len(kl) ** 0.5,
                "rel_l2": compare(self.exact[:1], own[:1])["rel_l2"],
            },
            "seconds": round(time.perf_counter() - began, 1),
        }

    def _run(self, execution: Any) -> Any:
        import lyapunov
        from lyapunov.implementations import Emulated

        runner = Emulated(execution)
        return list(lyapunov.trace(self.model, self.texts, runner=runner))[-1]

    def _by_itself(self, execution: Any, case: Case) -> dict[str, Any]:
        """What the state does with all else in fp32, which both servers share."""
        key = execution.state_precision, case.period
        if case.state == "fp32":
            return {"rel_l2": 0.0, "kl_mean": 0.0}
        if key not in self._alone:
            run = self._run(state_alone(execution))
            found = compare(self.exact, logits(self.model, run))
            self._alone[key] = {name: found[name] for name in ("rel_l2", "kl_mean")}
        return self._alone[key]

    def _predicted(self, execution: Any, run: Any) -> dict[str, Any]:
        """T3 of the logits, and whether a report would withhold it."""
        from lyapunov.bounds.end_to_end import EndToEnd

        with jax.enable_x64(True):
            end = EndToEnd(self.model, self.texts, [execution], n_readouts=0)
            for one, record in zip(self.model.sublayers, self.records, strict=True):
                end.sublayer(one, record)
            end.head(self.head)
            for part in self.model.vocabulary_slices():
                heads: tuple[Any, Any] = (self.head, run)
                both = [x.logits(part.start, part.stop) for x in heads]
                end.logits(part, both[0], both[1:])
            estimate = end.estimate(0)
        return {
            "predicted_rel_l2": estimate.sigma_t3,
            "calibration_z": estimate.calibration_z,
            "withheld": estimate.sigma_withheld is not None,
        }


def state_alone(execution: Any) -> Any:
    """The same execution with everything but its state in fp32."""
    from lyapunov.formats import FP32

    def wide(formats: dict[str, Any]) -> dict[str, Any]:
        return {n: form if n == "state" else FP32 for n, form in formats.items()}

    return dataclasses.replace(
        execution,
        sites=wide(execution.sites),
        parameters=wide(execution.parameters),
        kinds={kind: state_alone(one) for kind, one in execution.kinds.items()},
    )


def run_part(part: str, path: Path) -> None:
    """Fill in what a network's file, or that of the shapes, lacks."""
    jax.config.update("jax_enable_x64", True)
    known = json.loads(path.read_text()) if path.exists() else {"rows": []}
    have = {row["case"] for row in known["rows"]}
    if part == "shapes":
        for shape in SHAPES:
            if shape.name not in have:
                known["rows"].append(
                    {
                        "case": shape.name,
                        "rows": rows(shape),
                        "costs": costs(shape),
                        "memories": memories(shape),
                    }
                )
                write(path, as_json(known))
        return
    waiting = [case for case in cases(part) if case.name not in have]
    network = Network(part) if waiting else None
    for case in waiting:
        assert network is not None
        found = network.row(case)
        known["rows"].append(found)
        write(path, as_json(known))
        print(
            f"{case.name}: KL {found['kl_mean']:.2e}, {found['seconds']} s",
            file=sys.stderr,
            flush=True,
        )


def kernels_beside(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What vLLM's kernels did to the first text, and the emulation of the same.

    Roundings of the two fall apart within few tokens, so that both are draws: `z` is
    their difference over its standard error, tokens as independent.
    """
    measured = json.loads(KERNELS.read_text())["rows"]
    beside = []
    for model, state, period, case in (
        ("mamba2", "bf16", 1, "mamba2, decode, 512, bf16, state bf16"),
        ("mamba2", "fp16", 1, "mamba2, decode, 512, bf16, state fp16"),
        ("mamba2", "fp32", 1, "mamba2, decode, 512, bf16, state fp32"),
        ("mamba2", "bf16", 16, "mamba2, decode, 512, bf16, --use-replayssm"),
        ("mamba1", "bf16", 1, "mamba1, decode, 512, bf16"),
    ):
        key = model, "vLLM", state, period, "", True
        (own,) = (row for row in found if key == tuple(row[n] for n in Case._fields))
        (kernels,) = (row for row in measured if row["case"] == case)
        first = own["first"]
        apart = first["kl_mean"] - kernels["kl_mean"]
        beside.append(
            {
                "case": case,
                "kernels_kl": kernels["kl_mean"],
                "kernels_rel_l2": kernels["rel_l2"],
                "emulated_kl": first["kl_mean"],
                "emulated_rel_l2": first["rel_l2"],
                "kl_se": first["kl_se"],
                "z": apart / (2**0.5 * first["kl_se"]),
            }
        )
    return beside


def main(given: list[str] | None = None) -> None:
    """Run what is missing, in a process for each network, and write it all."""
    parser = STUDY.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args(given)
    working = STUDY.working(asked.out)
    paths = {
        part: working.parent / f"part_{working.stem}_{part}.json" for part in PARTS
    }
    if asked.part:
        run_part(asked.part, paths[asked.part])
        return
    STUDY.begin(asked.out)
    working.parent.mkdir(parents=True, exist_ok=True)
    failed = _run_apart(asked.out, list(PARTS), asked.jobs)
    parts = {
        part: json.loads(path.read_text())["rows"] if path.exists() else []
        for part, path in paths.items()
    }
    shapes = parts.pop("shapes")
    ran = {row["case"]: row for part in MODELS for row in parts[part]}
    found = [
        ran[case.name] for part in MODELS for case in cases(part) if case.name in ran
    ]
    result = {
        "command": "python -m analysis.served_states",
        "texts": TEXTS,
        "tokens": TOKENS,
        "environment": {"jax": jax.__version__, "numpy": np.__version__},
        "rows": found,
        "shapes": shapes,
        "kernels": [] if failed else kernels_beside(found),
        "failed": failed,
    }
    write(working, as_json(result))
    if not failed:
        write(working.with_suffix(".md"), page(result))
        draw(result, working.with_suffix(".png"))
    promote(working, asked.out, failed)


def _run_apart(out: Path, waiting: list[str], jobs: int) -> list[str]:
    """Run every part, so many at once; gives those that failed."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    running: dict[str, subprocess.Popen] = {}
    failed = []
    while waiting or running:
        while waiting and len(running) < jobs:
            part = waiting.pop(0)
            line = [sys.executable, "-m", STUDY.name, "--part", part, "--out", str(out)]
            running[part] = subprocess.Popen(line, env=environment)
        for part, process in list(running.items()):
            if process.poll() is not None:
                failed += [part] * bool(running.pop(part).returncode)
        time.sleep(0.2)
    return failed


if __name__ == "__main__":
    main()
