"""`python -m docs.run [PAGE]...`: run all code of the pages, and write what it prints.

A fence is run by its language: `console` holds lines behind `$ `, each with what it
printed; `python` blocks of a page share their names, and what they print stands in a
`text` fence of the title "prints" behind them. `sh` and `text` are not run: what needs
a network, a GPU or an installation, and excerpts.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from docs.tables import ROOT


PAGES = ROOT / "docs" / "pages"
PRINTS = 'text title="prints"'
LANGUAGES = ("console", "python", "sh", "text", PRINTS)
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```\n", re.S | re.M)
SIZES = {
    "vocab_size": 40,
    "hidden_size": 8,
    "state_size": 4,
    "num_hidden_layers": 2,
    "pad_token_id": None,
}


def prepare(folder: Path) -> None:
    """Make what pages and README name: `./model`, `./adapter`, `./weights.pth`,
    `ids.npy`."""
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model

    from oracles.checkpoints.transformers import make, save

    model = make("mamba", **SIZES)
    save(model, folder / "model")
    torch.save({"state_dict": model.state_dict()}, folder / "weights.pth")
    lora = LoraConfig(r=2, target_modules=["in_proj"], init_lora_weights=False)
    get_peft_model(make("mamba", **SIZES), lora).save_pretrained(
        str(folder / "adapter")
    )
    np.save(folder / "ids.npy", np.arange(8) % SIZES["vocab_size"])


def fences(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of every fence."""
    for found in FENCE.finditer(text):
        yield found[1], found[2]


def done(text: str, folder: Path) -> str:
    """The page with what its code prints, run in a folder."""
    names: dict[str, object] = {"__name__": "page"}

    def run(found: re.Match) -> str:
        language, body = found[1], found[2]
        if language == PRINTS:
            return ""
        if language == "console":
            commands = [line[2:] for line in body.splitlines() if line[:2] == "$ "]
            parts = [f"$ {line}\n{command(line, folder)}" for line in commands]
            return "```console\n" + "\n".join(parts).rstrip("\n") + "\n```\n"
        if language == "python":
            printed = python(body, names, folder)
            shown = f"\n```{PRINTS}\n{printed}```\n" if printed else ""
            return f"{found[0]}{shown}"
        return found[0]

    # a blank line before what is printed belongs to it
    bare = re.sub(rf"\n```{re.escape(PRINTS)}\n.*?^```\n", "", text, flags=re.S | re.M)
    return FENCE.sub(run, bare)


def command(line: str, folder: Path) -> str:
    """What a line of a shell prints; of errors and progress nothing.

    **Raises:** `RuntimeError` where the tool could not check.
    """
    own = {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "PYTHONIOENCODING": "utf-8",
        "JAX_PLATFORMS": "cpu",
    }
    ran = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=os.environ | own, capture_output=True
    )
    if ran.returncode not in (0, 1):
        raise RuntimeError(f"{line}: {ran.returncode}\n{ran.stderr.decode()}")
    return ran.stdout.decode()


def python(body: str, names: dict[str, object], folder: Path) -> str:
    """What a block prints, with the names of the blocks before it."""
    import jax

    out = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(io.StringIO()),
        jax.enable_x64(False),
    ):
        exec(compile(body, "<page>", "exec"), names)
    return out.getvalue()


def without_numbers(text: str) -> str:
    """What two runs have in common: words, not figures, times and widths."""
    text = re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "0", text)
    text = re.sub(r"\b0 min\b", "0 s", text)  # of a busy machine
    return " ".join(re.sub(r"[─\s]+", " ", text).split())


def main(names: list[str]) -> int:
    """Run pages anew, all of them or those named, and write what is printed."""
    chosen = [PAGES / f"{name}.md" for name in names] or sorted(PAGES.glob("*.md"))
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place))
        for page in chosen:
            page.write_text(done(page.read_text("utf-8"), Path(place)), "utf-8")
            print(page.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
