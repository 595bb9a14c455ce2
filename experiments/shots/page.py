"""Figures, tables and picture of learning in context, from the rows that are there."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.finetuning.items import SHOTS
from experiments.finetuning.page import NAMES, number
from experiments.results import Results, figure, machines
from studies.files import write
from studies.picture import pyplot, save

from .documents import TASKS
from .improvement import shares


_NOTE = "byte models of four to five layers, generated tasks; relative improvement"


def right_of(row: dict[str, Any]) -> np.ndarray:
    """Whether each answer of a row was right: tasks x shots x questions."""
    shape = (len(TASKS), len(SHOTS), row["settings"]["questions"])
    data = np.frombuffer(bytes.fromhex(row["values"]["right"]), np.uint8)
    return np.unpackbits(data)[: np.prod(shape)].reshape(shape).astype(bool)


def gathered(rows: list[dict], tuned: bool) -> dict[str, np.ndarray]:
    """By model: seeds x tasks x shots x questions, of the most questions asked."""
    chosen = [row for row in rows if row["settings"]["tuned"] == tuned]
    most = max((row["settings"]["questions"] for row in chosen), default=0)
    found: dict[str, list[np.ndarray]] = {}
    for row in chosen:
        if row["settings"]["questions"] == most:
            found.setdefault(row["settings"]["model"], []).append(right_of(row))
    return {model: np.stack(each) for model, each in found.items()}


def told(rows: list[dict]) -> dict[str, dict[str, Any]]:
    """Improvements and shares, pretrained and tuned."""
    found = {}
    for name, tuned in (("pretrained", False), ("tuned", True)):
        right = gathered(rows, tuned)
        if "gpt_neox" in right:
            found[name] = shares(right, "gpt_neox")
    return found


def figures(summary: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What paper.toml's rows are compared with."""
    found = {}
    for stage, models in summary.items():
        for model, one in models.items():
            name = NAMES.get(model, model)
            if name == "transformer":
                continue
            share = (one["share"], "%", one["seeds"])
            note = _NOTE
            if one["share"] is None:
                note = "the Transformer's improvement may be none: no share of it"
            found[f"in_context.{stage}.{name}"] = figure(
                *share, one["share_low"], one["share_high"], note
            )
    return found


def publish(path: Path, differences: list[dict[str, Any]]) -> None:
    """Put what the rows say beside them; write the tables and the picture."""
    results = Results(path)
    rows = results.rows(stage="asked")
    summary = told(rows)
    results.put(
        summary=summary, figures=figures(summary), differs_from_lm_eval=differences
    )
    content = results.read()
    write(path.with_suffix(".md"), page(content))
    if rows:
        draw(rows, path.with_suffix(".png"))


def page(content: dict[str, Any]) -> str:
    """in_context.md."""
    rows = [r for r in content["rows"] if r["settings"]["stage"] == "asked"]
    lines = [
        "# Learning from examples in the context",
        "",
        f"`{content['command']}`",
        "",
        "Accuracy, %, after 0, 1, 3 and 5 examples; of tuned models the mean of their "
        "seeds. `repeat` to `larger` are the instructions that the tuned models were "
        "taught, `numbers` is GSM8K by choice, `labels` was part of pretraining.",
        "",
    ]
    lines += machines(content, content["rows"])
    lines += ["", "| model | seeds | " + " | ".join(TASKS) + " | all |"]
    lines += ["|---|---|" + "---|" * (len(TASKS) + 1)]
    for tuned in (False, True):
        for model, right in gathered(rows, tuned).items():
            means = 100 * right.mean(axis=(0, 3))
            name = f"{model} tuned" if tuned else model
            each = [*means, means.mean(0)]
            shown = [" ".join(f"{share:.0f}" for share in one) for one in each]
            lines.append(f"| {name} | {len(right)} | " + " | ".join(shown) + " |")
    lines += [
        "",
        "Improvement over zero-shot, % of it, mean of tasks and numbers of examples, "
        "and its share of the Transformer's (arXiv:2406.00209), with 95 % intervals:",
        "",
        "| model | | improvement | share of the Transformer's, % |",
        "|---|---|---|---|",
    ]
    for stage, models in content.get("summary", {}).items():
        for model, one in models.items():
            own = [number(one[k]) for k in ("improvement", "low", "high")]
            share = [number(one[k]) for k in ("share", "share_low", "share_high")]
            lines.append(
                f"| {model} | {stage} | {own[0]} ({own[1]} to {own[2]}) | "
                f"{share[0]} ({share[1]} to {share[2]}) |"
            )
    return "\n".join(lines + _of_lm_eval(content)) + "\n"


def _of_lm_eval(content: dict[str, Any]) -> list[str]:
    """What lm-eval was asked: whether it agrees, and benchmarks."""
    lines = []
    local = [r for r in content["rows"] if r["settings"]["stage"] == "harness"]
    if local:
        differ = content.get("differs_from_lm_eval", [])
        tasks = sum(len(row["values"]["tasks"]) for row in local)
        each = " and ".join(
            str(n) for n in sorted({row["settings"]["questions"] for row in local})
        )
        lines += ["", f"lm-eval asked {tasks} sets of {each} of these questions, too "
                  f"(`--harness --questions {each}`), and counted otherwise in "
                  f"{len(differ)}."]  # fmt: skip
    named = [r for r in content["rows"] if r["settings"]["stage"] == "benchmarks"]
    if named:
        lines += ["", "| model | benchmark | shots | accuracy, % | standard error |"]
        lines += ["|---|---|---|---|---|"]
    for row in named:
        for task, one in row["values"]["tasks"].items():
            error = None if one["stderr"] is None else 100 * one["stderr"]
            lines.append(
                f"| {row['settings']['model']} | {task} | {row['settings']['shots']} | "
                f"{number(100 * one['accuracy'])} | {number(error)} |"
            )
    return lines


def draw(rows: list[dict], path: Path) -> None:
    """Accuracy by number of examples, a panel a task; tuned models drawn through."""
    made, axes = pyplot().subplots(2, 4, figsize=(13, 6), layout="constrained")
    panels = [*TASKS, "all"]
    models = list(dict.fromkeys(row["settings"]["model"] for row in rows))
    for axis, task in zip(axes.flat, panels, strict=True):
        for tuned, style in ((False, "--"), (True, "-")):
            for model, right in gathered(rows, tuned).items():
                means = 100 * right.mean(axis=(0, 3))
                shown = means.mean(0) if task == "all" else means[TASKS.index(task)]
                name = f"{model}, tuned" if tuned else model
                color = f"C{models.index(model)}"
                axis.plot(SHOTS, shown, style, marker="o", color=color, label=name)
        axis.set_title(task, fontsize=10)
        axis.set_xticks(SHOTS)
        axis.set_ylim(0, 102)
    for axis in axes[1]:
        axis.set_xlabel("examples")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy, %")
    axes.flat[-1].legend(fontsize=7)
    save(made, path)
