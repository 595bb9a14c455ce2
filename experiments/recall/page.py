"""hybrids.md and hybrids.png."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.results import machines
from experiments.trained.long_tasks import TASKS
from studies.picture import pyplot, save

from .differences import TRAINED


def _named(rows: list[dict]) -> list[tuple[str, str]]:
    """Models and their kinds, those of a kind together."""
    own = [row["settings"] for row in rows]
    kinds = list(dict.fromkeys(one["kind"] for one in own))
    found = dict.fromkeys((one["model"], one["kind"]) for one in own)
    return sorted(found, key=lambda one: kinds.index(one[1]))


def _shares(asked: list[dict], model: str) -> dict[tuple[str, int], float]:
    """A model's accuracy by task and context."""
    return {
        (row["settings"]["task"], row["settings"]["context"]): row["values"]["accuracy"]
        for row in asked
        if row["settings"]["model"] == model
    }


def _trained(every: list[dict], asked: list[dict]) -> list[str]:
    """The table of models: how they were trained, and what they answer on the whole.

    The means are over tasks and contexts that all of them were asked in.
    """
    lines = ["", "| model | seed | held-out bits per byte | right, of contexts up to "
             f"{TRAINED:,}, % | beyond, % |", "|---|---|---|---|---|"]  # fmt: skip
    trained = {
        row["settings"]["model"]: row["values"]
        for row in every
        if row["settings"]["stage"] == "trained"
    }
    shares = {model: _shares(asked, model) for model, _ in _named(asked)}
    shared = set.intersection(*map(set, shares.values())) if shares else set()
    for model, by_cell in shares.items():
        told = trained.get(model)
        seed = told["seed"] if told else "-"
        bits = f"{told['held_out_bits_per_byte']:.4f}" if told else "-"
        cells = []
        for long in (False, True):
            own = [
                share
                for cell, share in by_cell.items()
                if cell in shared and (cell[1] > TRAINED) == long
            ]
            cells.append(f"{100 * np.mean(own):.1f}" if own else "-")
        lines.append(f"| {model} | {seed} | {bits} | {cells[0]} | {cells[1]} |")
    return lines


def page(content: dict[str, Any]) -> str:
    """hybrids.md."""
    rows = [row for row in content["rows"] if row["settings"]["stage"] == "asked"]
    shares = {model: _shares(rows, model) for model, _ in _named(rows)}
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
    lines += machines(content, rows)
    lines += _trained(content["rows"], rows)
    for task in TASKS:
        own = [row for row in rows if row["settings"]["task"] == task]
        contexts = sorted({row["settings"]["context"] for row in own})
        lines += ["", f"## {task}", "", "| context | " + " | ".join(shares) + " |"]
        lines += ["|---|" + "---|" * len(shares)]
        for context in contexts:
            cells = []
            for by_cell in shares.values():
                share = by_cell.get((task, context))
                cells.append("-" if share is None else f"{100 * share:.1f}")
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
