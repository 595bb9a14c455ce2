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
    part.replace(path)
