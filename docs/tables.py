"""Markdown from plain values: escaped text, tables, where a repository file stands."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]


def plain(text: str) -> str:
    """Escape what Markdown would take for marks, all but code in backquotes."""
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(
        part
        if i % 2
        else re.sub(r"([\\*_\[\]|$`#])", r"\\\1", part).replace("<", "&lt;")
        for i, part in enumerate(parts)
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table, its cells as they are."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def items(texts: Iterable[str]) -> str:
    """Write a list of plain texts."""
    return "\n".join(f"- {plain(text)}" for text in texts)
