"""Settings of a check or an audit: what each may be, and how a report repeats it."""

import os
from typing import Any

from .._arguments import choice, shown, sublayer_numbers, switch, text, whole, words
from .._errors import ArgumentError
from ..findings._catalogue import ERROR, WARNING
from ..findings._verdict import check_codes
from ..formats import state_format_named
from ..formats._table import PRECISIONS
from ..implementations._implementation import MODES
from ..implementations._registry import NONE, measure_names
from ..sublayers.groups import rounded_group
from ._effort import EFFORTS


CONSTANTS = ("documented", "measured")
MOST_SEED = 2**63 - 1


def _precisions(value: Any) -> list[str]:
    found = words(value, "precisions", '["bf16"]')
    return [choice(one, "a precision", PRECISIONS) for one in found]


def _state_precision(value: Any) -> str | None:
    if text(value, "state_precision", "bf16") is None:
        return None
    return state_format_named(value).name


def _layers(value: Any) -> list[int] | None:
    found = sublayer_numbers(value)
    return None if found is None else list(found)


def _place(name: str):
    def read(value: Any) -> str | None:
        if value is None or (isinstance(value, str | os.PathLike) and str(value)):
            return None if value is None else os.fsdecode(os.fspath(value))
        raise ArgumentError(f"{name} is {shown(value)}", hint="a path, or org/name")

    return read


def _codes(name: str):
    return lambda value: list(check_codes(words(value, name, '["LYA004"]')))


def _switch(name: str, or_none: bool = False):
    return lambda value: switch(value, name, or_none=or_none)


def _whole(name: str, least: int):
    return lambda value: whole(value, name, least)


def _seed(value: Any) -> int:
    found = whole(value, "seed", 0)
    if found > MOST_SEED:
        raise ArgumentError(f"seed is {shown(value)}", hint="a number below 2**63")
    return found


_SETTINGS = {
    "precisions": _precisions,
    "state_precision": _state_precision,
    "mode": lambda value: choice(value, "mode", MODES),
    "layers": _layers,
    "measure": lambda value: choice(value, "measure", measure_names()),
    "constants": lambda value: choice(value, "constants", CONSTANTS),
    "device": lambda value: text(value, "device", "cpu"),
    "against": _place("against"),
    "round_weights": lambda value: list(
        dict.fromkeys(
            str(rounded_group(one))
            for one in words(value, "round_weights", '["bf16:A_log"]')
        )
    ),
    "effort": lambda value: choice(value, "effort", tuple(EFFORTS)),
    "floor": _switch("floor"),
    "probes": _whole("probes", 0),
    "readouts": lambda value: None if value is None else whole(value, "readouts", 0),
    "ball": _switch("ball"),
    "growth": _switch("growth", or_none=True),
    "seed": _seed,
    "fail_on": lambda value: choice(value, "fail_on", (ERROR, WARNING)),
    "select": _codes("select"),
    "ignore": _codes("ignore"),
    "allow_partial": _switch("allow_partial"),
    "exit_zero": _switch("exit_zero"),
    "tokens_are_text": _switch("tokens_are_text"),
    "n_probes": _whole("n_probes", 1),
}


def checked_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `check` and `audit` as a report repeats them: plain JSON types.

    **Raises:** `LyapunovError` with a hint for the first that is of the wrong type, out
    of range, or names what there is not; names without a rule are left as they are.
    """
    settings = {
        name: _SETTINGS[name](value) if name in _SETTINGS else value
        for name, value in given.items()
    }
    if settings.get("precisions") == [] and settings.get("measure") != NONE:
        raise ArgumentError(
            "precisions is empty: there is nothing to measure",
            hint='precisions=["bf16"]; for exponents alone, check(..., measure="none")',
        )
    return settings
