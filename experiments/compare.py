"""Published, ours, difference and verdict for every row of paper.toml.

`python -m experiments.compare` reads `figures` of the files in experiments/results,
prints a table and writes compare.md and .json, with a picture. What a verdict
needs is in paper.toml, fixed before there were results: a row agrees or it doesn't.

Verdicts: `agrees` (the published value is within our 95 % interval, or the claim is
outside it on the right side), `disagrees`, `not told apart` (a claim on whose both
sides our interval lies), `no interval` (one run: nothing can be said), `not run`, and
`needs the Hub`. Sizes and data are not the papers': a verdict is of the claim at ours.
"""

import json
import math
import tomllib
from pathlib import Path
from typing import Any

from experiments.results import FOLDER
from studies.files import write
from studies.picture import pyplot, save
from studies.study import Study


PAPER = Path(__file__).parent / "paper.toml"
MODELS = Path(__file__).parent / "models"
STUDY = Study(
    "experiments.compare",
    "seconds",
    FOLDER / "compare.json",
    ("matplotlib",),
    more="the result files",
)
SURE = ("certain", "second-hand", "recalled")
HOLD = ("interval", "above", "below", "hub")
_NEEDED = {"key", "paper", "claim", "unit", "where", "sure", "hold", "source"}
_NEEDED |= {"command"}
_OPTIONAL = {"value", "than"}


def read(path: Path = PAPER) -> dict[str, Any]:
    """paper.toml, checked."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    seen = set()
    for row in content["row"]:
        problem = _problem(row, content["papers"])
        if row.get("key") in seen:
            problem = "is there twice"
        if problem:
            raise SystemExit(f"error: {path.name}: row {row.get('key')!r} {problem}")
        seen.add(row["key"])
    return content


def _problem(row: dict[str, Any], papers: dict[str, Any]) -> str:
    if lost := _NEEDED - row.keys():
        return f"has no {', '.join(sorted(lost))}"
    if odd := row.keys() - _NEEDED - _OPTIONAL:
        return f"has {', '.join(sorted(odd))}"
    if row["sure"] not in SURE:
        return f"is sure {row['sure']!r}, not {', '.join(SURE)}"
    if row["hold"] not in HOLD:
        return f"holds {row['hold']!r}, not {', '.join(HOLD)}"
    if row["paper"] not in papers:
        return f"is of {row['paper']!r}, which is not in [papers]"
    wants = "than" if row["hold"] in ("above", "below") else "value"
    return "" if wants in row else f"has no {wants}"


def collect(folder: Path) -> dict[str, dict[str, Any]]:
    """All figures of a folder's result files by key, each with its file.

    **Raises:**

    SystemExit if two files have a figure of the same key.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text())
        if file.name == "compare.json" or not isinstance(content, dict):
            continue
        for key, figure in content.get("figures", {}).items():
            if key in found:
                raise SystemExit(
                    f"error: {key} is in {found[key]['file']} and in {file.name}\n"
                    "hint: one experiment finds a figure"
                )
            found[key] = {**figure, "file": file.name}
    return found


def judge(row: dict[str, Any], ours: dict[str, Any] | None) -> dict[str, Any]:
    """One line of the comparison."""
    line = dict(row) | {"ours": None, "difference": None}
    if row["hold"] == "hub" and _empty(ours):
        return line | {"verdict": "needs the Hub"}
    if ours is None or _empty(ours):
        return line | {"verdict": "not run"}
    if ours["unit"] != row["unit"]:
        raise SystemExit(
            f"error: {row['key']} is published in {row['unit']!r}, "
            f"{ours['file']} has {ours['unit']!r}"
        )
    line["ours"] = ours
    against = row.get("value", row.get("than"))
    line["difference"] = ours["value"] - against
    return line | {"verdict": _verdict(row, ours)}


def _empty(ours: dict[str, Any] | None) -> bool:
    return ours is None or ours["value"] is None


def _verdict(row: dict[str, Any], ours: dict[str, Any]) -> str:
    low, high = ours.get("low"), ours.get("high")
    if low is None or high is None:
        return "no interval"
    if row["hold"] in ("interval", "hub"):
        return "agrees" if low <= row["value"] <= high else "disagrees"
    # "0 at most" and "more than 0": an end on the line itself is on the claim's side
    # of "below" only
    than = row["than"]
    if row["hold"] == "below":
        low, high, than = -high, -low, -than
        if low >= than:
            return "agrees"
    elif low > than:
        return "agrees"
    return "disagrees" if high < than else "not told apart"


def compare(folder: Path, paper: Path = PAPER) -> dict[str, Any]:
    """Every row of paper.toml with what the result files have."""
    content = read(paper)
    figures = collect(folder)
    lines = [judge(row, figures.get(row["key"])) for row in content["row"]]
    known = {row["key"] for row in content["row"]}
    more = {key: one for key, one in figures.items() if key not in known}
    return {
        "papers": content["papers"],
        "rows": lines,
        "beside": more,
        "models": trained(),
    }


def trained(folder: Path = MODELS) -> list[dict[str, Any]]:
    """The networks that ours are of: sizes and held-out scores, as trained."""
    found = []
    for file in sorted(folder.glob("*/training.json")):
        told = json.loads(file.read_text())
        tasks = told["held_out_tasks"].items()
        found.append(
            {
                "model": file.parent.name,
                "parameters": told["parameters"]["without_embedding"],
                "bits_per_byte": told["held_out_bits_per_byte"],
                "tasks": {name: one["accuracy"] for name, one in tasks},
                "command": told["training"]["command"],
            }
        )
    return found


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.3g}"


def _ours(ours: dict[str, Any] | None) -> str:
    if ours is None:
        return "-"
    shown = number(ours["value"])
    if ours.get("low") is not None and ours.get("high") is not None:
        shown += f" ({number(ours['low'])} to {number(ours['high'])})"
    return f"{shown}, n = {ours['n']}"


def _published(row: dict[str, Any]) -> str:
    if "value" in row:
        return number(row["value"])
    return f"{row['hold']} {number(row['than'])}"


def page(result: dict[str, Any]) -> str:
    """compare.md."""
    lines = [
        "# The papers' figures and ours",
        "",
        "`python -m experiments.compare`. Ours with 95 % intervals; n: runs behind "
        "them. Models, data and sizes are not the papers'; how each differs is in the "
        "experiments' own pages. How sure a published figure is: certain (read in the "
        "paper's abstract or the authors' files), second-hand (in others' notes), "
        "recalled.",
    ]
    for name, paper in result["papers"].items():
        rows = [row for row in result["rows"] if row["paper"] == name]
        lines += ["", f"## {paper['title']} (arXiv:{paper['arxiv']})", ""]
        lines += [
            "| claim | published | unit | sure | ours | difference | verdict |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            shown = [
                row["claim"], _published(row), row["unit"], row["sure"],
                _ours(row["ours"]), number(row["difference"]), row["verdict"],
            ]  # fmt: skip
            lines.append("| " + " | ".join(shown) + " |")
        missing = [r for r in rows if r["verdict"] in ("needs the Hub", "not run")]
        if missing:
            lines += ["", "To be had with:", ""]
            lines += [f"- {row['key']}: `{row['command']}`" for row in missing]
    lines += _models(result["models"])
    notes = dict.fromkeys(
        row["ours"]["note"]
        for row in result["rows"]
        if row["ours"] and row["ours"].get("note")
    )
    if notes:
        lines += ["", "How ours differ:", "", *[f"- {note}" for note in notes]]
    if result["beside"]:
        lines += ["", "## Beside them", "", "| figure | ours | unit |", "|---|---|---|"]
        for key, one in result["beside"].items():
            lines.append(f"| {key} | {_ours(one)} | {one['unit']} |")
    return "\n".join(lines) + "\n"


def _models(models: list[dict[str, Any]]) -> list[str]:
    if not models:
        return []
    tasks = list(models[0]["tasks"])
    lines = [
        "",
        "## The trained models",
        "",
        "Byte models on the same batches; parameters without the embedding, held-out "
        "bits per byte of text, held-out accuracy of the tasks, %.",
        "",
        "| model | parameters | bits per byte | " + " | ".join(tasks) + " |",
        "|---|---|---|" + "---|" * len(tasks),
    ]
    for one in models:
        shares = [f"{100 * one['tasks'][task]:.1f}" for task in tasks]
        shown = [one["model"], f"{one['parameters']:,}", f"{one['bits_per_byte']:.4f}"]
        lines.append(f"| {' | '.join([*shown, *shares])} |")
    lines += ["", "Made by:", ""]
    return [*lines, *[f"- {one['model']}: `{one['command']}`" for one in models]]


def table(result: dict[str, Any]) -> str:
    """What is printed: a line a row, and the models that ours are of."""
    rows = [
        [row["key"], _published(row), _ours(row["ours"]), number(row["difference"]),
         row["unit"], row["sure"], row["verdict"]]
        for row in result["rows"]
    ]  # fmt: skip
    names = ["figure", "published", "ours", "difference", "unit", "sure", "verdict"]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in [names, *rows]
    ]
    told = ", ".join(f"{m['model']} {m['bits_per_byte']:.3f}" for m in result["models"])
    return "\n".join([*lines, "", f"held-out bits per byte: {told or 'no models'}"])


def draw(result: dict[str, Any], path: Path) -> None:
    """Ours over published, where both are numbers, with intervals."""
    rows = [r for r in result["rows"] if r["ours"] and r.get("value")]
    if not rows:
        return
    made, axis = pyplot().subplots(
        figsize=(8, 1 + 0.35 * len(rows)), layout="constrained"
    )
    for at, row in enumerate(rows):
        ours, published = row["ours"], row["value"]
        ends = [ours.get("low"), ours.get("high")]
        if None not in ends:
            axis.plot([end / published for end in ends], [at, at], color="C0")
        axis.plot(ours["value"] / published, at, "o", color="C0")
    axis.axvline(1, color="black", linewidth=0.8)
    # logarithmic beyond a tenth: a hundred times and nothing at all are both there
    axis.set_xscale("symlog", linthresh=0.1)
    ticks = [0, 0.1, 0.3, 1, 3, 10, 30, 100]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xlim(left=-0.02)
    axis.minorticks_off()
    axis.set_yticks(range(len(rows)), [row["key"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("ours / published")
    save(made, path)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = STUDY.parser("Compare published figures with those of the result files.")
    parser.add_argument("--results", type=Path, default=FOLDER, help="their folder")
    options = parser.parse_args(arguments)
    STUDY.begin(options.out)
    result = compare(options.results)
    print(table(result))
    write(options.out.with_suffix(".md"), page(result))
    kept = {"command": "python -m experiments.compare", **result}
    write(options.out, json.dumps(kept, indent=1) + "\n")
    draw(result, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
