"""Does a little attention let Mamba-2 recall and copy? By length of context.

    python -m experiments.hybrids

arXiv:2406.07887: hybrids of 43 % Mamba-2, 7 % attention and 50 % MLP layers copy,
recall and look up phone numbers where pure Mamba-2 falls behind. Here pure networks and
a hybrid of equal size and training (`experiments.train`; context 1024) are asked to,
in ever longer contexts (`trained/long_tasks.py`), also beyond what they were trained
on, where GPT-NeoX's rotary positions are ones never seen.

All models are asked the same episodes. `--models` takes several of a kind, from
training with other seeds. Intervals are of 95 %: over models by Student's or Welch's t
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
from experiments.results import FOLDER, Results, environment, write
from experiments.trained.long_tasks import LONGEST, TASKS, episodes
from experiments.trained.problems import Problem


MODELS = tuple(
    f"experiments/models/{name}"
    for name in ("mamba1", "mamba2", "mamba3", "gpt_neox", "hybrid")
)
_AT_ONCE = 2**17  # bytes read at a time


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.hybrids",
        description="Copy, recall and look up, by length of context.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add(
        "--models", nargs="+", default=list(MODELS), help="folders of experiments.train"
    )
    add("--contexts", type=int, nargs="+", default=[2**k for k in range(8, 17)])
    add("--episodes", type=int, default=64, help="of each task and context")
    add("--budget", type=float, default=0, help="seconds; 0: no end")
    add("--device", default="auto", help="cuda, cpu or auto")
    add("--out", type=Path, default=FOLDER / "hybrids.json")
    return made


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise Problem(
            f"{folder}: {error}", "--models are folders that experiments.train wrote"
        ) from error
    if settings.get("lyapunov_tokenizer") != "bytes":
        raise Problem(
            f"{folder} is no model of bytes",
            "--models are folders that experiments.train wrote",
        )
    return settings


def _network(folder: Path, device: Any) -> Any:
    from safetensors.torch import load_file

    from experiments.finetuning.networks import shape
    from experiments.trained.networks import fresh

    network = fresh(shape(_settings(folder)), 0.0, device)
    network.restore(load_file(folder / "model.safetensors"))
    return network.eval()


def answered(
    network: Any, task: str, context: int, n: int, device: Any
) -> tuple[list[float], int]:
    """The share of right answers in each episode, and the longest episode's bytes.

    An answer is right if all its bytes are the likeliest, given those before it.
    """
    import torch

    members = episodes(task, context, n)
    shares: list[float] = []
    most = max(len(one.text) for one in members)
    length = most + -most % 64  # Triton compiles for few lengths
    rows = max(1, _AT_ONCE // length)
    for at in range(0, n, rows):
        group = members[at : at + rows]
        ids = torch.zeros(len(group), length, dtype=torch.long)
        for row, one in enumerate(group):
            ids[row, : len(one.text)] = torch.tensor(list(one.text))
        with torch.no_grad():
            told = network(ids.to(device)).logits.argmax(-1).cpu()
        for row, one in enumerate(group):
            hits = (told[row, :-1] == ids[row, 1:]).numpy()
            right = [hits[a.start - 1 : a.stop - 1].all() for a in one.answers]
            shares.append(float(np.mean(right)))
    return shares, most


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
    from experiments.finetuning.networks import shape

    device = choose_device(options.device)
    where = environment(device.type)
    until = time.time() + options.budget if options.budget else 0.0
    left_out, began, done = [], time.perf_counter(), 0
    for name in options.models:
        folder = Path(name)
        kind = shape(_settings(folder)).kind
        _note_training(folder, kind, results, where)
        network = None
        for context in sorted(options.contexts):
            for task in TASKS:
                row = {"stage": "asked", "model": folder.name, "kind": kind}
                row |= {"task": task, "context": context, "episodes": options.episodes}
                if context > LONGEST.get(task, context) or results.has(row):
                    continue
                if until and time.time() > until:
                    return [*left_out, "what the budget had no time for"]
                if network is None:
                    network = _network(folder, device)
                start = time.perf_counter()
                try:
                    shares, most = answered(
                        network, task, context, options.episodes, device
                    )
                except torch.OutOfMemoryError:
                    left_out.append(f"{folder.name} {task} {context}: out of memory")
                    torch.cuda.empty_cache()
                    continue
                values = {"accuracy": float(np.mean(shares)), "by_episode": shares}
                spent = time.perf_counter() - start
                results.add(row, values | {"bytes": most}, spent, where)
                done += 1
                shown = f"{folder.name} {task} {context}: {100 * np.mean(shares):.1f} %"
                total = time.perf_counter() - began
                print(f"{shown}, {spent:.1f} s, {total:.0f} s in all", file=sys.stderr)
    return left_out


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser().parse_args(arguments)
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
