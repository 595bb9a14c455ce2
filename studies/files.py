"""Files that a study writes: whole, or not at all."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a file whole, or leave the old one as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
