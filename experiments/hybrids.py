"""Does a little attention let Mamba-2 recall and copy? By length of context.

    python -m experiments.train --kind hybrid --corpus FOLDER --out HYBRID ...
    python -m experiments.hybrids --models experiments/models/* HYBRID

arXiv:2406.07887: hybrids of 43 % Mamba-2, 7 % attention and 50 % MLP layers copy,
recall and look up phone numbers where pure Mamba-2 falls behind. Here pure networks and
a hybrid of equal size and training (`experiments.train`; context 1024) are asked to,
in ever longer contexts (`trained/long_tasks.py`), also beyond what they were trained
on, where GPT-NeoX's rotary positions are ones never seen.

All models are asked the same episodes. Intervals are of 95 %, from resampling them.
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

from experiments.picture import pyplot, save
from experiments.results import FOLDER, Results, environment, figure, write
from experiments.trained.long_tasks import LONGEST, TASKS, episodes
from experiments.trained.problems import Problem


MODELS = tuple(
    f"experiments/models/{name}" for name in ("mamba1", "mamba2", "mamba3", "gpt_neox")
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


def difference(
    rows: list[dict], kind: str, other: str, long: bool
) -> dict[str, Any] | None:
    """Mean accuracy of one kind less another's, with its interval.

    The mean is over tasks and contexts that both were asked in; `long`: contexts beyond
    training's, else those up to it. The same episodes are resampled for both.
    """
    cells = []
    for row in rows:
        own = row["settings"]
        if own["kind"] != kind or (own["context"] > TRAINED) != long:
            continue
        same = {k: own[k] for k in ("task", "context", "episodes")}
        theirs = [r for r in rows if r["settings"]["kind"] == other
                  and same.items() <= r["settings"].items()]  # fmt: skip
        if theirs:
            both = (row["values"]["by_episode"], theirs[0]["values"]["by_episode"])
            cells.append(np.subtract(*map(np.array, both)))
    if not cells:
        return None
    rng = np.random.default_rng(0)
    drawn = [
        np.mean(
            [cell[rng.integers(len(cell), size=len(cell))].mean() for cell in cells]
        )
        for _ in range(_SAMPLES)
    ]
    low, high = 100 * np.percentile(drawn, _LEVELS)
    value = 100 * float(np.mean([cell.mean() for cell in cells]))
    return {"value": value, "low": low, "high": high, "n": len(cells[0])}


def figures(rows: list[dict]) -> dict[str, Any]:
    """What paper.toml's row is compared with, and the same against others."""
    found = {}
    for long, name in ((False, ""), (True, ".beyond_training")):
        for other in ("mamba2", "mamba1", "gpt_neox"):
            one = difference(rows, "hybrid", other, long)
            if one is not None:
                note = "one model of each kind, 2.2 million parameters; n: episodes"
                found[f"hybrids.recall_above_{other}{name}"] = figure(
                    one["value"], _UNIT, one["n"], one["low"], one["high"], note
                )
    return found


def page(content: dict[str, Any]) -> str:
    """hybrids.md."""
    rows = content["rows"]
    kinds = list(dict.fromkeys(row["settings"]["kind"] for row in rows))
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
    for where in content["environments"]:
        shown = [f"{k} {v}" for k, v in where.items() if v and k != "git_commit"]
        lines.append("- " + ", ".join(shown))
    for task in TASKS:
        own = [row for row in rows if row["settings"]["task"] == task]
        contexts = sorted({row["settings"]["context"] for row in own})
        lines += ["", f"## {task}", "", "| context | " + " | ".join(kinds) + " |"]
        lines += ["|---|" + "---|" * len(kinds)]
        for context in contexts:
            cells = []
            for kind in kinds:
                wanted = {"kind": kind, "context": context}.items()
                found = [r for r in own if wanted <= r["settings"].items()]
                share = 100 * found[0]["values"]["accuracy"] if found else None
                cells.append("-" if share is None else f"{share:.1f}")
            lines.append(f"| {context:,} | " + " | ".join(cells) + " |")
    lines += ["", "Difference of mean accuracy, percentage points, 95 % intervals:", ""]
    for key, one in content.get("figures", {}).items():
        ends = f"{one['low']:.1f} to {one['high']:.1f}"
        lines.append(f"- `{key}`: {one['value']:.1f} ({ends})")
    if content.get("left_out"):
        lines += ["", "Left out: " + "; ".join(content["left_out"]) + "."]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> None:
    """Accuracy against context, a panel a task."""
    made, axes = pyplot().subplots(
        1, len(TASKS), figsize=(12, 3.8), layout="constrained"
    )
    kinds = list(dict.fromkeys(row["settings"]["kind"] for row in rows))
    for axis, task in zip(axes, TASKS, strict=True):
        for i, kind in enumerate(kinds):
            wanted = {"kind": kind, "task": task}.items()
            own = [row for row in rows if wanted <= row["settings"].items()]
            own.sort(key=lambda row: row["settings"]["context"])
            x = [row["settings"]["context"] for row in own]
            y = [100 * row["values"]["accuracy"] for row in own]
            axis.plot(x, y, "o-", color=f"C{i}", markersize=4, label=kind)
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
        "python -m experiments.hybrids --models experiments/models/* HYBRID",
    )
    left_out = ask(options, results)
    rows = results.rows(stage="asked")
    results.put(figures=figures(rows), left_out=left_out)
    write(options.out.with_suffix(".md"), page(results.read()))
    if rows:
        draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
