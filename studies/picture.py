"""Pictures of results: drawn without a display, written whole."""

from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """matplotlib's pyplot, which opens no window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Write a picture whole, or leave the old one as it was."""
    part = path.with_name(f"part.{path.name}")
    figure.savefig(part, dpi=110)
    pyplot().close(figure)
    in_palette(part)
    part.replace(path)


def in_palette(path: Path) -> None:
    """Keep a picture in its 256 most used colours: a third of the bytes."""
    from PIL import Image

    with Image.open(path) as drawn:
        few = drawn.convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
