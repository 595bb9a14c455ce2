"""Figures, table and picture of fine-tuning, from the rows that are there."""

from pathlib import Path
from typing import Any

from experiments.results import Results, figure, machines
from studies.files import write
from studies.picture import pyplot, save

from .comparison import (
    HALF,
    absolute,
    cells,
    chance,
    changed,
    methods_of,
    seeds,
    stability,
    tuned,
)
from .intervals import Interval, by_chance_of, mean
from .items import TASKS


_STAGES = ("tuned", "noise", "again")
_UNIT = "percentage points"
_MMLU = 14_042  # questions, those of the published figures
# Names of models in the keys of paper.toml.
NAMES = {"mamba1": "mamba", "mamba2": "mamba2", "gpt_neox": "transformer"}
_NOTE = (
    "five-layer byte models, generated tasks and GSM8K by choice, 128 questions of "
    "each; not MMLU. The published metric counts what LoRA changes, too (`.alone` does "
    "not), and with so few questions chance makes most of it (`.by_chance`; with as "
    "many as MMLU has `.by_chance_of_mmlu`)"
)


def publish(path: Path) -> None:
    """Put what the rows say beside them; write the table and the picture."""
    results = Results(path)
    rows = [r for r in results.rows() if r["settings"]["stage"] in _STAGES]
    told = cells(rows)
    stable = stability(rows) if told else []
    beside = Results(path.with_name("inference.json")).rows(stage="predicted")
    predicted = [row["settings"] | row["values"] for row in beside]
    results.put(cells=told, stability=stable, figures=figures(rows, stable))
    results.put(predictions=predicted)
    content = results.read()
    write(path.with_suffix(".md"), page(content))
    if told:
        draw(content, path.with_suffix(".png"))


def figures(rows: list[dict], stable: list[dict]) -> dict[str, Any]:
    """What paper.toml's rows are compared with, and what stands beside them.

    `.alone`: against fp32 runs of the same method; `.by_chance`: what that would be if
    changed answers had no preference; `.by_chance_of_mmlu`: with as many questions as
    MMLU has.
    """
    found = {}
    for model in dict.fromkeys(row["settings"]["model"] for row in rows):
        for precision in HALF:
            key = f"finetune.{precision}.{NAMES.get(model, model)}"
            cells = tuned(rows, model, [precision], methods_of(rows, model))
            told = mean(seeds(rows, cells).values(), least=0)
            if told is None:
                continue
            found[key] = _figure(told.described())
            for name, what in (("", absolute), (".by_chance", chance)):
                own = mean(seeds(rows, cells, what, alone=True).values(), least=0)
                found[f"{key}.alone{name}"] = _figure(own and own.described())
            share = mean(seeds(rows, cells, changed, alone=True).values(), least=0)
            found[f"{key}.alone.by_chance_of_mmlu"] = _figure(_at_mmlu(share))
    for line in stable:
        key = f"finetune.more_stable.{NAMES.get(line['model'], line['model'])}"
        found[key] = _figure(line["difference"])
        for name in ("precision_alone", "beyond_chance", "beyond_noise"):
            found[f"{key}.{name}"] = _figure(line[name])
    return found


def _at_mmlu(share: Interval | None) -> dict | None:
    """What chance makes of a share of changed answers with MMLU's questions."""
    if share is None:
        return None
    ends = {"value": share.value, "low": share.low, "high": share.high}
    of = {k: v if v is None else by_chance_of(v, _MMLU) for k, v in ends.items()}
    return of | {"n": share.n}


def _figure(interval: dict | None) -> dict[str, Any]:
    if interval is None:
        return figure(None, _UNIT, 0, note="no runs yet")
    return figure(interval["value"], _UNIT, interval["n"], interval["low"],
                  interval["high"], _NOTE)  # fmt: skip


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3g}"


def span(interval: dict | None) -> str:
    """A number and its interval."""
    if not interval or interval["value"] is None:
        return "-"
    value, low, high = (number(interval[k]) for k in ("value", "low", "high"))
    return value if interval["low"] is None else f"{value} ({low} to {high})"


def page(content: dict) -> str:
    """The .md file."""
    rows = [r for r in content["rows"] if r["settings"]["stage"] in _STAGES]
    lines = ["# Fine-tuning in three precisions", "", f"`{content['command']}`", ""]
    lines += [
        "Divergence: absolute difference of accuracy from the fp32 full fine-tune of "
        "the same seed, percentage points, averaged over 0, 1, 3 and 5 examples and "
        "seeds (arXiv:2406.00209's metric). Alone: against the fp32 run of the same "
        "method, so that the precision alone counts; by chance: what that would be if "
        "the answers that changed (from right to wrong or back) had no preference. "
        "Flips: share of questions answered otherwise. KL: nats, where an answer "
        "begins to be decided. Distance: relative L2 of the logits there. Asking: "
        "against the same weights asked in fp32. `noise`: the fp32 full recipe with "
        "other data and seed; `again`: the same again, where kernels add in no fixed "
        "order. In brackets 95 % intervals over seeds by Student's t; the questions "
        "are the same for all.",
        "",
    ]
    lines += machines(content, content["rows"])
    for task in TASKS:
        lines += ["", f"## {task}", ""]
        lines += _table(content.get("cells", []), task)
    if content.get("stability"):
        lines += ["", "## Is Mamba more stable?", ""]
        lines += _stability(content["stability"])
    if content.get("predictions"):
        lines += ["", "## Predicted and measured distance of logits", ""]
        lines += _predictions(content["predictions"])
    lines += ["", "## Learning rates chosen", ""]
    rates = {
        (s["model"], s["method"]): s["learning_rate"]
        for s in (row["settings"] for row in rows)
    }
    told = [f"{model} {method} {rate:g}" for (model, method), rate in rates.items()]
    lines += ["; ".join(told) or "none yet"]
    return "\n".join(lines) + "\n"


def _table(told: list[dict], task: str) -> list[str]:
    shown = {
        "divergence": "divergence",
        "divergence_alone": "alone",
        "by_chance_alone": "by chance",
        "flips": "flips",
        "kl": "KL",
        "rel_l2": "distance",
        "kl_alone": "KL alone",
        "kl_of_asking": "KL of asking",
    }
    names = ["model", "run", "seeds", "accuracy", *shown.values(), "steps skipped"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for line in told:
        if line["task"] != task:
            continue
        run = f"{line['method']} {line['precision']}"
        half = line["stage"] == "tuned" and line["precision"] in HALF
        cells = [
            span(line.get(k)) if half or not k.endswith(("alone", "asking")) else "-"
            for k in shown
        ]
        lines.append(
            f"| {line['model']} | {run if line['stage'] == 'tuned' else line['stage']}"
            f" | {line['seeds']} | {line['accuracy']:.1f} % "
            f"(fp32 full {line['accuracy_fp32_full']:.1f} %) | "
            + " | ".join(cells)
            + f" | {line['skipped_steps']} |"
        )
    return lines


def _stability(told: list[dict]) -> list[str]:
    lines = [
        "Transformer less Mamba, percentage points: of the published metric; against "
        "fp32 runs of the same method (the precision alone); of that, less what "
        "changed answers make by chance; of the published metric, less each model's "
        "own between seeds. Methods that both were fine-tuned by, fp16 and bf16.",
        "",
        "| Mamba | methods | published metric | precision alone | beyond chance |"
        " beyond seeds |",
        "|---|---|---|---|---|---|",
    ]
    for line in told:
        cells = [f"{span(line['difference'])}: {line['verdict']}"]
        for key in ("precision_alone", "beyond_chance", "beyond_noise"):
            cells.append(f"{span(line[key])}: {line[f'verdict_{key}']}")
        methods = ", ".join(line["methods"])
        lines.append(f"| {line['model']} | {methods} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "KL of the Transformer over Mamba's, from the fp32 run of the same method, and "
        "of asking alone; above 1 where Mamba is more stable.",
        "",
        "| Mamba |" + "".join(f" {task} | of asking alone |" for task in TASKS),
        "|---|" + "---|---|" * len(TASKS),
    ]
    for line in told:
        cells = [
            span(line[f"{key} {task}"])
            for task in TASKS
            for key in ("kl_ratio", "kl_ratio_of_asking")
        ]
        lines.append(f"| {line['model']} | " + " | ".join(cells) + " |")
    return lines


def _predictions(told: list[dict]) -> list[str]:
    lines = [
        "`lyapunov.check` on these checkpoints: sigma is what it predicts of rounding "
        "alone, before anything runs in half precision.",
        "",
        "| model | precision | predicted | emulated | mean KL | flips |",
        "|---|---|---|---|---|---|",
    ]
    for one in told:
        lines.append(
            f"| {one['model']} | {one['precision']} | "
            f"{number(one['sigma_t3'])} | {number(one['rel_l2'])} | "
            f"{number(one['kl_mean'])} | {one['flips']} of {one['tokens']} |"
        )
    if any("reference_ties" not in one for one in told):
        lines += [
            "",
            "Flips under the rule of an earlier version: a top token that changed into "
            "one of several equal logits of the execution is not among them.",
        ]
    return lines


def draw(content: dict, path: Path) -> None:
    """The metric beside its yardstick, and what it hides, by model."""
    told = content["cells"]
    panels = [("divergence", "published metric, percentage points", 1.0),
              ("divergence_alone", "from fp32, same method, perc. points", 1.0),
              ("flips", "answers that differ, %", 100.0),
              ("kl_alone", "KL from fp32, same method, nats", 1.0)]  # fmt: skip
    size = (4.2 * len(panels), 3.6 * len(TASKS))
    shape = (len(TASKS), len(panels))
    made, axes = pyplot().subplots(
        *shape, figsize=size, layout="constrained", squeeze=False
    )
    for down, task in enumerate(TASKS):
        lines = [line for line in told if line["task"] == task]
        for across, (what, label, scale) in enumerate(panels):
            _panel(axes[down][across], lines, what, scale)
            axes[down][across].set_ylabel(label, fontsize=9)
            axes[down][across].set_title(task, fontsize=10)
    axes[0][0].plot([], [], "_", color="black", markersize=9, label="by chance")
    axes[0][0].legend(fontsize=7)
    save(made, path)


def _panel(axis: Any, lines: list[dict], what: str, scale: float) -> None:
    alone = what.endswith("alone")
    lines = [line for line in lines if not alone or _has_alone(line, what)]
    runs = list(dict.fromkeys(_run(line) for line in lines))
    models = list(dict.fromkeys(line["model"] for line in lines))
    lowest = []
    for i, model in enumerate(models):
        for line in lines:
            interval = line.get(what)
            if what == "kl_alone" and line["stage"] != "tuned":
                interval = line["kl"]  # of the yardsticks: from the same recipe
            if line["model"] != model or not interval:
                continue
            x = runs.index(_run(line)) + 0.22 * (i - (len(models) - 1) / 2)
            value = scale * interval["value"]
            lowest += [value] if value > 0 else []
            if interval["low"] is not None:
                # an end at 0 is beyond a logarithmic axis, not missing
                ends = [max(scale * interval[k], 1e-12) for k in ("low", "high")]
                axis.plot([x, x], ends, color=f"C{i}", linewidth=1.5)
            axis.plot(x, value, "o", color=f"C{i}", markersize=4)
            luck = what.replace("divergence", "by_chance")
            if luck != what and line.get(luck):
                axis.plot(x, line[luck]["value"], "_", color="black", markersize=9)
        axis.plot([], [], "o", color=f"C{i}", label=model)
    axis.set_xticks(range(len(runs)), runs, rotation=60, ha="right", fontsize=7)
    if what == "kl_alone":
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.2 * min(lowest, default=1.0))
    else:
        axis.set_ylim(bottom=0)


def _has_alone(line: dict, what: str) -> bool:
    """Half-precision runs have fp32 ones of their method; of KL yardsticks, too."""
    if line["stage"] != "tuned":
        return what == "kl_alone"
    return line["precision"] in HALF


def _run(line: dict) -> str:
    if line["stage"] != "tuned":
        return {"noise": "other seed", "again": "same again"}[line["stage"]]
    return f"{line['method']} {line['precision']}"
