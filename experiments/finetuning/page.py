"""Figures, table and picture of fine-tuning, from the rows that are there."""

from pathlib import Path
from typing import Any

from experiments.results import Results, figure, write

from .comparison import averaged, bootstrap, cells, stability
from .items import TASKS


_STAGES = ("tuned", "noise", "again")
_UNIT = "percentage points"
_HALF = ("fp16", "bf16")
# Names of models in the keys of paper.toml.
NAMES = {"mamba1": "mamba", "mamba2": "mamba2", "gpt_neox": "transformer"}
_NOTE = "five-layer byte models, generated tasks and GSM8K by choice; not MMLU"


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
    """What paper.toml's rows are compared with."""
    found = {}
    methods = list(dict.fromkeys(row["settings"]["method"] for row in rows))
    for model in dict.fromkeys(row["settings"]["model"] for row in rows):
        name = NAMES.get(model, model)
        for precision in _HALF:
            got = averaged(rows, model, methods, [precision])
            interval = bootstrap([got], [1.0]) if got else None
            if interval:
                found[f"finetune.{precision}.{name}"] = _figure(interval.described())
    for line in stable:
        key = f"finetune.more_stable.{NAMES.get(line['model'], line['model'])}"
        found[key] = _figure(line["difference"])
        found[key + ".beyond_noise"] = _figure(line["beyond_noise"])
    return found


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
    return f"{value} ({low} to {high})"


def page(content: dict) -> str:
    """The .md file."""
    rows = [r for r in content["rows"] if r["settings"]["stage"] in _STAGES]
    lines = ["# Fine-tuning in three precisions", "", f"`{content['command']}`", ""]
    lines += [
        "Divergence: absolute difference of accuracy from the fp32 full fine-tune of "
        "the same seed, percentage points, averaged over 0, 1, 3 and 5 examples and "
        "seeds (arXiv:2406.00209's metric). Flips: share of questions answered "
        "otherwise. KL: nats, where an answer begins to be decided. Distance: relative "
        "L2 of the logits there. In brackets 95 % intervals over seeds (of divergence, "
        "over questions, too). `noise`: the fp32 full recipe with other data and seed; "
        "`again`: the same again, where kernels add in no fixed order. `Alone`: "
        "against the fp32 run of the same method. `Asking`: against the same weights "
        "asked in fp32.",
        "",
    ]
    for where in content["environments"]:
        shown = [f"{k} {v}" for k, v in where.items() if v and k != "git_commit"]
        lines.append("- " + ", ".join(shown))
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
    lines = [
        "| model | run | seeds | accuracy | divergence | flips | KL | distance |"
        " KL alone | KL of asking | steps skipped |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in told:
        if line["task"] != task:
            continue
        run = f"{line['method']} {line['precision']}"
        run = run if line["stage"] == "tuned" else line["stage"]
        shown = [span(line[k]) for k in ("divergence", "flips", "kl", "rel_l2")]
        lines.append(
            f"| {line['model']} | {run} | {line['seeds']} | {line['accuracy']:.1f} % "
            f"(fp32 full {line['accuracy_fp32_full']:.1f} %) | "
            + " | ".join(shown)
            + f" | {span(line.get('kl_alone'))} | {span(line.get('kl_of_asking'))}"
            f" | {line['skipped_steps']} |"
        )
    return lines


def _stability(told: list[dict]) -> list[str]:
    lines = [
        "Transformer less Mamba, percentage points, all methods, fp16 and bf16; KL "
        "alone as the Transformer's over Mamba's.",
        "",
        "| Mamba | difference | verdict | beyond seed noise | verdict |"
        + "".join(f" KL ratio, {task} | of asking alone |" for task in TASKS),
        "|---|---|---|---|---|" + "---|---|" * len(TASKS),
    ]
    for line in told:
        shown = [
            span(line["difference"]), line["verdict"], span(line["beyond_noise"]),
            line["verdict_beyond_noise"],
        ]  # fmt: skip
        for task in TASKS:
            shown += [span(line[f"kl_ratio {task}"])]
            shown += [span(line[f"kl_ratio_of_asking {task}"])]
        lines.append(f"| {line['model']} | " + " | ".join(shown) + " |")
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
    return lines


def draw(content: dict, path: Path) -> None:
    """The metric beside its yardstick, and what it hides, by model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    told = content["cells"]
    panels = [("divergence", "published metric, percentage points", 1.0),
              ("flips", "answers that differ, %", 100.0),
              ("kl_alone", "KL from fp32, same method, nats", 1.0)]  # fmt: skip
    size = (4.2 * len(panels), 3.6 * len(TASKS))
    shape = (len(TASKS), len(panels))
    made, axes = pyplot.subplots(
        *shape, figsize=size, layout="constrained", squeeze=False
    )
    for down, task in enumerate(TASKS):
        lines = [line for line in told if line["task"] == task]
        for across, (what, label, scale) in enumerate(panels):
            _panel(axes[down][across], lines, what, scale)
            axes[down][across].set_ylabel(label, fontsize=9)
            axes[down][across].set_title(task, fontsize=10)
    axes[0][0].legend(fontsize=7)
    part = path.with_name(f"part.{path.name}")
    made.savefig(part, dpi=110)
    pyplot.close(made)
    part.replace(path)


def _panel(axis: Any, lines: list[dict], what: str, scale: float) -> None:
    runs = list(dict.fromkeys(_run(line) for line in lines))
    models = list(dict.fromkeys(line["model"] for line in lines))
    for i, model in enumerate(models):
        for line in lines:
            interval = line.get(what)
            if what == "kl_alone" and line["stage"] != "tuned":
                interval = line["kl"]  # of the yardsticks: from the same recipe
            if line["model"] != model or not interval:
                continue
            x = runs.index(_run(line)) + 0.22 * (i - (len(models) - 1) / 2)
            value = scale * interval["value"]
            ends = [scale * interval[k] for k in ("low", "high")]
            axis.plot([x, x], ends, color=f"C{i}", linewidth=1.5)
            axis.plot(x, value, "o", color=f"C{i}", markersize=4)
        axis.plot([], [], "o", color=f"C{i}", label=model)
    axis.set_xticks(range(len(runs)), runs, rotation=60, ha="right", fontsize=7)
    if what == "kl_alone":
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)


def _run(line: dict) -> str:
    if line["stage"] != "tuned":
        return {"noise": "other seed", "again": "same again"}[line["stage"]]
    return f"{line['method']} {line['precision']}"
