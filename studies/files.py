"""Files that a study writes: whole, or not at all."""

import json
import math
import os
from pathlib import Path
from typing import Any


CURVE = 16
"""As many numbers in a row are a curve, which is drawn and never computed with."""
DIGITS = 6
"""Of a curve's numbers; all other numbers are kept as they are."""


def write(path: Path, text: str) -> None:
    """Write a file whole, or leave the old one as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def finite(value: Any) -> Any:
    """The same with null for what is not finite, as JSON wants it."""
    if isinstance(value, dict):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    bad = isinstance(value, float) and not math.isfinite(value)
    return None if bad else value


def as_json(result: dict[str, Any]) -> str:
    """A result as a file holds it: a line for each row, curves to `DIGITS` digits."""

    def line(value: Any) -> str:
        return json.dumps(_shortened(finite(value)), allow_nan=False)

    def part(value: Any) -> str:
        rows = isinstance(value, list) and value and isinstance(value[0], dict)
        return "[\n" + ",\n".join(map(line, value)) + "\n]" if rows else line(value)

    parts = (f"{line(name)}: {part(value)}" for name, value in result.items())
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(item) for name, item in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) < CURVE:
        return [_shortened(item) for item in value]
    return [
        float(f"{item:.{DIGITS}g}") if isinstance(item, float) else _shortened(item)
        for item in value
    ]
