"""`python -m docs.notebook [NAME]...`: run notebooks, write them with their outputs.

The source is `docs/notebooks/NAME.py`, cells behind `# %%`, text behind
`# %% [markdown]`; the notebook beside it is what was run, and what pages show.
"""

import ast
import base64
import contextlib
import io
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from docs import run
from docs.tables import ROOT


FOLDER = ROOT / "docs" / "notebooks"
LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def names() -> list[str]:
    """The notebooks there are."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def cells_of(source: str) -> list[dict[str, Any]]:
    """Cells of a source, none of them run."""
    made = []
    for part in re.split(r"^# %%", source, flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        body, kind = body.strip("\n"), "code"
        if "[markdown]" in head:
            kind, body = "markdown", re.sub(r"^# ?", "", body, flags=re.M)
        cell = {"cell_type": kind, "id": f"cell-{len(made)}", "metadata": {}}
        cell["source"] = body.splitlines(keepends=True)
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        made.append(cell)
    return made


def executed(name: str, folder: Path) -> dict[str, Any]:
    """A notebook with what its cells print, show and draw."""
    cells = cells_of((FOLDER / f"{name}.py").read_text("utf-8"))
    given: dict[str, Any] = {"__name__": "notebook"}
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    with contextlib.chdir(folder):
        for count, cell in enumerate(code, 1):
            cell["execution_count"] = count
            cell["outputs"] = _outputs("".join(cell["source"]), given, count)
    metadata = {"kernelspec": KERNEL, "language_info": LANGUAGE}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _outputs(source: str, given: dict[str, Any], count: int) -> list[dict[str, Any]]:
    import jax
    from matplotlib import pyplot

    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    out, value = io.StringIO(), None
    with contextlib.redirect_stdout(out), jax.enable_x64(False):
        exec(compile(tree, "<cell>", "exec"), given)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), given)
    made: list[dict[str, Any]] = []
    if text := out.getvalue():
        lines = text.splitlines(keepends=True)
        made.append({"output_type": "stream", "name": "stdout", "text": lines})
    if value is not None and not type(value).__module__.startswith("matplotlib"):
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        made.append(
            {"output_type": "execute_result", "data": data, "metadata": {}}
            | {"execution_count": count}
        )
    for number in pyplot.get_fignums():
        drawn = io.BytesIO()
        pyplot.figure(number).savefig(drawn, format="png", dpi=80)
        pyplot.close(number)
        data = {"image/png": base64.b64encode(drawn.getvalue()).decode()}
        made.append({"output_type": "display_data", "data": data, "metadata": {}})
    return made


def committed(name: str) -> dict[str, Any]:
    """The notebook as it was run."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))


def printed(notebook: dict[str, Any]) -> str:
    """All text that its cells gave."""
    texts = []
    for cell in notebook["cells"]:
        for one in cell.get("outputs", ()):
            texts += one.get("text", one.get("data", {}).get("text/plain", []))
    return "".join(texts)


def notebooks() -> tuple[dict[str, str], dict[str, bytes]]:
    """A page a notebook, and its pictures."""
    pages, pictures = {}, {}
    for name in names():
        parts = []
        for cell in committed(name)["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                parts.append(source)
                continue
            parts.append(f"```python\n{source}\n```")
            for one in cell["outputs"]:
                data = one.get("data", {})
                if "image/png" in data:
                    picture = f"{name}-{len(pictures)}.png"
                    content = base64.b64decode(data["image/png"])
                    pictures[f"notebooks/{picture}"] = content
                    parts.append(f"![What this cell draws]({picture})")
                    continue
                text = "".join(one.get("text", data.get("text/plain", [])))
                parts.append(f"```text\n{text.rstrip()}\n```")
        parts.append(
            f"This page is `docs/notebooks/{name}.ipynb`; its source is beside it."
        )
        pages[f"notebooks/{name}.md"] = "\n\n".join(parts)
    return pages, pictures


def main(chosen: list[str]) -> int:
    """Run notebooks, all or those named, and write what they give."""
    import matplotlib

    matplotlib.use("Agg")
    with tempfile.TemporaryDirectory() as place:
        run.prepare(Path(place))
        for name in chosen or names():
            made = json.dumps(executed(name, Path(place)), indent=1, ensure_ascii=False)
            (FOLDER / f"{name}.ipynb").write_text(f"{made}\n", "utf-8")
            print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
