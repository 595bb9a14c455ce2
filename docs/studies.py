"""Pages of results: every study's own text, its table, its pictures."""

import ast
import json
import re
from pathlib import Path

from docs.tables import ROOT, plain, table


def results() -> tuple[dict[str, str], dict[str, Path]]:
    """The studies of `analysis/results`: pages, and pictures by where they go."""
    return _section("analysis", "results", "Studies")


def experiments() -> tuple[dict[str, str], dict[str, Path]]:
    """The papers' experiments, in the same form."""
    return _section("experiments", "experiments", "The papers' experiments")


def _section(package: str, place: str, title: str):
    folder = ROOT / package / "results"
    pages, pictures, rows = {}, {}, []
    for result in sorted(folder.glob("*.json")):
        name = result.stem
        doc = ast.get_docstring(
            ast.parse((ROOT / package / f"{name}.py").read_text("utf-8"))
        )
        first, _, rest = (doc or "").partition("\n\n")
        first = " ".join(first.split())
        rows.append((f"[{name.replace('_', ' ')}]({name}.md)", plain(first)))
        parts = [
            f"# {name.replace('_', ' ').capitalize()}",
            plain(first),
            f"Made by `{_command(result, package)}`; all figures are in "
            f"`{package}/results/{result.name}` of the repository.",
        ]
        for picture in sorted(folder.glob(f"{name}.*")):
            if picture.suffix in (".png", ".svg"):
                pictures[f"{place}/{picture.name}"] = picture
                parts.append(f"![{plain(first)}]({picture.name})")
        written = folder / f"{name}.md"
        if written.exists():
            parts.append(_lowered(written.read_text("utf-8")))
        if rest.strip():
            parts.append(f"## How it is done\n\n{_as_markdown(rest)}")
        # tables are wide, and headings few
        pages[f"{place}/{name}.md"] = "---\nhide: [toc]\n---\n" + "\n\n".join(parts)
    pages[f"{place}/index.md"] = (
        f"# {title}\n\nEvery figure comes from a committed result file, which a "
        "command makes anew.\n\n" + table(("study", "asks"), rows)
    )
    return pages, pictures


def _command(result: Path, package: str) -> str:
    known = json.loads(result.read_text("utf-8"))
    said = known.get("command") if isinstance(known, dict) else None
    return said if isinstance(said, str) else f"python -m {package}.{result.stem}"


def _lowered(text: str) -> str:
    """A result's own page without its title, its headings one level lower at most."""
    text = re.sub(r"\A# .*\n", "", text)
    # pictures are shown above
    text = re.sub(r"^!\[.*?\]\(.*?\)\s*$", "", text, flags=re.M)
    cell = r"(?<=\| )(-?\d[^|\n]{0,24}?)(?= \|)"
    return re.sub(cell, r'<span class="number">\1</span>', text)


def _as_markdown(doc: str) -> str:
    return doc.replace("<", "&lt;")


def tried(family: str) -> str:
    """What `analysis.families` found of a family, a row a mode; empty where nothing."""
    known = json.loads((ROOT / "analysis/results/families.json").read_text())
    head, rows = (), []
    for row in known["rows"]:
        if row["family"].split()[0] != family:
            continue
        for kind, found in row["kinds"].items():
            ends = {
                form: " to ".join(f"{x:.3g}" for x in dict.fromkeys(one["t1"]))
                for form, one in found.items()
            }
            above = sum(one["violations"] for one in found.values())
            rows.append((row["mode"], kind, str(above), *ends.values()))
            head = ("mode", "kind", "above", *(f"T1 / measured, {f}" for f in ends))
    return table(head, rows) if rows else ""


def state_formats() -> str:
    """What each format of the cached state did to the trained bundled model."""
    known = json.loads((ROOT / "analysis/results/state_formats.json").read_text())
    rows = [
        (
            row["state"],
            f"{row['rel_l2']:.1e}",
            f"{row['kl_mean']:.1e}",
            f"{row['flips']:,} of {row['tokens']:,}",
            plain(row.get("cause_measured") or "-"),
        )
        for row in known["rows"]
        if row["weights"] == "bf16"
    ]
    head = (
        "state",
        "logits, rel. L2",
        "mean KL, nats",
        "top tokens changed",
        "limited by",
    )
    return table(head, rows)


def decode_by_family() -> str:
    """KL and changed tokens of decoding on the real kernels, a row a network."""
    known = json.loads((ROOT / "analysis/results/cross_check.json").read_text())
    cells: dict[str, dict[str, list]] = {}
    for row in known["rows"]:
        if row["measured_by"] != "emulated" and row["kl_mean"] is not None:
            key = f"{row['model']}, {row['mode']}"
            cells.setdefault(key, {}).setdefault(row["precision"], []).append(row)
    formats = ("bf16", "fp16", "fp32")

    def told(rows: list) -> str:
        if not rows:
            return "-"
        tokens = sum(row["tokens"] for row in rows)
        flips = sum(row["flips"] + row["ties"] for row in rows)
        kl = sum(row["kl_mean"] * row["tokens"] for row in rows) / tokens
        return f"{kl:.1e}; {flips:,} of {tokens:,}"

    rows = [
        (plain(name), *(told(found.get(form, [])) for form in formats))
        for name, found in cells.items()
    ]
    return table(("network", *formats), rows)
