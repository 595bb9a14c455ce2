"""What the installed transformers computes, read from its source, which nothing runs.

Versions differ: some round elsewhere, which bounds follow, and some compute another
function than the checkpoint's publisher, which is refused: a bound would accuse it.
"""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..._errors import UsageError
from .._implementation import installed as version_of


READ = ((5, 17), (5, 24))
"""The first and the last version whose code was read. Tests hold 5.24 to its bounds;
5.17 was held to them where the two differ."""

ROUNDS_BEFORE_WEIGHT = "self.weight * hidden_states.to(input_dtype)"
"""How a norm is written that rounds what it normalised before its weight."""


def installed() -> tuple[int, ...] | None:
    """transformers' version, as (5, 24), not imported for it; None where it is not."""
    found = version_of("transformers")
    return None if found is None else found[:2]


def source(architecture: str) -> str | None:
    """The text of a family's modeling file; None where there is none."""
    try:
        found = importlib.util.find_spec("transformers")
    except (ImportError, ValueError):
        found = None
    for folder in [] if found is None else found.submodule_search_locations or []:
        path = Path(folder, "models", architecture, f"modeling_{architecture}.py")
        if path.is_file():
            return path.read_text("utf-8")
    return None


def body_of(code: str | None, ending: str) -> str:
    """The text of the class whose name ends so; empty where there is none."""
    found = re.search(
        rf"^class \w*{ending}\b.*?(?=^\S|\Z)", code or "", re.MULTILINE | re.DOTALL
    )
    return found[0] if found else ""


def _gated_norm(architecture: str) -> str:
    """The text of a family's gated norm, also where it is another family's."""
    code = source(architecture) or ""
    if own := body_of(code, "RMSNormGated"):
        return own
    lent = re.search(r"^from [.\w]*\bmodeling_(\w+) import .*RMSNormGated", code, re.M)
    return body_of(source(lent[1]), "RMSNormGated") if lent else ""


def rounds_before_weight(architecture: str) -> bool:
    """Whether the norms in front of sublayers round before their weight multiplies."""
    return ROUNDS_BEFORE_WEIGHT in body_of(source(architecture), "RMSNorm")


def refuse_other_functions(architecture: str, sublayers: Iterable[Any]) -> None:
    """Refuse a version that does not compute what the checkpoint says.

    **Arguments:**

    - `sublayers`: their sizes, as in `NetworkConfig.sublayers`.

    **Raises:** `UsageError` with the version, what it does and which one does not: one
    that is older than any that was read; one whose gated norm knows no groups, where
    the checkpoint has several (before 5.23: Mamba-2, Bamba, Granite); and one whose
    gated norm drops the axis of the tokens where there is one (Falcon-H1 before 5.23:
    a batch is then multiplied by itself).
    """
    refuse_older()
    normed = [s for s in sublayers if s.kind == "mamba2" and s.gate_norm]
    if not normed:
        return
    body = _gated_norm(architecture)
    groups = max(s.norm_groups for s in normed)
    if body and groups > 1 and "group" not in body:
        _refuse(
            f"normalises {architecture}'s gated output over all channels together, "
            f"and the checkpoint in {groups} groups"
        )
    if "if seq_len == 1:" in body:
        _refuse(
            f"drops an axis in {architecture}'s gated norm where it reads one token, "
            "so that sequences of a batch mix"
        )


def refuse_older() -> None:
    """Refuse a version before those that were read.

    **Raises:** `UsageError` with the version.
    """
    version = installed()
    if version is not None and version < READ[0]:
        _refuse(f"is older than the code that bounds were read from ({_said(READ[0])})")


def _refuse(what: str) -> None:
    version = installed()
    raise UsageError(
        f"transformers {'' if version is None else _said(version)} {what}",
        hint=f"pip install -U 'transformers>={_said(RIGHT)}', or --measure emulated",
    )


RIGHT = (5, 23)
"""The first version that computes every family's function, but for limits of dt."""


def assume_version() -> str:
    """The assumption that the installed version computes what was read, for people."""
    first, last = map(_said, READ)
    version = installed()
    told = f"transformers computes what was read in its code from {first} to {last}"
    if version is None:
        return f"{told}; none is installed here"
    known = READ[0] <= version <= READ[1]
    return f"{told}; {_said(version)} is installed" + (
        "" if known else ", whose code was not read"
    )


def _said(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
