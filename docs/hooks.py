"""What mkdocs calls: pages that are made join those that are written.

A page that is made repeats what the code or a result file says, so none is committed.
In a written page `{{ name }}` stands for one of `found.FIGURES`.
"""

import re
from pathlib import Path
from typing import Any

from docs import catalogue, command, found, notebook, proofs_page, studies
from docs.tables import ROOT


SECTIONS = (
    "findings",
    "families",
    "implementations",
    "api",
    "proofs",
    "results",
    "experiments",
    "notebooks",
)
MATHJAX = "node_modules/mathjax/es5/tex-svg.js"


class Made:
    """Pages and files of this build."""

    pages: dict[str, str]
    files: dict[str, Path | bytes]


def on_config(config: Any) -> Any:
    """Make the pages, and give each section of the navigation its own."""
    made = Made.pages = {}
    Made.files = {}
    if (mathjax := _mathjax()) is not None:
        Made.files["assets/tex-svg.js"] = mathjax
    else:
        print("MathJax is not there: formulas stay as they are written in TeX")
    for pages in (
        catalogue.findings(),
        catalogue.families(),
        catalogue.implementations(),
        catalogue.api(),
        catalogue.words(),
        proofs_page.proofs(),
        command.command(),
    ):
        made |= pages
    for pages, pictures in (
        studies.results(),
        studies.experiments(),
        notebook.notebooks(),
    ):
        made |= pages
        Made.files |= pictures
    config.nav = [_filled(entry) for entry in config.nav]
    return config


def _mathjax() -> Path | None:
    """What npm brought, where it could."""
    for folder in (ROOT / ".venv", *ROOT.glob(".venv-*")):
        if (folder / MATHJAX).exists():
            return folder / MATHJAX
    return None


def _filled(entry: Any) -> Any:
    """The navigation with the pages of a section in the place of its name."""
    if not isinstance(entry, dict):
        return entry
    ((title, under),) = entry.items()
    if isinstance(under, list):
        return {title: [_filled(one) for one in under]}
    if under in SECTIONS:
        mine = [page for page in Made.pages if page.startswith(f"{under}/")]
        return {
            title: sorted(mine, key=lambda page: (not page.endswith("/index.md"), page))
        }
    return entry


def on_files(files: Any, config: Any) -> Any:
    """Add what was made."""
    from mkdocs.structure.files import File

    for name, text in Made.pages.items():
        files.append(File.generated(config, name, content=text))
    for name, of in Made.files.items():
        content = of if isinstance(of, bytes) else Path(of).read_bytes()
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put figures where written pages ask for them; an unknown name fails the build."""
    return re.sub(found.ASKED, lambda name: found.figure(name[1]), markdown)


def on_post_build(config: Any) -> None:
    """**Raises:** `SystemExit` where a page would fetch something from elsewhere."""
    fetched = re.compile(
        r"<(?:script|img|iframe)[^>]*\bsrc=\"?https?:|<link[^>]*rel=\"?(?:stylesheet|preconnect)[^>]*https?:"
    )
    for page in Path(config.site_dir).rglob("*.html"):
        if one := fetched.search(page.read_text("utf-8")):
            raise SystemExit(f"error: {page} fetches {one[0]}")
