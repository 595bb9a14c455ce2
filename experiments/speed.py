"""How fast is fine-tuning, and how much memory does it take? fp32 against half LoRA.

    python -m experiments.speed

Times training steps of Mamba-1 at the published sizes, and of Pythia's for contrast,
with random weights and random tokens: the fp32 full fine-tune against LoRA under fp16
and bf16 autocast (arXiv:2406.00209, its figure of tokens per second and memory per
token). What is divided by is mamba_ssm's fused path, the fastest that there is without
adapters. Beside these stand bf16 without LoRA, and fp32 on the path that LoRA needs.

Memory per token is the peak allocated over the tokens of a step, so that it falls as
the batch grows: the figures are of the first of `--batches`, on this card.

Each row is written when it is found, and the same command goes on with what is
missing; a step that does not fit in memory is a row that says so. `--budget` ends it
in time. On a GPU Mamba needs mamba_ssm and causal_conv1d; on a CPU, transformers runs
the shape `tiny`. Writes speed.json, .md and .png.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from experiments.results import FOLDER, Results, environment
from studies.problems import Problem
from studies.study import Study


_LEAST = 0.4  # of a row's work that does not grow with its network, in 10^9 parameters


STUDY = Study(
    "experiments.speed",
    "5 minutes on an H200",
    FOLDER / "speed.json",
    ("torch",),
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = STUDY.parser("Time training steps of published shapes, and their memory.")
    add = made.add_argument
    add("--families", nargs="+", default=["mamba1", "gpt_neox"],
        choices=("mamba1", "gpt_neox"))  # fmt: skip
    add("--shapes", nargs="+", help="by name; all published, on a CPU tiny")
    add("--batches", type=int, nargs="+", default=[8, 1], help="windows a step")
    add("--length", type=int, default=512, help="tokens in a window")
    add("--steps", type=int, default=8, help="timed, after two that are not")
    add("--most", type=float, default=4.0, help="seconds of timed steps, of 3 or more")
    add("--rank", type=int, default=8, help="of LoRA")
    add("--budget", type=float, default=0, help="seconds; 0: no end")
    add("--device", default="auto", help="cuda, cpu or auto")
    add("--no-page", action="store_true", help="leave out figures, .md and .png")
    add("--page-only", action="store_true", help="measure nothing")
    return made


def checked(options: argparse.Namespace) -> Any:
    """The device, once the options make sense.

    **Raises:**

    Problem if they don't.
    """
    for name in ("batches", "length", "steps", "rank"):
        given = getattr(options, name)
        if min(given if isinstance(given, list) else [given]) < 1:
            raise Problem(f"--{name} is less than 1", "give whole numbers from 1 on")
    if not options.most >= 0 or not options.budget >= 0:
        raise Problem("--most or --budget is negative", "give seconds")
    import torch

    from experiments.bundled.model import choose_device

    try:
        device = choose_device(options.device)
    except RuntimeError as error:
        raise Problem(f"no device {options.device!r}", "cuda, cpu or auto") from error
    if device.type not in ("cuda", "cpu"):
        raise Problem(f"nothing is measured on {device}", "cuda, cpu or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Problem("torch finds no GPU", "use --device cpu")
    return device


def work(case: Any, batch: int) -> float:
    """About how long a row takes, in no unit."""
    slow = 3.0 if case.precision == "fp32" else 1.0
    share = 0.3 + 0.7 * min(1.0, batch / 8)
    return _LEAST + case.parameters() / 1e9 * slow * share


def measure(options: argparse.Namespace, results: Results) -> list[str]:
    """The rows that are missing; returns what failed."""
    device = checked(options)
    from experiments.throughput.bench import release
    from experiments.throughput.shapes import SHAPES, TINY, cases

    every = [s for f in options.families for s in SHAPES[f] if s != TINY]
    shapes = options.shapes or ([TINY] if device.type == "cpu" else every)
    where = environment(device.type)
    waiting = []
    for case in cases(options.families, shapes):
        rows = [(b, settings(options, case, b, where)) for b in options.batches]
        missing = [(batch, row) for batch, row in rows if not results.has(row)]
        if missing:
            waiting.append((case, missing))
    left = sum(work(case, b) for case, rows in waiting for b, _ in rows)
    total = sum(len(rows) for _, rows in waiting)
    began, rows_done = time.perf_counter(), 0
    paces: list[float] = []  # their median: the first rows compile
    failed = []
    for case, missing in waiting:
        start = time.perf_counter()
        cost = sum(work(case, batch) for batch, _ in missing)
        pace = statistics.median(paces) if paces else 0.0
        spent = start - began
        if options.budget and spent + pace * cost >= options.budget:
            left -= cost
            continue
        for batch, line, good in _rows(options, results, device, where, case, missing):
            rows_done += 1
            if not good:
                failed.append(line)
            left -= work(case, batch)
            togo = f"; about {max(0.0, left) * pace:.0f} s left" if paces else ""
            print(f"{rows_done} of {total}: {line}{togo}", file=sys.stderr, flush=True)
        release(device)
        paces.append((time.perf_counter() - start) / cost)
    if rows_done < total:
        print(f"{total - rows_done} rows are left; the same command goes on",
              file=sys.stderr)  # fmt: skip
    return failed


def settings(options: argparse.Namespace, case: Any, batch: int, where: dict) -> dict:
    """A row's settings."""
    return {
        "card": where["device"],
        "family": case.family,
        "shape": case.shape,
        "method": case.method,
        "precision": case.precision,
        "path": case.path,
        "batch": batch,
        "length": options.length,
        "rank": options.rank,
    }


def _rows(
    options: argparse.Namespace,
    results: Results,
    device: Any,
    where: dict,
    case: Any,
    missing: list[tuple[int, dict]],
) -> Iterator[tuple[int, str, bool]]:
    """Measure a case's rows with one network.

    Yields each one's batch, what to say of it, and whether there is a row.
    """
    import torch

    from experiments.throughput.bench import Bench, Load, out_of_memory, release

    bench = None
    for batch, row in missing:
        began = time.perf_counter()
        name = f"{case.family} {case.shape} {case.variant}, batch {batch}"
        load = Load(batch, options.length, options.steps, options.most)
        told = ""
        try:
            bench = bench or Bench(case, device, options.rank)
            values = bench.measure(load)
        except torch.OutOfMemoryError:
            bench, values = None, out_of_memory()
        except Exception as error:  # compilers' too: one row is not to cost the others
            told = f"{name}: {type(error).__name__}: {error}"
            bench, values = None, {}
        if bench is None:
            release(device)
        if told:
            yield batch, told, False
            continue
        spent = time.perf_counter() - began
        results.add(row, values, spent, where)
        if values["out_of_memory"]:
            yield batch, f"{name}: out of memory, {spent:.1f} s", True
            continue
        memory = values["bytes_per_token"]
        shown = "" if memory is None else f"{memory / 1e6:.3g} MB a token, "
        speed = f"{values['tokens_per_second']:,.0f} tokens/s"
        yield batch, f"{name}: {speed}, {shown}{spent:.1f} s", True


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser().parse_args(arguments)
    STUDY.begin(options.out)
    results = Results(options.out, "python -m experiments.speed")
    if options.page_only and not results.rows():
        raise Problem(f"{options.out} has no rows", "leave out --page-only")
    failed = [] if options.page_only else measure(options, results)
    if not options.no_page:
        from experiments.throughput.page import publish

        publish(options.out, options.batches[0], options.length, options.rank)
    if failed:
        raise SystemExit("error: " + "\nerror: ".join(failed))


if __name__ == "__main__":
    main()
