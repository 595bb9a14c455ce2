"""Tables and picture of the study of served states."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from studies.picture import pyplot, save

from ._rows_apart import short
from ._served_cases import MODELS, RING


TITLES = {
    "mamba2": "Mamba-2",
    "hybrid": "Mamba-2 with one attention and MLPs",
    "mamba1": "Mamba-1",
}
COLOURS = {"mamba2": "#2b6ca3", "hybrid": "#c8691c", "mamba1": "#3d8b52"}
MARKS = {1: "o", 4: "s", RING: "^"}
HEADS = (
    "server and flags",
    "state",
    "stored every",
    "KL",
    "above an fp32 state",
    "top tokens changed",
    "rel L2",
    "T3's sigma",
    "z",
    "the state's own rel L2",
    "its share",
    "KiB a sequence",
)


def mean_and_error(values: Any) -> tuple[float, float]:
    """Mean over texts, and its standard error."""
    values = np.asarray(values)
    return float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5


def above_wide(row: dict, rows: list[dict]) -> tuple[float, float] | None:
    """KL above that of the same server with an fp32 state: mean and error, by texts."""
    if row["state"] == "fp32" or row["kl_mean"] is None:
        return None
    key = row["model"], row["stack"], row["period"], "fp32", ""
    (wide,) = (
        one
        for one in rows
        if key == tuple(one[n] for n in ("model", "stack", "period", "state", "more"))
    )
    return mean_and_error(np.subtract(row["kl_by_text"], wide["kl_by_text"]))


def with_error(pair: tuple[float, float] | None) -> str:
    """Both in units of 1e-6."""
    return "–" if pair is None else f"{1e6 * pair[0]:.1f} ± {1e6 * pair[1]:.1f}"


def _cells(row: dict, rows: list[dict]) -> list[str]:
    flags = f"{row['stack']} {row['flags']}".strip()
    found = row["kl_mean"] is not None
    sigma = "withheld" if row["withheld"] else short(row["predicted_rel_l2"])
    return [
        flags + ("" if row["reached"] else " (no flag leads to this state)"),
        row["kept"],
        str(row["period"]),
        with_error(mean_and_error(row["kl_by_text"])) if found else "not finite",
        with_error(above_wide(row, rows)),
        f"{row['flips'] + row['ties']} of {row['tokens']}" if found else "–",
        short(row["rel_l2"]),
        sigma,
        short(row["calibration_z"]),
        short(row["alone"]["rel_l2"]),
        f"{100 * row['share']:.1f} %",
        f"{row['state_bytes'] / 1024:.0f}",
    ]


def page(result: dict[str, Any]) -> str:
    """All rows as Markdown."""
    lines = ["# The state as servers keep it", ""]
    lines += ["![States by format and period](served_states.png)", ""]
    lines += ["KL is in 1e-6 nats, with its standard error over texts.", ""]
    for model in MODELS:
        own = [row for row in result["rows"] if row["model"] == model]
        lines += [
            f"## {TITLES[model]}",
            "",
            *_table(HEADS, (_cells(r, own) for r in own)),
        ]
    lines += ["## Published shapes: error", ""]
    lines += [
        "State and outputs C h against fp64, 2049 tokens; of single heads the outputs.",
        "",
    ]
    heads = ("shape", "state", "stored every", "outputs, rel L2", "last state, rel L2")
    heads += ("median head", "worst head", "which remembers, tokens")
    lines += _table(heads, _of_shapes(result["shapes"]))
    lines += ["## Published shapes: cost of states", ""]
    heads = ("shape", "state", "stored every", "MB a sequence", "MB moved a token")
    lines += _table(heads, _of_costs(result["shapes"]))
    lines += ["## On vLLM's kernels", "", "The first text, 512 tokens.", ""]
    heads = ("case", "KL on the kernels, 1e-6", "emulated", "their distance, z")
    heads += ("rel L2 on the kernels", "emulated")
    lines += _table(heads, _of_kernels(result["kernels"]))
    return "\n".join(lines)


def _of_shapes(shapes: list[dict]) -> Iterator[list[str]]:
    for shape in shapes:
        for row in shape["rows"]:
            worst = int(np.argmax(row["by_head"]))
            yield [
                shape["case"],
                row["state"],
                str(row["period"]),
                short(row["output_rel_l2"]),
                short(row["state_rel_l2"]),
                short(float(np.median(row["by_head"]))),
                short(row["by_head"][worst]),
                f"{shape['memories'][worst]:.0f}",
            ]


def _of_costs(shapes: list[dict]) -> Iterator[list[str]]:
    for shape in shapes:
        for row in shape["costs"]:
            yield [
                shape["case"],
                row["state"],
                str(row["period"]),
                f"{row['kept_bytes'] / 1e6:.1f}",
                f"{row['moved_bytes'] / 1e6:.1f}",
            ]


def _of_kernels(beside: list[dict]) -> Iterator[list[str]]:
    for row in beside:
        yield [
            row["case"],
            f"{1e6 * row['kernels_kl']:.1f}",
            f"{1e6 * row['emulated_kl']:.1f} ± {1e6 * row['kl_se']:.1f}",
            f"{row['z']:.1f}",
            short(row["kernels_rel_l2"]),
            short(row["emulated_rel_l2"]),
        ]


def _table(heads: tuple[str, ...], rows: Any) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def draw(result: dict[str, Any], path: Path) -> None:
    """What a state does by itself, by format and period; heads by their memory."""
    figure, (left, right) = pyplot().subplots(
        1, 2, figsize=(11, 4.4), layout="constrained"
    )
    _draw_alone(result["rows"], left)
    _draw_heads(result["shapes"][-1], right)
    save(figure, path)


def _draw_alone(rows: list[dict], axis: Any) -> None:
    known: dict[tuple, float] = {}
    for row in rows:
        if row["kept"] != "fp32" and row["alone"]["kl_mean"] is not None:
            known[row["model"], row["kept"], row["period"]] = row["alone"]["kl_mean"]
    states = list(dict.fromkeys(state for _, state, _ in known))
    states.sort(key=lambda s: max(v for (_, t, _), v in known.items() if s == t))
    for (model, state, period), value in known.items():
        place = states.index(state) + 0.2 * (MODELS.index(model) - 1)
        axis.plot(value, place, MARKS[period], color=COLOURS[model], ms=6)
    for model in MODELS:
        wide = [
            r["kl_mean"] for r in rows if (r["model"], r["state"]) == (model, "fp32")
        ]
        axis.axvline(np.mean(wide), color=COLOURS[model], lw=1, ls=":")
        axis.plot([], [], "o", color=COLOURS[model], label=TITLES[model])
    for period, mark in MARKS.items():
        told = "every token" if period == 1 else f"every {period} tokens"
        axis.plot([], [], mark, color="grey", label=told)
    axis.plot([], [], ":", color="grey", label="all else in bf16")
    axis.set_xscale("log")
    axis.set_yticks(range(len(states)), states, size=8)
    axis.set_xlabel("KL that the state makes by itself (nats a token)")
    axis.legend(fontsize=7, loc="lower right", framealpha=1.0)


def _draw_heads(shape: dict, axis: Any) -> None:
    wanted = (
        ("fp8_e4m3-scaled", 1, "#8c4a9e"),
        ("bf16", 1, "#c8691c"),
        ("bf16", RING, "#e8b48a"),
        ("fp16-stochastic", 1, "#3d8b52"),
        ("fp16", 1, "#2b6ca3"),
        ("fp16", RING, "#9dbfdd"),
    )
    for state, period, colour in wanted:
        (row,) = (
            r for r in shape["rows"] if (r["state"], r["period"]) == (state, period)
        )
        told = f"{state}, every {period}" if period > 1 else state
        axis.loglog(
            shape["memories"], row["by_head"], MARKS[period], color=colour, label=told
        )
    axis.set_xlabel("tokens that a head remembers (to 1/e)")
    axis.set_ylabel("error of its outputs (rel. L2)")
    axis.set_title(
        f"{shape['case']}, {len(shape['memories'])} heads of a layer at initialisation",
        size=9,
    )
    axis.legend(frameon=False, fontsize=7)
