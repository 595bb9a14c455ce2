"""How fast do the published 8B shapes generate, by length of context?

    python -m experiments.generation

arXiv:2406.07887: the hybrid generates up to 8 times faster than the Transformer, as
predicted. Here one step of generation, a token a sequence, is timed for the 8B
Transformer, hybrid and pure Mamba-2 (`decoding/shapes.py`), with random weights and
caches in bf16, on one card. The prompt is not read: its cache is filled with random
numbers, which cost the same. Rotary positions are left out; attention is done by the
fastest of torch's kernels for its sizes. The step is one CUDA graph.

What does not fit the card is predicted from what does: seconds are fitted by a line in
batch and batch times context, whose worst error stands beside it. What is measured and
what is predicted are kept apart.

The same command goes on with what is missing. Writes generation.json, .md and
.png. `--tiny` runs shapes for a CPU, to try it.
"""

import argparse
import gc
import sys
import time
from typing import Any

import numpy as np

from experiments.decoding.shapes import SHAPES, tiny
from experiments.results import FOLDER, Results, environment
from studies.study import Study


STATES = {"bf16": 2, "fp32": 4}  # bytes of a number of Mamba-2's states


STUDY = Study(
    "experiments.generation",
    "a minute on an H200, as does --tiny on a CPU",
    FOLDER / "generation.json",
    ("torch",),
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = STUDY.parser("Time one step of generation of the 8B shapes.")
    add = made.add_argument
    add("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    add("--contexts", type=int, nargs="+", default=[2**k for k in range(11, 18)])
    add("--batches", type=int, nargs="+", default=[32, 8, 1])
    add("--states", nargs="+", default=["bf16"], choices=list(STATES))
    add("--replays", type=int, default=20)
    add("--tiny", action="store_true", help="shapes for a CPU, in fp32")
    add("--budget", type=float, default=0, help="seconds; 0: no end")
    add("--device", default="auto", help="cuda, cpu or auto")
    add("--no-page", action="store_true", help="rows only, no table, no picture")
    return made


def rows_of(options: argparse.Namespace, model: str) -> list[dict[str, Any]]:
    """Settings of a model's rows; states in fp32 only where there are states."""
    found = []
    for state in options.states:
        if state != "bf16" and "M" not in SHAPES[model].layers:
            continue
        for batch in options.batches:
            for context in options.contexts:
                own = {"stage": "step", "model": model, "batch": batch}
                own |= {"context": context, "state": state}
                found.append(own | {"tiny": options.tiny, "replays": options.replays})
    return found


def measure(options: argparse.Namespace, results: Results) -> None:
    """The rows that are missing."""
    import torch

    from experiments.bundled.model import choose_device
    from experiments.decoding.timing import copy_rate

    device = choose_device(options.device)
    if device.type != "cuda" and not options.tiny:
        raise SystemExit(
            "error: the 8B shapes need an NVIDIA GPU\n"
            "hint: --tiny runs the same code on small shapes"
        )
    where = environment(device.type)
    until = time.time() + options.budget if options.budget else 0.0
    rate = copy_rate(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    for model in options.models:
        waiting = [row for row in rows_of(options, model) if not results.has(row)]
        if waiting and until and time.time() > until:
            # not even its weights are made
            print(f"{model}: {len(waiting)} rows left", file=sys.stderr)
        elif waiting:
            _one_model(model, waiting, results, device, where, rate, until)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _one_model(
    model: str, waiting: list[dict], results: Results, device: Any, where: dict,
    rate: float | None, until: float,
) -> None:  # fmt: skip
    import torch

    from experiments.decoding.networks import random_step
    from experiments.decoding.timing import (
        fastest_kernel,
        fits,
        free_bytes,
        timed,
        weights_fit,
    )

    small = waiting[0]["tiny"]
    shape = tiny(SHAPES[model]) if small else SHAPES[model]
    dtype = torch.float32 if small else torch.bfloat16
    torch.manual_seed(0)
    began = time.perf_counter()
    room = weights_fit(shape, free_bytes(device))
    step = random_step(shape, device, dtype) if room else None
    for done, row in enumerate(waiting):
        if until and time.time() > until:
            print(f"{model}: {len(waiting) - done} rows left", file=sys.stderr)
            return
        start = time.perf_counter()
        batch, context, state = row["batch"], row["context"], row["state"]
        nbytes = STATES[state]
        values: dict[str, Any] = {"fits": False}
        values["held_bytes"] = shape.held(batch, context, nbytes)
        free = free_bytes(device)
        if step is not None and fits(shape, batch, context, free, nbytes):
            made = {"device": device, "dtype": dtype}
            kind = None if small else {"bf16": None, "fp32": torch.float32}[state]
            try:
                caches = step.caches(batch, context, kind, **made)
                kernel = fastest_kernel(step, caches, batch, device)
                found = timed(step, shape, batch, caches, device, row["replays"])
                values = _values(shape, row, found, rate, nbytes, values)
                values["attention"] = kernel.name if kernel else None
            except torch.OutOfMemoryError:
                pass
            caches = None
            if device.type == "cuda":
                torch.cuda.empty_cache()
        results.add(row, values, time.perf_counter() - start, where)
        spent = time.perf_counter() - began
        left = spent / (done + 1) * (len(waiting) - done - 1)
        shown = f"{1000 * values['seconds']:.2f} ms" if values["fits"] else "no room"
        print(f"{model} {batch} x {context}: {shown}, {left:.0f} s left", flush=True)


def _values(
    shape: Any, row: dict, found: Any, rate: float | None, nbytes: int, values: dict
) -> dict[str, Any]:
    low, middle, high = np.percentile(found.seconds, (2.5, 50, 97.5))
    moved = shape.moved(row["batch"], row["context"], nbytes)
    return values | {
        "fits": True, "seconds": middle, "low": low, "high": high,
        "graph": found.graph, "moved_bytes": moved,
        "tokens_per_second": row["batch"] / middle,
        "copy_rate": rate,
        "share_of_copy_rate": moved / middle / rate if rate else None,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser().parse_args(arguments)
    STUDY.begin(options.out)
    for name in ("contexts", "batches"):
        if min(getattr(options, name)) < 1:
            parser().error(f"--{name} must be 1 or more")
    if options.replays < 2:
        parser().error("--replays must be 2 or more")
    results = Results(options.out, "python -m experiments.generation")
    measure(options, results)
    from experiments.decoding.page import publish

    publish(options.out, pages=not options.no_page)


if __name__ == "__main__":
    main()
