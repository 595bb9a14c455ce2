"""What the constants measured on an H200 do to the bounds, beside the documented ones.

    python -m analysis.measured_constants

Documents promise constants of every GPU (PTX: tanh.approx within 2^-11); on one card
all 2^32 floats gave smaller ones (`analysis.kernel_constants`,
`lyapunov-check --constants measured`). The trained networks are emulated under both, on
the texts of `analysis.cross_check`; what was captured on the card (`analysis.capture`)
is held to both, too. Needs no GPU. Writes measured_constants.json, .md and
.png, and goes on with what is missing.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from studies.files import write
from studies.picture import pyplot, save
from studies.study import Study

from ._cross_cases import PLAIN, Case, source, tokens
from .capture import FOLDER, held


STUDY = Study(
    "analysis.measured_constants",
    "20 minutes; it goes on where it ended",
    Path(__file__).parent / "results" / "measured_constants.json",
    ("matplotlib",),
)
CONSTANTS = ("documented", "measured")
CASES = tuple(
    Case(model, "prefill", 1, length, PLAIN)
    for model, length in (
        ("bundled", 512),
        ("mamba1", 512),
        ("mamba2", 512),
        ("mamba3", 512),
        ("mamba3", 2049),
        ("mamba3", 8192),
    )
)


def emulated(case: Case, constants: str) -> list[dict[str, Any]]:
    """A row a precision."""
    import lyapunov

    model = lyapunov.load(source(case.model, Path()))
    began = time.perf_counter()
    report = lyapunov.check(
        model,
        tokens(model, case),
        precisions=list(case.precisions),
        constants=constants,
        growth=False,
        probes=0,
    )
    spent = time.perf_counter() - began
    return [
        {
            "what": f"{case.model}, {case.length} tokens",
            "precision": one.precision,
            "constants": constants,
            "measured_by": one.measured_by,
            "t1_ratios": [layer.bound_t1_ratio for layer in one.layers],
            "violations": one.count("violations"),
            "elements": one.count("elements_bounded"),
            "unbounded": one.count("elements_unbounded"),
            "seconds": round(spent / len(case.precisions), 1),
        }
        for one in report.precisions
    ]


def captured(path: Path, constants: str) -> dict[str, Any]:
    """A row of what a card did."""
    run = held(path, constants)
    every = [*run.record.stored.values(), run.record.output]
    return {
        "what": f"captured: {run.about['model']}, {run.about['mode']}",
        "precision": run.about["precision"],
        "constants": constants,
        "measured_by": run.about["measure"],
        "gpu": run.about["gpu"],
        "t1_ratios": [run.t1_ratio],
        "violations": run.violations,
        "elements": sum(int(array.size) for array in every) - run.unbounded,
        "unbounded": run.unbounded,
    }


def paired(rows: list[dict]) -> list[tuple[dict, dict]]:
    """Rows of the same run, under documented and under measured constants."""
    key = lambda row: (row["what"], row["precision"])
    under = {name: {key(r): r for r in rows if r["constants"] == name}
             for name in CONSTANTS}  # fmt: skip
    both = under["documented"].keys() & under["measured"].keys()
    order = dict.fromkeys(key(row) for row in rows)
    return [(under["documented"][k], under["measured"][k]) for k in order if k in both]


def span(row: dict) -> str:
    """The smallest and the largest ratio."""
    low, high = min(row["t1_ratios"]), max(row["t1_ratios"])
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def page(result: dict) -> str:
    """The Markdown file."""
    lines = [
        "# Bounds with constants measured on a card",
        "",
        ", ".join(f"{k} {v}" for k, v in result["environment"].items()),
        "",
        f"`{result['command']}`. T1 over the measured error, all layers, with constants"
        " that documents promise of every GPU, and with those that all fp32 arguments"
        " gave on an H200 (`--constants measured`), which hold for that card alone.",
        "",
        "| run | by | format | documented | measured | violations | of |",
        "|---|---|---|---|---|---|---|",
    ]
    for one, other in paired(result["rows"]):
        bad = one["violations"] + other["violations"]
        cells = [one["what"], one["measured_by"], one["precision"], span(one)]
        cells += [span(other), str(bad), f"{one['elements'] + other['elements']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(result: dict, path: Path) -> None:
    """Both spans of every run, one above the other."""
    pairs = paired(result["rows"])
    figure, axis = pyplot().subplots(
        figsize=(8.5, 1.4 + 0.27 * len(pairs)), layout="constrained"
    )
    for at, both in enumerate(pairs):
        for i, row in enumerate(both):
            y = at + 0.2 * (i - 0.5)
            ends = [min(row["t1_ratios"]), max(row["t1_ratios"])]
            axis.plot(ends, [y, y], "o-", color=f"C{i}", markersize=3, linewidth=2)
    for i, name in enumerate(CONSTANTS):
        axis.plot([], [], "o-", color=f"C{i}", label=name)
    names = [f"{one['what']}, {one['precision']}" for one, _ in pairs]
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel("T1 / measured error, all layers")
    axis.legend(title="constants", fontsize=8, loc="upper right")
    save(figure, path)


def environment() -> dict[str, str]:
    """What ran here; what the constants were measured on."""
    import platform

    import jax

    from lyapunov.implementations import read_measured

    content = read_measured() or {}
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": "cpu",
        "constants of": content.get("about", "none"),
    }


def main(given: list[str] | None = None) -> None:
    """The command."""
    parser = STUDY.parser(__doc__, "--results")
    parser.add_argument("--only", nargs="*", default=[], help="parts of runs' names")
    options = parser.parse_args(given)
    STUDY.begin(options.out)
    import jax

    jax.config.update("jax_enable_x64", True)
    rows: list[dict] = []
    if options.out.exists():
        rows = json.loads(options.out.read_text())["rows"]

    def keep(found: list[dict]) -> None:
        rows.extend(found)
        result = {
            "command": "python -m analysis.measured_constants",
            "environment": environment(),
            "rows": rows,
        }
        write(options.out, json.dumps(result, indent=1) + "\n")
        write(options.out.with_suffix(".md"), page(result))
        if paired(rows):
            draw(result, options.out.with_suffix(".png"))
        for row in found:
            shown = f"{row['what']}, {row['precision']}, {row['constants']}"
            print(f"{shown}: {span(row)}, {row['violations']} violations",
                  file=sys.stderr)  # fmt: skip

    def missing(what: str, precision: str, constants: str) -> bool:
        wanted = (what, precision, constants)
        done = any((r["what"], r["precision"], r["constants"]) == wanted for r in rows)
        return not done and all(part in what for part in options.only)

    for path in sorted(FOLDER.glob("*.npz")):
        model, mode, precision = path.stem.split("-")
        for constants in CONSTANTS:
            if missing(f"captured: {model}, {mode}", precision, constants):
                keep([captured(path, constants)])
    for case in CASES:
        for constants in CONSTANTS:
            what = f"{case.model}, {case.length} tokens"
            lost = tuple(p for p in case.precisions if missing(what, p, constants))
            if lost:
                keep(emulated(case._replace(precisions=lost), constants))


if __name__ == "__main__":
    main()
