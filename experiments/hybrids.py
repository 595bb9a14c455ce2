"""Does a little attention let Mamba-2 recall and copy? By length of context.

    python -m experiments.hybrids

arXiv:2406.07887: hybrids of 43 % Mamba-2, 7 % attention and 50 % MLP layers copy,
recall and look up phone numbers where pure Mamba-2 falls behind. Here pure networks and
a hybrid of equal size and training (`experiments.train`; context 1024) are asked to,
in ever longer contexts (`trained/long_tasks.py`), also beyond what they were trained
on, where GPT-NeoX's rotary positions are ones never seen.

All models are asked the same episodes. `--models` takes several of a kind, from
training with other seeds. Intervals are of 95 %: Welch's over models of two kinds, and
of single models from resampling the episodes.
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

from experiments.finetuning.intervals import Interval, difference as welch
from experiments.picture import pyplot, save
from experiments.results import FOLDER, Results, environment, figure, write
from experiments.trained.long_tasks import LONGEST, TASKS, episodes
from experiments.trained.problems import Problem


MODELS = tuple(
    f"experiments/models/{name}"
    for name in ("mamba1", "mamba2", "mamba3", "gpt_neox", "hybrid")
)
TRAINED = 1024  # bytes of context
_AT_ONCE = 2**17  # bytes read at a time
_SAMPLES, _LEVELS = 2000, (2.5, 97.5)
_UNIT = "percentage points"


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
    results.add(row, values, told["training"]["seconds"], where)


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


Cells = dict[tuple[str, int], np.ndarray]


def _cells(rows: list[dict], kind: str, long: bool) -> list[Cells]:
    """Of each model of a kind: the episodes' shares by task and context."""
    found: dict[str, Cells] = {}
    for row in rows:
        own = row["settings"]
        if own["kind"] == kind and (own["context"] > TRAINED) == long:
            model = found.setdefault(own["model"], {})
            model[own["task"], own["context"]] = np.array(row["values"]["by_episode"])
    return list(found.values())


def difference(rows: list[dict], kind: str, other: str, long: bool) -> Interval | None:
    """Mean accuracy of one kind less another's, percentage points.

    The mean is over tasks and contexts that all models of both were asked in; `long`:
    contexts beyond training's, else those up to it. With two or more models of each
    kind the interval is Welch's over them; else from resampling the episodes, which
    are the same for all.
    """
    ours, theirs = _cells(rows, kind, long), _cells(rows, other, long)
    if not ours or not theirs:
        return None
    shared = sorted(set.intersection(*(set(one) for one in ours + theirs)))
    if not shared:
        return None
    if min(len(ours), len(theirs)) > 1:
        means = [
            [
                100 * float(np.mean([one[cell].mean() for cell in shared]))
                for one in side
            ]
            for side in (ours, theirs)
        ]
        return welch(*means)
    cells = [
        np.mean([one[cell] for one in ours], 0)
        - np.mean([one[cell] for one in theirs], 0)
        for cell in shared
    ]
    rng = np.random.default_rng(0)
    drawn = [
        np.mean(
            [cell[rng.integers(len(cell), size=len(cell))].mean() for cell in cells]
        )
        for _ in range(_SAMPLES)
    ]
    low, high = (100 * np.percentile(drawn, _LEVELS)).tolist()
    value = 100 * float(np.mean([cell.mean() for cell in cells]))
    return Interval(value, low, high, 1)


def figures(rows: list[dict]) -> dict[str, Any]:
    """What paper.toml's row is compared with, and the same against others."""
    found = {}
    for long, name in ((False, ""), (True, ".beyond_training")):
        for other in ("mamba2", "mamba1", "gpt_neox"):
            one = difference(rows, "hybrid", other, long)
            if one is not None:
                over = "the models" if one.n > 1 else "the episodes of a single model"
                note = f"2.2 million parameters; interval over {over}; n: models"
                found[f"hybrids.recall_above_{other}{name}"] = figure(
                    one.value, _UNIT, one.n, one.low, one.high, note
                )
    return found


def _named(rows: list[dict]) -> list[tuple[str, str]]:
    """Models and their kinds, those of a kind together."""
    own = [row["settings"] for row in rows]
    kinds = list(dict.fromkeys(one["kind"] for one in own))
    found = dict.fromkeys((one["model"], one["kind"]) for one in own)
    return sorted(found, key=lambda one: kinds.index(one[1]))


def page(content: dict[str, Any]) -> str:
    """hybrids.md."""
    rows = [row for row in content["rows"] if row["settings"]["stage"] == "asked"]
    models = [model for model, _ in _named(rows)]
    lines = [
        "# Copying, recall and look-up by length of context",
        "",
        f"`{content['command']}`",
        "",
        "Answers that are right, %: of copying every byte is one, of recall a digit, "
        "of the phonebook four digits. Training had contexts of 1024 bytes, with "
        "several short episodes in each.",
        "",
    ]
    shown = dict.fromkeys(
        ", ".join(f"{k} {v}" for k, v in where.items() if v and k != "git_commit")
        for where in content["environments"]
    )
    lines += [f"- {one}" for one in shown]
    trained = [row for row in content["rows"] if row["settings"]["stage"] == "trained"]
    if trained:
        lines += ["", "| model | seed | held-out bits per byte |", "|---|---|---|"]
    for row in trained:
        told, name = row["values"], row["settings"]["model"]
        bits = told["held_out_bits_per_byte"]
        lines.append(f"| {name} | {told['seed']} | {bits:.4f} |")
    for task in TASKS:
        own = [row for row in rows if row["settings"]["task"] == task]
        contexts = sorted({row["settings"]["context"] for row in own})
        lines += ["", f"## {task}", "", "| context | " + " | ".join(models) + " |"]
        lines += ["|---|" + "---|" * len(models)]
        for context in contexts:
            cells = []
            for model in models:
                wanted = {"model": model, "context": context}.items()
                found = [r for r in own if wanted <= r["settings"].items()]
                share = 100 * found[0]["values"]["accuracy"] if found else None
                cells.append("-" if share is None else f"{share:.1f}")
            lines.append(f"| {context:,} | " + " | ".join(cells) + " |")
    lines += ["", "Difference of mean accuracy, percentage points, 95 % intervals:", ""]
    for key, one in content.get("figures", {}).items():
        ends = f"{one['low']:.1f} to {one['high']:.1f}"
        lines.append(f"- `{key}`: {one['value']:.1f} ({ends}); {one['note']}")
    if content.get("left_out"):
        lines += ["", "Left out: " + "; ".join(content["left_out"]) + "."]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> None:
    """Accuracy against context, a panel a task; models of a kind have its colour."""
    made, axes = pyplot().subplots(
        1, len(TASKS), figsize=(12, 3.8), layout="constrained"
    )
    models = _named(rows)
    kinds = list(dict.fromkeys(kind for _, kind in models))
    for axis, task in zip(axes, TASKS, strict=True):
        named = set()
        for model, kind in models:
            wanted = {"model": model, "task": task}.items()
            own = [row for row in rows if wanted <= row["settings"].items()]
            own.sort(key=lambda row: row["settings"]["context"])
            x = [row["settings"]["context"] for row in own]
            y = [100 * row["values"]["accuracy"] for row in own]
            label = None if kind in named else kind
            named.add(kind)
            axis.plot(
                x, y, "o-", color=f"C{kinds.index(kind)}", markersize=4, label=label,
                alpha=1.0 if label else 0.5,
            )  # fmt: skip
        axis.axvline(TRAINED, color="black", linewidth=0.8, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.set_ylim(0, 102)
        axis.set_title(task, fontsize=10)
        axis.set_xlabel("bytes of context (dotted: of training)")
    axes[0].set_ylabel("answers that are right, %")
    axes[0].legend(fontsize=8)
    save(made, path)


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
