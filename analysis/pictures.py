"""Pictures of the studies that ran on a GPU, from their result files.

    python -m analysis.pictures

Draws analysis/results/{faults,known_defects,kernel_constants,speed,cross_check,
first_answer}.png again; each study draws its own when it ends.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies.picture import pyplot, save
from studies.study import Study

from . import _cross_page, _first_answer_page
from ._speed_page import GOALS


RESULTS = Path(__file__).parent / "results"
STUDY = Study(
    "analysis.pictures", "seconds", RESULTS, ("matplotlib",), more="the result files"
)
_UNITS = {"seconds": "s", "cpu_seconds": "CPU s"}
_KINDS = (
    "matrix products fp64",
    "scan kernel",
    "elementwise and reductions",
    "matrix products, other",
    "copies",
)


def faults(result: dict, path: Path) -> None:
    """Every fault's share of elements above their bounds; right runs have none."""
    lines = result["faults"]
    groups = list(dict.fromkeys((line["model"], line["mode"]) for line in lines))
    figure, axis = pyplot().subplots(
        figsize=(9, 1.2 + 0.19 * len(lines)), layout="constrained"
    )
    for at, line in enumerate(lines):
        color = f"C{groups.index((line['model'], line['mode']))}"
        share = line["violations"] / line["elements"]
        if share:
            axis.barh(at, share, color=color)
        else:
            axis.plot(2e-7, at, "o" if line["right"] else "x", color=color)
    for i, (model, mode) in enumerate(groups):
        axis.barh(0, 0, color=f"C{i}", label=f"{model}, {mode}")
    axis.plot([], [], "ko", label="right, not accused")
    axis.plot([], [], "kx", label="fault, not caught")
    axis.set_yticks(range(len(lines)), [line["fault"] for line in lines], fontsize=7)
    axis.set_ylim(len(lines) - 0.3, -0.7)
    axis.set_xscale("log")
    axis.set_xlim(1e-7, 1)
    axis.set_xlabel("share of elements above their bounds")
    _legend(axis)
    save(figure, path)


def known_defects(result: dict, path: Path) -> None:
    """How far each case moves the logits, as measured and as predicted."""
    rows = [row for row in result["rows"] if "refused" not in row]
    if not rows:
        return
    figure, axis = pyplot().subplots(
        figsize=(8, 1.2 + 0.25 * len(rows)), layout="constrained"
    )
    for at, row in enumerate(rows):
        color = "C3" if row["violations"] else "C0"
        axis.plot(row["rel_l2"], at, "o", color=color)
        if row["sigma_t3"] is not None:
            axis.plot(row["sigma_t3"], at, "x", color="black")
    axis.plot([], [], "o", color="C0", label="measured, within all bounds")
    axis.plot([], [], "o", color="C3", label="measured, above bounds")
    axis.plot([], [], "x", color="black", label="predicted of rounding")
    axis.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("distance of the logits, relative L2")
    _legend(axis)
    save(figure, path)


def kernel_constants(document: dict, path: Path) -> None:
    """Errors over what is declared: of functions, and of sums by their length."""
    figure, (left, right) = pyplot().subplots(
        1, 2, figsize=(12, 5.6), layout="constrained"
    )
    held = {
        name: float(one["figures"]["ratio"]["largest"])
        for name, one in document["functions"].items()
        if one.get("sets") and "figures" in one
    }
    left.barh(range(len(held)), list(held.values()), color="C0")
    left.axvline(1, color="black", linewidth=0.8)
    left.set_yticks(range(len(held)), list(held), fontsize=8)
    left.invert_yaxis()
    left.set_xlabel("largest error over its bound, all fp32 arguments")
    lines: dict[tuple[str, str], list[dict]] = {}
    for row in (one for one in document["products"] if "ratio" in one):
        lines.setdefault((row["program"], row["format"]), []).append(row)
    formats = list(dict.fromkeys(name for _, name in lines))
    for (program, name), rows in lines.items():
        right.plot(
            [row["terms"] for row in rows],
            [row["ratio"] for row in rows],
            "o-" if program == "cublas" else "^--",
            color=f"C{formats.index(name)}",
            markersize=4,
            label=f"{program}, {name}",
        )
    right.axhline(1, color="black", linewidth=0.8)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xlabel("terms of a sum in a matrix product")
    right.set_ylabel("accumulator's unit needed over declared")
    _legend(right)
    save(figure, path)


def speed(result: dict, path: Path) -> None:
    """Where the time of T0 and T1 goes, in forwards of mamba_ssm."""
    forward = result.get("mamba_ssm", {}).get("whole, s")
    bounds = result.get("bounds", {})
    if not forward or not bounds:
        return
    figure, axis = pyplot().subplots(figsize=(9, 3.2), layout="constrained")
    names = []
    for precision, row in bounds.items():
        left = 0.0
        for tier, shade in (("T0", ""), ("T1", "///")):
            kinds = row.get(f"{tier} ms by kernel", {}).get("kinds", {})
            for i, kind in enumerate(_KINDS):
                width = kinds.get(kind, 0.0) / 1e3 / forward
                axis.barh(len(names), width, left=left, color=f"C{i}", hatch=shade)
                left += width
        axis.plot(row["T0 and T1 s"] / forward, len(names), "kD", markersize=6)
        names.append(precision)
    for i, kind in enumerate(_KINDS):
        axis.barh(0, 0, color=f"C{i}", label=kind)
    axis.barh(
        0,
        0,
        color="white",
        edgecolor="black",
        hatch="///",
        label="of T1, the others of T0",
    )
    axis.plot([], [], "kD", label="whole, by the clock")
    for goal in GOALS:
        axis.axvline(goal, color="black", linestyle=":", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("T0 and T1 in forwards of mamba_ssm in fp32 (dotted: the goals)")
    _legend(axis)
    save(figure, path)


def _legend(axis: Any) -> None:
    """Under the axis, where it covers nothing."""
    figure = axis.get_figure()
    entries = axis.get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=4, fontsize=7)


def cross_check(result: dict, path: Path) -> None:
    """Prediction against measurement, T1 by format, growth along a sequence."""
    _cross_page.draw(result["rows"], path)


def first_answer(result: dict, path: Path) -> None:
    """How long each row takes cold and warm, beside its goals."""
    lines = [
        (entry, kind, one)
        for entry in result["rows"]
        for kind in ("cold", "warm")
        if (one := _first_answer_page.best(entry, kind)) is not None
    ]
    figure, axis = pyplot().subplots(
        figsize=(8, 1.2 + 0.25 * len(lines)), layout="constrained"
    )
    for at, (entry, kind, one) in enumerate(lines):
        name, unit = _first_answer_page.key(entry), _first_answer_page.counted(entry)
        axis.barh(at, one[unit], color="C0" if kind == "cold" else "C1")
        goal = _first_answer_page.GOALS.get(name)
        if goal is not None:
            axis.plot(goal[1 + (kind == "warm")], at, "k|", markersize=12)
        before = _first_answer_page.BEFORE.get(name, (None, None))[kind == "warm"]
        if before is not None:
            axis.plot(before, at, "x", color="C3")
    for label, form in (("cold", "C0"), ("warm", "C1")):
        axis.barh(0, 0, color=form, label=label)
    axis.plot([], [], "k|", markersize=12, label="goal")
    axis.plot([], [], "x", color="C3", label="before")
    names = [
        f"{_first_answer_page.key(entry)}, {_UNITS[_first_answer_page.counted(entry)]}"
        for entry, *_ in lines
    ]
    axis.set_yticks(range(len(lines)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    told = [1, 2, 5, 10, 20, 50, 100, 200]
    axis.set_xticks(told, map(str, told))
    axis.set_xticks([], minor=True)
    axis.set_xlim(left=1)
    axis.grid(axis="x", linewidth=0.3)
    axis.set_axisbelow(True)
    axis.set_xlabel("seconds, or CPU seconds")
    _legend(axis)
    save(figure, path)


STUDIES: tuple[Callable[[dict, Path], None], ...] = (
    faults,
    known_defects,
    kernel_constants,
    speed,
    cross_check,
    first_answer,
)


def main(given: list[str] | None = None) -> None:
    """Draw those whose result files are there."""
    parser = STUDY.parser(__doc__, "--folder")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the files to draw"
    )
    options = parser.parse_args(given)
    STUDY.begin(options.out / "pictures")
    for study in STUDIES:
        file = options.results / f"{study.__name__}.json"
        if file.exists():
            picture = options.out / f"{study.__name__}.png"
            study(json.loads(file.read_text()), picture)
            print(picture)


if __name__ == "__main__":
    main()
