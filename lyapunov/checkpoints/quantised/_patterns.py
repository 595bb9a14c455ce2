"""Names that a quantiser was told to leave alone, matched without trusting anyone.

A list holds names of modules, parts of names, wildcards (ModelOpt) or regular
expressions behind `re:` (compressed-tensors). Expressions come from a file that anybody
may have written, and some take longer than the age of the world to fail: those that
could are not looked at.
"""

import re
from collections.abc import Iterable, Iterator


LONGEST = 200
_LOOPS = 3  # of any length, in one expression
PATTERNS = 200
"""That are tried of one list."""
_DEPTH = 16  # of names


def is_pattern(entry: str) -> bool:
    """Whether an entry of such a list may mean several names that it does not spell."""
    return entry.startswith("re:") or "*" in entry or "?" in entry


def matcher(entry: str):
    """From a pattern of such a list, a function that tells whether a module's name is
    meant; None for one that is not looked at."""
    if len(entry) > LONGEST:
        return None
    if entry.startswith("re:"):
        found = _expression(entry.removeprefix("re:"))
        return None if found is None else lambda name: found.match(name) is not None
    if "*" in entry or "?" in entry:
        text = re.sub(r"\\\*(\\\*)*", ".*", re.escape(entry)).replace(r"\?", ".")
        found = _expression(text)
        return None if found is None else lambda name: found.fullmatch(name) is not None
    return None


def _expression(text: str) -> re.Pattern[str] | None:
    """A regular expression that is done soon on a name of `LONGEST` characters."""
    text = re.sub(r"(\.\*)(?:\.\*)+", r"\1", text)
    plain = re.sub(r"\\.", "a", text)
    loops = len(re.findall(r"[*+]|\{\d*,\d*\}", plain))
    if loops > _LOOPS or re.search(r"\)\s*[*+{]|\(\?(?!:)|\{", plain):
        return None
    if re.search(r"\\[1-9]", text):
        return None
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return None


class Kept:
    """Hold a list of what was to be left alone, ready to be asked of many names.

    **Arguments:**

    - `entries`: as the configuration lists them.
    """

    def __init__(self, entries: Iterable[str]):
        self._entries = list(entries)
        patterns = list(filter(is_pattern, self._entries))
        tried = {entry: matcher(entry) for entry in patterns[:PATTERNS]}
        self._patterns = {e: found for e, found in tried.items() if found is not None}
        self._plain = {e for e in self._entries if not is_pattern(e)}
        self.whole = len(self._patterns) == len(set(patterns))
        """Whether every entry is looked at."""

    def means(self, name: str) -> bool:
        """Tell whether a module is on the list, by its name or as a part of another."""
        if not self._plain.isdisjoint(_parts(name)):
            return True
        if len(name) > LONGEST:
            return False
        return any(meant(name) for meant in self._patterns.values())

    def idle(self, modules: Iterable[str]) -> list[str]:
        """The entries that mean no module; those that are not looked at are left
        out."""
        names = list(modules)
        parts = {part for name in names for part in _parts(name)}
        short = [name for name in names if len(name) <= LONGEST]
        return [
            entry
            for entry in dict.fromkeys(self._entries)
            if (
                entry not in parts
                if entry in self._plain
                else entry in self._patterns
                and not any(map(self._patterns[entry], short))
            )
        ]


def _parts(name: str) -> Iterator[str]:
    """A name and every stretch of it between dots, of names of plausible depth."""
    levels = name.split(".")[:_DEPTH]
    for i in range(len(levels)):
        for j in range(i, len(levels)):
            yield ".".join(levels[i : j + 1])
