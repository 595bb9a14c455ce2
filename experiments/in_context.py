"""Do Mambas learn from examples in the context, before and after instruction tuning?

    python -m experiments.in_context --corpus FOLDER --tuned FOLDER

Asks every model seven tasks of choices after 0, 1, 3 and 5 examples
(`shots/documents.py`), and sets the improvement over zero-shot against the
Transformer's: arXiv:2406.00209's 38 % for pretrained Mamba and 82 % for Mamba-2, then
81.5 % and 132 % after instruction tuning. `--tuned` is `experiments.finetune`'s
--scratch: its fp32 full fine-tunes, one of each seed, are what is asked afterwards.

Intervals are of 95 %, from resampling questions and seeds. All in fp32. The same
command goes on with what is missing. Writes in_context.json, .md and .png.

With `--harness` lm-evaluation-harness asks the same questions, written as local tasks.
With `--benchmarks winogrande hellaswag piqa arc_easy arc_challenge mmlu` it asks those
of any model, which needs the Hub: `--models state-spaces/mamba-130m
EleutherAI/pythia-160m`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.finetuning.items import SHOTS, Data
from experiments.finetuning.plan import MODELS, short
from experiments.results import FOLDER, Results, environment
from experiments.shots.documents import TASKS, task_name
from studies.study import Study


_SAY_EVERY = 5.0  # seconds


STUDY = Study(
    "experiments.in_context",
    "35 minutes on an H200",
    FOLDER / "in_context.json",
    ("torch", "transformers"),
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = STUDY.parser("Ask questions after 0, 1, 3 and 5 examples.")
    add = made.add_argument
    add("--corpus", type=Path, required=True, help="folder with GSM8K's two files")
    add("--models", nargs="+", default=list(MODELS), help="folders or names")
    add("--tuned", type=Path, help="folder with MODEL-tuned-SEED, of finetune")
    add("--questions", type=int, default=256, help="of a task, after each number shown")
    add("--harness", action="store_true", help="let lm-eval ask, too")
    add("--benchmarks", nargs="+", default=[], help="lm-eval's tasks by name")
    add("--limit", type=int, help="questions of each benchmark")
    add("--budget", type=float, default=0, help="seconds; 0: no end")
    add("--device", default="auto", help="cuda, cpu or auto")
    return made


def checkpoints(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is asked: a name that `load` takes, and the row's settings."""
    for model in options.models:
        own = {"stage": "asked", "model": short(model), "questions": options.questions}
        yield model, own | {"tuned": False, "seed": 0}
        if options.tuned is None:
            continue
        begin = f"{short(model)}-tuned-"
        for folder in sorted(options.tuned.glob(f"{begin}*")):
            seed = folder.name.removeprefix(begin)
            if seed.isdigit() and (folder / "config.json").exists():
                yield str(folder), own | {"tuned": True, "seed": int(seed)}


def _progress(what: str) -> Callable[[int, int], None]:
    """Says how far a model is, with the time left, every few seconds."""
    began = said = time.perf_counter()

    def say(done: int, total: int) -> None:
        nonlocal said
        now = time.perf_counter()
        if now - said > _SAY_EVERY:
            left = (now - began) / done * (total - done)
            print(f"{what}: {done}/{total}, {left:.0f} s left", file=sys.stderr)
            said = now

    return say


def ask(
    options: argparse.Namespace, data: Data, results: Results, until: float
) -> None:
    """The rows that are missing, one a checkpoint."""
    import numpy as np

    from experiments.bundled.model import choose_device
    from experiments.finetuning.networks import load
    from experiments.shots.documents import all_documents
    from experiments.shots.scoring import answered

    device = choose_device(options.device)
    where, last = environment(device.type), 0.0
    asked = all_documents(data, options.questions)
    for name, row in checkpoints(options):
        if results.has(row):
            continue
        if until and time.time() + 1.3 * last > until:
            return
        began = time.perf_counter()
        said = Path(name).name
        right = answered(load(name, device), asked, device, _progress(said))
        shape = (len(TASKS), len(SHOTS), options.questions)
        means = right.reshape(shape).mean(-1)
        values = {
            "accuracy": {
                f"{task} {k}": means[i, j]
                for i, task in enumerate(TASKS)
                for j, k in enumerate(SHOTS)
            },
            "right": np.packbits(right).tobytes().hex(),
        }
        last = time.perf_counter() - began
        results.add(row, values, last, where)
        shown = " ".join(f"{100 * share:.0f}" for share in means.mean(0))
        print(f"{said}: {shown} % after {SHOTS} examples, {last:.1f} s", flush=True)


def by_harness(options: argparse.Namespace, data: Data, results: Results) -> None:
    """The same questions, or benchmarks, asked by lm-eval: rows of their own."""
    from experiments.bundled.model import choose_device
    from experiments.finetuning.networks import load
    from experiments.shots.documents import write_tasks
    from experiments.shots.harness import accuracies

    device = choose_device(options.device)
    where = environment(device.type)
    for name, row in checkpoints(options):
        runs: list[tuple[dict, list[str], int, Path | None]] = []
        with tempfile.TemporaryDirectory() as scratch:
            if options.harness:
                folder = Path(scratch)
                local = write_tasks(data, options.questions, folder)
                runs.append((row | {"stage": "harness"}, local, 0, folder))
            for shots in SHOTS if options.benchmarks else ():
                own = {k: row[k] for k in ("model", "tuned", "seed")}
                own |= {"stage": "benchmarks", "shots": shots, "limit": options.limit}
                own |= {"tasks": sorted(options.benchmarks)}
                runs.append((own, options.benchmarks, shots, None))
            for settings, tasks, shots, folder in runs:
                if results.has(settings):
                    continue
                began = time.perf_counter()
                limit = options.limit if folder is None else None
                network = load(name, device)
                found = accuracies(network, device, tasks, shots, folder, limit)
                spent = time.perf_counter() - began
                results.add(settings, {"tasks": found}, spent, where)
                print(f"{settings['stage']} {name}: {spent:.1f} s", flush=True)


def differences(results: Results) -> list[dict[str, Any]]:
    """Where lm-eval counts otherwise than we do: nowhere, if all is well."""
    found = []
    for row in results.rows(stage="harness"):
        own = results.rows(**row["settings"] | {"stage": "asked"})
        for task in TASKS if own else ():
            for k in SHOTS:
                ours = own[0]["values"]["accuracy"][f"{task} {k}"]
                theirs = row["values"]["tasks"][task_name(task, k)]["accuracy"]
                if abs(ours - theirs) > 1e-9:
                    found.append(
                        {"model": row["settings"]["model"], "task": f"{task} {k}"}
                        | {"ours": ours, "lm_eval": theirs}
                    )
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser().parse_args(arguments)
    STUDY.begin(options.out)
    if options.questions < 1:
        parser().error("--questions must be 1 or more")
    if options.tuned is not None and not options.tuned.is_dir():
        parser().error(f"--tuned: {options.tuned} is no folder")
    until = time.time() + options.budget if options.budget else 0.0
    data = Data.read(options.corpus)
    command = "python -m experiments.in_context --corpus FOLDER --tuned FOLDER"
    command += f" --questions {options.questions}"
    results = Results(options.out, command)
    if not options.benchmarks:
        ask(options, data, results, until)
    if options.harness or options.benchmarks:
        by_harness(options, data, results)
    from experiments.shots.page import publish

    publish(options.out, differences(results))


if __name__ == "__main__":
    main()
