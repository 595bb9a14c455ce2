"""Tables, figure and picture of exponents during training."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.finetuning.page import number
from experiments.results import Results, figure, machines
from studies.files import write
from studies.picture import pyplot, save

from .relations import MEASURED, largest, relations


STAGES = ("initial", "trained", "tuned")
_LABELS = {
    "max": "largest exponent, nats a token",
    "min": "smallest exponent",
    "dt_mean": "mean dt",
    "dt_max": "largest dt",
    "memory_p50": "median memory, tokens",
}


def publish(path: Path) -> None:
    """Put what the rows say beside them; write the tables and the picture."""
    results = Results(path)
    rows = results.rows()
    told = relations(rows)
    results.put(relations=told, figures=figures(rows))
    write(path.with_suffix(".md"), page(results.read()))
    if rows:
        draw(rows, path.with_suffix(".png"))


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What paper.toml's row is compared with."""
    one = largest(rows)
    if one is None:
        return {}
    own = one["settings"]
    note = f"{own['model']} {own['stage']}, A times {own['factor']:g}; n: layers"
    return {
        "exponents.maximal": figure(
            one["value"], "per token", one["n"], one["low"], one["high"], note
        )
    }


def by_layer(rows: list[dict[str, Any]], model: str, stage: str, key: str) -> dict:
    """A number of every layer: its values over the stage's seeds."""
    found: dict[int, list[float]] = {}
    for row in rows:
        own = row["settings"]
        if (own["model"], own["stage"]) == (model, stage):
            for layer in row["values"]["layers"]:
                if layer[key] is not None:
                    found.setdefault(layer["layer"], []).append(layer[key])
    return found


def _span(values: list[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def page(content: dict[str, Any]) -> str:
    """exponents.md."""
    rows = content["rows"]
    models = list(dict.fromkeys(row["settings"]["model"] for row in rows))
    lines = [
        "# Exponents before training, trained, fine-tuned",
        "",
        f"`{content['command']}`",
        "",
        "By layer; of several seeds the smallest and the largest. Initial "
        "weights are the recipe's, of the library that each row of the json names.",
        "",
    ]
    lines += machines(content, content["rows"])
    for model in models:
        lines += ["", f"## {model}", ""]
        for key, label in _LABELS.items():
            lines += _table(rows, model, key, label)
    lines += ["", "## What the sign does not say", ""]
    lines += _scaled(rows, models)
    lines += ["", "## What goes with a checkpoint's divergence", ""]
    lines += _relations(content.get("relations", []), models)
    return "\n".join(lines) + "\n"


def _table(rows: list[dict], model: str, key: str, label: str) -> list[str]:
    found = {stage: by_layer(rows, model, stage, key) for stage in STAGES}
    layers = sorted({layer for each in found.values() for layer in each})
    if not layers:
        return []
    lines = [f"| {label} | " + " | ".join(f"layer {i}" for i in layers) + " |"]
    lines += ["|---|" + "---|" * len(layers)]
    for stage, each in found.items():
        if each:
            cells = [_span(each[i]) if i in each else "-" for i in layers]
            lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _scaled(rows: list[dict], models: list[str]) -> list[str]:
    lines = [
        "A of the trained model times a factor: every exponent moves by it, none turns "
        "positive. Distance of the logits from fp32, emulated, and as predicted.",
        "",
        "| model | A times | largest exponent | bf16 | predicted | fp16 | predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in models:
        own = [row for row in rows if row["settings"]["model"] == model]
        own = [r for r in own if r["settings"]["stage"] in ("scaled", "trained")]
        for row in sorted(own, key=lambda row: row["settings"]["factor"]):
            values = row["values"]
            top = max(layer["max"] for layer in values["layers"])
            cells = [number(row["settings"]["factor"]), number(top)]
            for precision in ("bf16", "fp16"):
                one = values["precisions"][precision]
                cells += [number(one["rel_l2"]), number(one["sigma_t3"])]
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


def _relations(told: list[dict], models: list[str]) -> list[str]:
    lines = [
        "Spearman's rank correlation over checkpoints, with 95 % intervals from "
        "resampling them; n checkpoints of each model. A dash: fewer than ten, or "
        "nothing varies.",
        "",
        "| measured, emulated | against | all | " + " | ".join(models) + " |",
        "|---|---|---|" + "---|" * len(models),
    ]
    for line in told:
        cells = []
        for model in ("all", *models):
            one = line.get(model)
            if one is None:
                cells.append("-")
                continue
            ends = f"{one['low']:.2f} to {one['high']:.2f}"
            cells.append(f"{one['rho']:.2f} ({ends}), {one['n']}")
        what = f"{MEASURED[line['measure']]}, {line['precision']}"
        lines.append(f"| {what} | {line['predictor']} | " + " | ".join(cells) + " |")
    return lines


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """By layer and stage; and divergence against the exponent and the prediction."""
    models = list(dict.fromkeys(row["settings"]["model"] for row in rows))
    made, axes = pyplot().subplots(
        3, len(models), figsize=(4 * len(models), 9.5), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for column, model in enumerate(models):
        _layers(axes[0][column], rows, model, "max", -1.0)
        _layers(axes[1][column], rows, model, "dt_mean", 1.0)
        axes[0][column].set_title(model, fontsize=10)
        _scatter(axes[2][column], [r for r in rows if r["settings"]["model"] == model])
    axes[0][0].set_ylabel("minus the largest exponent")
    axes[1][0].set_ylabel("mean dt")
    axes[2][0].set_ylabel("distance of logits, bf16 emulated")
    axes[0][0].legend(fontsize=8)
    axes[2][0].legend(fontsize=7)
    save(made, path)


def _layers(axis: Any, rows: list[dict], model: str, key: str, sign: float) -> None:
    for i, stage in enumerate(STAGES):
        each = by_layer(rows, model, stage, key)
        x = sorted(each)
        if not x:
            continue
        ends = [[sign * end(each[layer]) for layer in x] for end in (min, max)]
        middle = [sign * float(np.median(each[layer])) for layer in x]
        axis.fill_between(x, *ends, color=f"C{i}", alpha=0.25)
        axis.plot(x, middle, "o-", color=f"C{i}", markersize=4, label=stage)
    axis.set_yscale("log")
    axis.set_xlabel("layer")


def _scatter(axis: Any, rows: list[dict]) -> None:
    """Measured against minus the largest exponent; crosses: as predicted."""
    from matplotlib.ticker import NullFormatter

    stages = ("initial", "trained", "tuned", "scaled")
    for i, stage in enumerate(stages):
        own = [row for row in rows if row["settings"]["stage"] == stage]
        tops = [-max(la["max"] for la in row["values"]["layers"]) for row in own]
        told = [row["values"]["precisions"]["bf16"] for row in own]
        y = [one["rel_l2"] for one in told]
        color = "C3" if stage == "scaled" else f"C{i}"
        axis.plot(tops, y, "o", color=color, markersize=5, label=stage)
        both = [(t, o["sigma_t3"]) for t, o in zip(tops, told, strict=True)]
        both = [pair for pair in both if pair[1] is not None]
        if both:
            axis.plot(*zip(*both, strict=True), "x", color=color, markersize=6)
    axis.plot([], [], "kx", label="as predicted")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())  # its labels cover each other
    axis.set_xlabel("minus the largest exponent")
