"""Table, figure and picture of generation, from the rows that are there."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.finetuning.page import number
from experiments.results import Results, figure, machines
from studies.files import write
from studies.picture import pyplot, save

from .timing import Line, line


BASE = "transformer"
FAST = "hybrid"


def publish(path: Path, pages: bool = True) -> None:
    """Put what the rows say beside them; write the table and the picture.

    Rows of the small shapes count only where there are no others: a line through both
    would predict neither.
    """
    results = Results(path)
    rows = results.rows(stage="step")
    rows = [row for row in rows if not row["settings"]["tiny"]] or rows
    lines = {model: fit for model in _models(rows) if (fit := fitted(rows, model))}
    cards = [one["device"] for one in results.read()["environments"]]
    results.put(
        figures=figures(rows, lines, cards),
        lines={model: vars(fit) for model, fit in lines.items()},
        predicted=predicted(rows, lines),
    )
    if not pages:
        return
    write(path.with_suffix(".md"), page(results.read() | {"rows": rows}, lines))
    if any(row["values"]["fits"] for row in rows):
        draw(rows, lines, path.with_suffix(".png"))


def _models(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(row["settings"]["model"] for row in rows))


def found(rows: list[dict], model: str, batch: int, context: int) -> dict | None:
    """The measured values of a step, with states in bf16."""
    wanted = {"model": model, "batch": batch, "context": context, "state": "bf16"}
    for row in rows:
        if wanted.items() <= row["settings"].items() and row["values"]["fits"]:
            return row["values"]
    return None


def fitted(rows: list[dict], model: str) -> Line | None:
    """The line through a model's measured steps."""
    own = [
        (row["settings"]["batch"], row["settings"]["context"], row["values"]["seconds"])
        for row in rows
        if row["settings"]["model"] == model
        and row["settings"]["state"] == "bf16"
        and row["values"]["fits"]
    ]
    return line(own)


def predicted(rows: list[dict], lines: dict[str, Line]) -> list[dict[str, Any]]:
    """Steps that did not fit, by their model's line: kept apart from the rows."""
    told = []
    for row in rows:
        own = row["settings"]
        model, batch, context = own["model"], own["batch"], own["context"]
        # the lines are of states in bf16
        if row["values"]["fits"] or own["state"] != "bf16" or model not in lines:
            continue
        seconds = lines[model].seconds(batch, context)
        at = {"model": model, "batch": batch, "context": context}
        told.append(at | {"seconds": seconds, "tokens_per_second": batch / seconds})
    return told


def speedups(rows: list[dict], lines: dict[str, Line], fast: str, base: str) -> dict:
    """How many times faster, measured where both fit and predicted elsewhere."""
    places = sorted({(r["settings"]["batch"], r["settings"]["context"]) for r in rows})
    measured, beyond = [], []
    for batch, context in places:
        one, other = (found(rows, name, batch, context) for name in (fast, base))
        at = {"batch": batch, "context": context}
        if one and other:
            ends = (other["low"] / one["high"], other["high"] / one["low"])
            times = other["seconds"] / one["seconds"]
            measured.append(at | {"times": times, "low": ends[0], "high": ends[1]})
        elif fast in lines and base in lines:
            seconds = [lines[name].seconds(batch, context) for name in (base, fast)]
            beyond.append(at | {"times": seconds[0] / seconds[1]})
    return {"measured": measured, "predicted": beyond}


def figures(
    rows: list[dict], lines: dict[str, Line], cards: list[str]
) -> dict[str, Any]:
    """What paper.toml's row is compared with; of shapes for a CPU there is none.

    Its interval holds the replays' times only. `cards`: names of what it ran on.
    """
    full = [row for row in rows if not row["settings"]["tiny"]]
    made = {}
    for base, name, keys in (
        (BASE, "hybrids.generation_speed", 8),
        ("transformer, 32 heads of keys", "hybrids.generation_speed.32_heads_of_keys",
         32),
    ):  # fmt: skip
        told = speedups(full, lines, FAST, base)
        if not told["measured"]:
            continue
        best = max(told["measured"], key=lambda one: one["times"])
        note = f"measured: batch {best['batch']}, context {best['context']:,}, "
        note += f"{keys} heads of keys, {' and '.join(dict.fromkeys(cards))}"
        if told["predicted"]:
            most = max(told["predicted"], key=lambda one: one["times"])
            note += f"; predicted beyond the card: {most['times']:.2f} at batch "
            note += f"{most['batch']}, context {most['context']:,}"
        replays = full[0]["settings"]["replays"]
        made[name] = figure(
            best["times"], "times", replays, best["low"], best["high"], note
        )
    return made


def page(content: dict[str, Any], lines: dict[str, Line]) -> str:
    """generation.md."""
    rows = content["rows"]
    models = _models(rows)
    told = [
        "# Generation of the 8B shapes by context",
        "",
        f"`{content['command']}`",
        "",
        "Milliseconds of one step, a token a sequence, random weights and caches in "
        "bf16; in brackets the share of the card's copy rate at which a step moves "
        "what it has to. `~`: does not fit, predicted by the model's line. Attention "
        "is done by the fastest of torch's kernels for its sizes.",
        "",
    ]
    told += machines(content, content["rows"])
    if any(row["settings"]["tiny"] for row in rows):
        told += ["", "**Small shapes for a CPU: no figures.**"]
    places = sorted({(r["settings"]["batch"], r["settings"]["context"]) for r in rows})
    told += ["", "| batch | context | " + " | ".join(models) + " | hybrid, times |"]
    told += ["|---|---|" + "---|" * (len(models) + 1)]
    for batch, context in places:
        cells = [_cell(rows, lines, model, batch, context) for model in models]
        here = [row for row in rows if row["settings"]["context"] == context]
        here = [row for row in here if row["settings"]["batch"] == batch]
        both = speedups(here, lines, FAST, BASE)
        times = [f"{one['times']:.2f}" for one in both["measured"]]
        times += [f"~{one['times']:.2f}" for one in both["predicted"]]
        cells.append(times[0] if times else "-")
        told.append(f"| {batch} | {context:,} | " + " | ".join(cells) + " |")
    if lines:
        told += ["", "Lines, ms = start + batch (sequence + context token / 1000):", ""]
        told += ["| model | start | sequence | token / 1000 | worst error |"]
        told += ["|---|---|---|---|---|"]
    for model, one in lines.items():
        cells = [number(1e3 * one.start), number(1e3 * one.sequence)]
        cells += [number(1e6 * one.token), f"{100 * one.worst:.1f} %"]
        told.append(f"| {model} | " + " | ".join(cells) + " |")
    told += _wide_states(rows)
    return "\n".join(told) + "\n"


def _cell(
    rows: list[dict], lines: dict[str, Line], model: str, batch: int, context: int
) -> str:
    one = found(rows, model, batch, context)
    if one is not None:
        share = one["share_of_copy_rate"]
        shown = f" ({100 * share:.0f} %)" if share is not None else ""
        eager = "" if one["graph"] else ", no graph"
        return f"{1000 * one['seconds']:.2f}{shown}{eager}"
    if model in lines:
        return f"~{1000 * lines[model].seconds(batch, context):.1f}"
    return "-"


def _wide_states(rows: list[dict]) -> list[str]:
    """What states in fp32 cost."""
    told = []
    for row in rows:
        own = row["settings"]
        if own["state"] == "fp32" and row["values"]["fits"]:
            narrow = found(rows, own["model"], own["batch"], own["context"])
            if narrow:
                times = row["values"]["seconds"] / narrow["seconds"]
                told.append(f"| {own['model']} | {own['batch']} | {own['context']:,} | "
                            f"{times:.3f} |")  # fmt: skip
    if not told:
        return []
    head = ["", "States in fp32, times the seconds with bf16:", ""]
    head += ["| model | batch | context | times |", "|---|---|---|---|"]
    return [*head, *told]


def draw(rows: list[dict], lines: dict[str, Line], path: Path) -> None:
    """Tokens a second against context, a panel a batch; predictions dashed."""
    # a batch that fits nowhere, with no line to predict it, has no panel
    batches = sorted(
        {r["settings"]["batch"] for r in rows if r["values"]["fits"] or lines}
    )
    contexts = sorted({row["settings"]["context"] for row in rows})
    made, axes = pyplot().subplots(
        1, len(batches), figsize=(4.2 * len(batches), 4), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axis, batch in zip(axes[0], batches, strict=True):
        for i, model in enumerate(_models(rows)):
            each = [found(rows, model, batch, context) for context in contexts]
            y = [one["tokens_per_second"] if one else np.nan for one in each]
            axis.plot(contexts, y, "o-", color=f"C{i}", markersize=4, label=model)
            if model in lines:
                told = [batch / lines[model].seconds(batch, c) for c in contexts]
                axis.plot(contexts, told, "--", color=f"C{i}", linewidth=0.9)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_title(f"batch {batch}", fontsize=10)
        axis.set_xlabel("tokens of context (dashed: the line)")
    axes[0][0].set_ylabel("tokens a second")
    axes[0][0].legend(fontsize=7)
    save(made, path)
