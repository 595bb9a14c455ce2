"""Pages of what the library lists: findings, families, kinds, implementations."""

import ast
import importlib
import inspect

from docs import studies
from docs.tables import ROOT, items, plain, table


def findings() -> dict[str, str]:
    """A page a code of `lyapunov.findings.CATALOGUE`, and one that lists them."""
    from lyapunov.findings import CATALOGUE
    from lyapunov.findings._catalogue import DOUBTS

    rows = [
        (f"[{kind.code}]({kind.code}.md)", plain(kind.title), kind.severity)
        for kind in CATALOGUE.values()
    ]
    pages = {
        "findings/index.md": "# Findings\n\n"
        "What a check or an audit may find. An error makes the exit code 1; a warning "
        "does with `--fail-on warning`. `--select` and `--ignore` take codes or their "
        "beginnings; `lyapunov-check --explain LYA003` shows a text in a terminal.\n\n"
        + table(("code", "says", "severity"), rows)
    }
    for kind in CATALOGUE.values():
        doubt = (
            "It doubts the checkpoint, the adapter or the function that is checked: no "
            "verdict reads HELD above it.\n\n"
            if kind.code in DOUBTS
            else ""
        )
        pages[f"findings/{kind.code}.md"] = (
            f"# {kind.code}: {plain(kind.title)}\n\n*Severity: {kind.severity}.* "
            f"{doubt}\n\n{plain(kind.explanation)}\n\n"
            f"To leave it out of the verdict: `--ignore {kind.code}`; to keep those "
            "that are known, and hear of new ones: `--baseline report.json`.\n"
        )
    return pages


def families() -> dict[str, str]:
    """A page a family that is read, and one that lists them and those that are not."""
    from lyapunov.checkpoints import list_architectures
    from lyapunov.checkpoints.families._not_covered import not_covered_lines
    from lyapunov.sublayers import KINDS

    known = list_architectures()
    rows = [(f"[{plain(f['title'])}]({f['name']}.md)", f["name"]) for f in known]
    kinds = [
        (
            f"`{name}`",
            "yes" if KINDS[name].recurrent else "no",
            plain(_first(KINDS[name].__doc__ or "").partition(";")[0].rstrip(".")),
            str(len(KINDS[name].sites)),
        )
        for name in KINDS
    ]
    head = ("kind", "recurrent", "is", "tensors that it may store")
    stored = "\n\n".join(
        f'??? note "What `{name}` may store, in order"\n    '
        + ", ".join(f"`{site}`" for site in KINDS[name].sites)
        for name in KINDS
    )
    pages = {
        "families/index.md": "# Families\n\nCheckpoints are recognised by their "
        "config.json and their tensors' names; `lyapunov-check --list-architectures` "
        "lists the same. A folder, a single file or the name of a Hub repository will "
        "do, in fp32, fp16 or bf16, as safetensors, `.bin` or `.pt`; no code that a "
        "checkpoint brings along is run.\n\n"
        + table(("family", "in reports"), rows)
        + "\n\n## Kinds of sublayers\n\nA network is made of sublayers, each a mixer, "
        "an attention, an MLP with the norm before it. Reports count these.\n\n"
        + table(head, kinds)
        + "\n\nHow exponents of a recurrence are found is on pages of their own: "
        "[of decays](../exponents.md), [of delta rules](../delta-rule.md).\n\n"
        + stored
        + "\n\n## Recurrent, and not covered as checkpoints\n\n"
        + items(not_covered_lines())
    }
    for family in known:
        parts = [f"# {plain(family['title'])}"]
        for key, title in (
            ("layouts", "Files that are read"),
            ("covered", "Covered"),
            ("not_covered", "Not covered"),
        ):
            if family[key]:
                parts.append(f"## {title}\n\n{items(family[key])}")
        if tried := studies.tried(family["name"]):
            parts.append(
                "## Tried\n\nA small random model against its implementation "
                "(`python -m analysis.families`): elements above a certified bound, "
                "and the bound over what was measured.\n\n" + tried
            )
        pages[f"families/{family['name']}.md"] = "\n\n".join(parts)
    return pages


def implementations() -> dict[str, str]:
    """A page an implementation of the registry, and one that lists them."""
    from lyapunov.implementations import IMPLEMENTATIONS
    from lyapunov.implementations._ways import KINDS as WAYS

    rows, pages = [], {}
    for name, one in IMPLEMENTATIONS.items():
        about = _first(type(one).__doc__ or "")
        rows.append(
            (
                f"[{name}]({name}.md)",
                plain(about),
                "yes" if one.measures else "no",
                "yes" if one.ways else "no",
                "yes" if one.needs_gpu else "no",
            )
        )
        pages[f"implementations/{name}.md"] = _implementation(name, one, about)
    head = ("name", "what it does", "`--measure`", "`--audit`", "needs a GPU")
    pages["implementations/index.md"] = (
        "# Implementations\n\nWho runs a network in the lower precision. Each promises "
        "a format for every tensor that it stores and constants for the arithmetic "
        "between them; the bounds are of those promises.\n\n"
        + table(head, rows)
        + "\n\n## Ways to run a text\n\nIn exact arithmetic all give the same numbers. "
        "An audit runs them and holds each to its bounds.\n\n"
        + table(("way", "is"), ((f"`{k}`", plain(v)) for k, v in WAYS.items()))
    )
    return pages


def _implementation(name: str, one, about: str) -> str:
    parts = [f"# {name}", plain(about)]
    if one.installed_by:
        parts.append(f"Needs `{one.install_hint()}`.")
    if one.launch_flags:
        flags = ", ".join(f"`{flag}`" for flag in one.launch_flags)
        parts.append(f"Flags behind its name, as `'{name} FLAGS'`: {flags}.")
    for mode in ("prefill", "decode"):
        kept = one.state_precisions(mode)
        told = "any format" if kept is None else ", ".join(kept)
        parts.append(f"State in {mode}: {told}.")
    if one.ways:
        parts.append(
            "## Ways that an audit runs\n\n" + ", ".join(f"`{w}`" for w in one.ways)
        )
    if one.refused_ways:
        refused = ((f"`{way}`", plain(why)) for way, why in one.refused_ways.items())
        parts.append("## Ways that it has not\n\n" + table(("way", "because"), refused))
    if one.defects:
        told = (
            f"- **{', '.join(map(plain, d.families))}**, {_version(d.since)} to "
            f"{_version(d.until)}, {', '.join(f'`{way}`' for way in d.ways)}: "
            f"{plain(d.what)}; seen first in `{d.tensor}` ({plain(d.source)})."
            for d in one.defects
        )
        parts.append("## Known defects\n\n" + "\n".join(told))
    if one.passed_over:
        rows = (
            (family, ", ".join(p.always) or "-", ", ".join(p.fused) or "-")
            for family, p in one.passed_over.items()
        )
        head = ("family", "on every path", "in fused training")
        parts.append(
            "## Modules that it reads without calling\n\nA LoRA adapter on these has "
            "no effect and no gradient ([LYA014](../findings/LYA014.md)).\n\n"
            + table(head, rows)
        )
    if one.ignores_dt_limits:
        parts.append(
            "Its steps that generate do not limit dt where the model does "
            "([LYA011](../findings/LYA011.md))."
        )
    parts += [plain(f"{k}: {v}") for k, v in one.trains_otherwise.items()]
    return "\n\n".join(parts)


def _version(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _first(doc: str) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(doc.split("\n\n")[0].split())


def words() -> dict[str, str]:
    """The page of the words that a report prints."""
    from lyapunov.report._glossary import GLOSSARY

    told = (
        f"{', '.join(f'**{plain(name)}**' for name in word.names)}\n:   "
        f"{plain(word.text)}"
        for word in GLOSSARY
    )
    return {
        "words.md": "# Words of a report\n\n`lyapunov-check --explain T1` shows one of "
        "them.\n\n" + "\n\n".join(told)
    }


def room_names() -> dict[str, dict[str, list[str]]]:
    """The public names of every room of `lyapunov`, by the module they come from."""
    found = {}
    for stub in sorted((ROOT / "lyapunov").glob("**/__init__.pyi")):
        module = ".".join(stub.parent.relative_to(ROOT).parts)
        names: dict[str, list[str]] = {}
        for node in ast.parse(stub.read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                names.setdefault(node.module, []).extend(a.name for a in node.names)
        if module.count(".") <= 1:
            found[module] = names
    return found


def api() -> dict[str, str]:
    """A page of `lyapunov`'s own names, and one a room with public names."""
    pages = {}
    for module, groups in room_names().items():
        room, here = module.partition(".")[2], importlib.import_module(module)
        parts = [f"# {module}", here.__doc__ or ""]
        for source, names in groups.items():
            title = source.strip("._").split(".")[-1].strip("_").replace("_", " ")
            parts.append(f"## {title.capitalize()}")
            called = [name for name in names if callable(getattr(here, name))]
            constants = [f"`{name}`" for name in names if name not in called]
            if constants:
                parts.append(f"Constants: {', '.join(constants)}.")
            # of a room the names alone; of what users hold in their hands, methods too
            more = "" if room else "\n    options: {members: null, filters: ['!^_']}"
            parts += [
                f"::: {module}.{name}"
                + (more if inspect.isclass(getattr(here, name)) else "")
                for name in called
            ]
        pages[f"api/{room or 'index'}.md"] = "\n\n".join(parts)
    return pages
