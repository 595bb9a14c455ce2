"""Names that a quantiser was told to leave alone, matched without trusting anyone.

A list holds names of modules, parts of names, wildcards (ModelOpt) or regular
expressions behind `re:` (compressed-tensors). Expressions come from a file that anybody
may have written, and some take longer than the age of the world to fail: those that
could are not looked at.
"""

import re
from collections.abc import Iterable


LONGEST = 200
_LOOPS = 3  # of any length, in one expression


def matcher(entry: str):
    """From an entry of such a list, a function that tells whether a module's name is
    meant; None for an entry that is not looked at."""
    if len(entry) > LONGEST:
        return None
    if entry.startswith("re:"):
        found = _expression(entry.removeprefix("re:"))
        return None if found is None else lambda name: found.match(name) is not None
    if "*" in entry or "?" in entry:
        text = re.sub(r"\\\*(\\\*)*", ".*", re.escape(entry)).replace(r"\?", ".")
        found = _expression(text)
        return None if found is None else lambda name: found.fullmatch(name) is not None
    inside = f".{entry}."
    return lambda name: inside in f".{name}."


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


def idle_entries(entries: Iterable[str], modules: Iterable[str]) -> list[str]:
    """The entries that mean no module; those that are not looked at are left out."""
    names = [name for name in modules if len(name) <= LONGEST]
    idle = []
    for entry in entries:
        meant = matcher(entry)
        if meant is not None and not any(map(meant, names)):
            idle.append(entry)
    return idle
