"""Calls of scans that stand in no block: caught where the functions are looked up."""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .._arguments import shown
from .._errors import ArgumentError
from ._scans import SCANS


PLACES = {
    "selective_scan_fn": "mamba_ssm.ops.selective_scan_interface",
    "mamba_chunk_scan_combined": "mamba_ssm.ops.triton.ssd_combined",
}
"""Where mamba_ssm has them."""

Seen = Callable[[str, tuple, Mapping[str, Any], Any], None]
"""Is told the name in `SCANS`, the arguments, and what the scan gave."""


def known_scans(more: Mapping[Any, str] | None = None) -> dict[Any, str]:
    """The functions to catch, each with the name of those that are called alike.

    **Arguments:**

    - `more`: functions of one's own.

    **Raises:** `ArgumentError` for what is no function, and for a name that is not in
    `SCANS`.
    """
    found: dict[Any, str] = {}
    for name, place in PLACES.items():
        function = getattr(sys.modules.get(place), name, None)
        if function is not None:
            found[function] = name
    for function, name in (more or {}).items():
        if not callable(function) or name not in SCANS:
            raise ArgumentError(
                f"scans has {shown(function)}: {shown(name)}",
                hint=f"a function, and which it is called like: {' or '.join(SCANS)}",
            )
        found[function] = name
    return found


class ScanCalls:
    """Put something that looks on in the place of functions, and take it out again.

    **Arguments:**

    - `functions`: as `known_scans` gives them.
    """

    def __init__(self, functions: Mapping[Any, str]):
        self._functions = functions
        self._replaced: list[tuple[Any, str, Any]] = []

    def start(self, module: Any, seen: Seen) -> None:
        """Replace the functions wherever modules, classes and blocks refer to them."""
        for function, name in self._functions.items():
            watched = _watched(function, name, seen)
            for holder, attribute in list(_holders(module, function)):
                setattr(holder, attribute, watched)
                self._replaced.append((holder, attribute, function))

    def stop(self) -> None:
        """Put every function back."""
        while self._replaced:
            setattr(*self._replaced.pop())


def _watched(function: Any, name: str, seen: Seen) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        result = function(*given, **named)
        seen(name, given, named, result)
        return result

    return run


def _holders(module: Any, function: Any) -> Iterator[tuple[Any, str]]:
    """Whatever has the function under a name: loaded modules, and the network's own."""
    for holder in [*sys.modules.values(), *module.modules()]:
        for attribute, value in list(getattr(holder, "__dict__", {}).items()):
            if value is function:
                yield holder, attribute
