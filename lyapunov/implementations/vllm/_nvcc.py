"""Libraries that nvcc makes where they run, kept by all that went into them."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..._errors import MissingExtraError, UsageError


CACHES = "LYAPUNOV_CACHE"
"""The environment variable that names a folder for what is compiled."""
NO_COMPILER = "install the CUDA toolkit, or set CUDA_HOME to the folder of bin/nvcc"


def library(
    name: str,
    what: str,
    sources: Sequence[Path],
    options: Sequence[str],
    *,
    places: Sequence[str] = (),
    links: Sequence[str] = (),
    read: Iterable[Path] = (),
    version: str = "",
    hint: str,
) -> Path:
    """Compile sources to a library, unless the folder of caches has it.

    **Arguments:**

    - `name`: what files of it begin with. `what`: it is, for people.
    - `places`: options that say where headers lie. `links`: those behind the sources.
    - `read`: headers among what it is kept by, beside sources, options and `version`.
    - `hint`: what the compiler needs.

    **Raises:** `MissingExtraError` without a compiler; `UsageError` where it fails.
    """
    known = hashlib.sha256(" ".join([*options, *links, version]).encode())
    for path in (*sources, *read):
        known.update(path.read_bytes())
    folder = caches()
    kept = folder / f"{name}-{known.hexdigest()[:16]}.so"
    if kept.exists():
        return kept
    command = [compiler(what), *options, *places, *map(str, sources), *links]
    folder.mkdir(parents=True, exist_ok=True)
    # others may compile the same at the same time
    with tempfile.TemporaryDirectory(dir=folder) as own:
        made = Path(own) / kept.name
        done = subprocess.run(
            [*command, "-o", str(made)], capture_output=True, text=True
        )
        if done.returncode:
            told = "\n".join((done.stderr or done.stdout).strip().splitlines()[:8])
            raise UsageError(f"nvcc cannot compile {what}:\n{told}", hint=hint)
        made.replace(kept)
    return kept


def compiler(what: str) -> str:
    """The path of nvcc.

    **Raises:** `MissingExtraError` where there is none.
    """
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if found is None:
        raise MissingExtraError(
            f"{what} is compiled where it runs, and there is no nvcc", hint=NO_COMPILER
        )
    return found


def caches() -> Path:
    """The folder for what is compiled."""
    if named := os.environ.get(CACHES):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lyapunov-check"
