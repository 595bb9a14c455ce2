"""The table of `analysis.first_answer`: goals, before, and after."""

from typing import Any


SECONDS, CPU_SECONDS = "seconds", "cpu_seconds"
GOALS = {
    "bundled standard cpu": (SECONDS, 15, 6),
    "bundled quick cpu": (SECONDS, 9, 4),
    "bundled standard gpu": (SECONDS, 12, 5),
    "mamba1-130m standard gpu": (SECONDS, 20, 6),
    "mamba2-130m standard gpu": (SECONDS, 20, 6),
    "mamba1-2.8b standard gpu": (SECONDS, 60, 30),
    "falcon-h1 standard cpu": (CPU_SECONDS, 30, 8),
    "audit cpu": (CPU_SECONDS, 45, 12),
    "mamba3 standard cpu": (CPU_SECONDS, 30, 8),
}
"""What is counted, and how much of it cold and warm is the goal."""
HEADER = (2.0, 2.0)
FIRST_ROW = (4.0, 2.0)
"""Seconds after loading."""
BEFORE = {
    "bundled standard cpu": (40.0, 9.9),
    "bundled full cpu": (50.0, 15.3),
    "bundled full gpu": (38.5, 9.5),
    "mamba1-130m full gpu": (68.4, 16.0),
    "mamba2-130m full gpu": (85.0, None),
    "mamba1-2.8b full gpu": (123.0, None),
    "mamba standard cpu": (53.7, 7.9),
    "falcon-h1 full cpu": (136.0, None),
    "audit cpu": (184.0, None),
    "mamba3 full cpu": (456.0, None),
}
"""At 0eeed5c, in what the goal counts (`mamba` in CPU seconds); Mamba-3 on busy cores,
2.8b with half of a cache. What was `standard` then had the floor, T2 and T4, which
`full` has now with more probes; the bundled model's on a CPU was measured without them
as well."""


def key(entry: dict[str, Any]) -> str:
    """Name a row by model, effort and device."""
    parts = entry["row"], entry["effort"], entry["device"]
    return " ".join(part for part in parts if part)


def counted(entry: dict[str, Any]) -> str:
    """What the row's goal counts."""
    of_cpu = entry["row"] in ("mamba", "mamba3", "audit", "falcon-h1")
    return GOALS.get(key(entry), (CPU_SECONDS if of_cpu else SECONDS,))[0]


def best(entry: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """The run of the least seconds, of those that gave an answer."""
    done = [one for one in entry[kind] if "failed" not in one]
    return min(done, key=lambda one: one["seconds"], default=None)


def page(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# How long a user waits",
        "",
        f"`{result['command']}`; cold is with an empty cache of what is compiled,",
        "warm with what that run left. Goals and before are in seconds, or in CPU",
        "seconds where that is said; the first row of exponents is counted from when",
        "the model is loaded. Before: 0eeed5c, whose default did what `full` does now.",
        "",
        "| row | counted | | goal | before | now | wall s | CPU s | programs | "
        "compiling s | header s | first row s | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in result["rows"]:
        for at, kind in enumerate(("cold", "warm")):
            lines.append(_line(entry, kind, at))
    lines += ["", "Made on:", ""]
    for name, about in result["environments"].items():
        told = ", ".join(f"{k} {v}" for k, v in about.items() if v is not None)
        lines.append(f"- {name}: {told}")
    return "\n".join([*lines, ""])


def _line(entry: dict[str, Any], kind: str, at: int) -> str:
    unit, name = counted(entry), key(entry)
    goal = GOALS[name][1:][at] if name in GOALS else None
    before = BEFORE.get(name, (None, None))[at]
    words = name if at == 0 else ""
    about = [words, unit.replace("cpu_seconds", "CPU s").replace("seconds", "s"), kind]
    one = best(entry, kind)
    if one is None:
        told = entry.get("failed", "not run").replace("\n", " ").replace("|", "/")
        shown = [*map(_shown, (goal, before)), told[:80], *[""] * 7]
        return f"| {' | '.join([*about, *shown])} |"
    row = one["first_row"]
    if row is not None and one["loaded"] is not None:
        row -= one["loaded"]
    figures = [goal, before, one[unit], one["seconds"], one["cpu_seconds"]]
    figures += [one["programs"], one["compile_seconds"], one["header"], row]
    memory = one["device_peak_gib"] or one["peak_gib"]
    return f"| {' | '.join([*about, *map(_shown, [*figures, memory])])} |"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
