"""Does a little attention let Mamba-2 recall and copy? By length of context.

    python -m experiments.hybrids

arXiv:2406.07887: hybrids of 43 % Mamba-2, 7 % attention and 50 % MLP layers copy,
recall and look up phone numbers where pure Mamba-2 falls behind. Here pure networks and
a hybrid of equal size and training (`experiments.train`; context 1024) are asked to,
in ever longer contexts (`trained/long_tasks.py`), also beyond what they were trained
on, where GPT-NeoX's rotary positions are ones never seen.

All models are asked the same episodes. `--models` takes several of a kind, from
training with other seeds, and names on the Hub (contexts are in bytes, whatever the
tokens: `--models Zyphra/Zamba2-1.2B state-spaces/mamba2-1.3b EleutherAI/pythia-1.4b`).
Intervals are of 95 %: over models by Student's or Welch's t
where a kind has several, else from resampling the episodes.
bf16 autocast on a GPU, as in training, fp32 on a CPU. The same command goes on with
what is missing; contexts that the card cannot hold are left out, and named. Writes
results/hybrids.json, .md and .png. The speed of the published sizes is
`experiments.generation`'s.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.recall.differences import figures
from experiments.recall.page import draw, page
from experiments.results import FOLDER, Results, environment
from experiments.trained.long_tasks import LONGEST, TASKS
from studies.files import write
from studies.study import Study


MODELS = tuple(
    f"experiments/models/{name}"
    for name in (
        *("mamba1", "mamba2", "mamba3", "gpt_neox", "hybrid"),
        *("gated_delta", "kimi_delta"),
    )
)


STUDY = Study(
    "experiments.hybrids",
    "30 minutes on an H200",
    FOLDER / "hybrids.json",
    ("torch", "transformers"),
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = STUDY.parser("Copy, recall and look up, by length of context.")
    add = made.add_argument
    add("--models", nargs="+", default=list(MODELS), help="folders or names")
    add("--contexts", type=int, nargs="+", default=[2**k for k in range(8, 17)])
    add("--episodes", type=int, default=64, help="of each task and context")
    add("--budget", type=float, default=0, help="seconds; 0: no end")
    add("--device", default="auto", help="cuda, cpu or auto")
    return made


def _note_training(
    folder: Path, kind: str, results: Results, where: dict[str, Any]
) -> None:
    """A row of how the model was trained, if its folder says."""
    row = {"stage": "trained", "model": folder.name, "kind": kind}
    file = folder / "training.json"
    if results.has(row) or not file.exists():
        return
    told = json.loads(file.read_text())
    values = {
        "seed": told["training"]["seed"],
        "held_out_bits_per_byte": told["held_out_bits_per_byte"],
        "command": told["training"]["command"],
        "sha256": {one["name"]: one["sha256"] for one in told["files"]},
    }
    trained_on = {name: told["environment"].get(name) for name in where}
    results.add(row, values, told["training"]["seconds"], trained_on)


def ask(options: argparse.Namespace, results: Results) -> list[str]:
    """The rows that are missing. Returns what the device could not hold, in words."""
    import torch

    from experiments.bundled.model import choose_device
    from experiments.recall.asking import answered, named, reader

    device = choose_device(options.device)
    where = environment(device.type)
    until = time.time() + options.budget if options.budget else 0.0
    left_out, began = [], time.perf_counter()
    for name in options.models:
        model, kind = named(name)
        _note_training(Path(name), kind, results, where)
        network = None
        for context in sorted(options.contexts):
            for task in TASKS:
                row = {"stage": "asked", "model": model, "kind": kind}
                row |= {"task": task, "context": context, "episodes": options.episodes}
                if context > LONGEST.get(task, context) or results.has(row):
                    continue
                if until and time.time() > until:
                    return [*left_out, "what the budget had no time for"]
                if network is None:
                    network = reader(name, device)
                start = time.perf_counter()
                try:
                    shares, most = answered(
                        network, task, context, options.episodes, device
                    )
                except torch.OutOfMemoryError:
                    left_out.append(f"{model} {task} {context}: out of memory")
                    torch.cuda.empty_cache()
                    continue
                values = {"accuracy": float(np.mean(shares)), "by_episode": shares}
                spent = time.perf_counter() - start
                results.add(row, values | {"tokens": most}, spent, where)
                shown = f"{model} {task} {context}: {100 * np.mean(shares):.1f} %"
                total = time.perf_counter() - began
                print(f"{shown}, {spent:.1f} s, {total:.0f} s in all", file=sys.stderr)
    return left_out


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser().parse_args(arguments)
    STUDY.begin(options.out)
    if min(options.contexts) < 256:
        parser().error("--contexts must be 256 or more: the questions have to fit")
    if options.episodes < 1:
        parser().error("--episodes must be 1 or more")
    results = Results(
        options.out,
        "python -m experiments.hybrids --models experiments/models/* MORE",
    )
    left_out = ask(options, results)
    rows = results.rows(stage="asked")
    results.put(figures=figures(rows), left_out=left_out)
    write(options.out.with_suffix(".md"), page(results.read()))
    if rows:
        draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
