"""Settings of a check or an audit: what each may be, and how a report repeats it."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from .._arguments import (
    choice,
    positive,
    shown,
    sublayer_numbers,
    switch,
    text,
    whole,
    words,
)
from .._errors import ArgumentError
from ..findings._catalogue import ERROR, WARNING
from ..findings._verdict import check_codes
from ..formats import state_format_named
from ..formats._operand_table import check_activations
from ..formats._table import PRECISIONS
from ..implementations._implementation import MODES
from ..implementations._registry import NONE, as_measured
from ..sublayers.groups import rounded_group
from ._effort import EFFORTS


CONSTANTS = ("documented", "measured")
MOST_SEED = 2**63 - 1


def _precisions(value: Any, name: str) -> list[str]:
    found = words(value, name, '["bf16"]')
    return [choice(one, "a precision", PRECISIONS) for one in found]


def _state_precision(value: Any, name: str) -> str | None:
    if text(value, name, "bf16") is None:
        return None
    return state_format_named(value).name


def _layers(value: Any, name: str) -> list[int] | None:
    del name
    found = sublayer_numbers(value)
    return None if found is None else list(found)


def _place(value: Any, name: str) -> str | None:
    if value is None or (isinstance(value, str | os.PathLike) and str(value)):
        return None if value is None else os.fsdecode(os.fspath(value))
    raise ArgumentError(f"{name} is {shown(value)}", hint="a path, or org/name")


def _groups(value: Any, name: str) -> list[str]:
    found = words(value, name, '["bf16:A_log"]')
    return list(dict.fromkeys(str(rounded_group(one)) for one in found))


def _format(value: Any, name: str) -> str:
    return str(rounded_group(text(value, name, "fp8_e4m3") or ""))


def _operand(value: Any, name: str) -> str | None:
    if text(value, name, "fp8_e4m3-token") is not None:
        check_activations(value)
    return value


def _share(value: Any, name: str) -> float:
    if value == 0 and not isinstance(value, bool):
        return 0.0
    return positive(value, name, 1.0)


def _codes(value: Any, name: str) -> list[str]:
    return list(check_codes(words(value, name, '["LYA004"]')))


def _seed(value: Any, name: str) -> int:
    found = whole(value, name, 0)
    if found > MOST_SEED:
        raise ArgumentError(f"{name} is {shown(value)}", hint="a number below 2**63")
    return found


_SETTINGS: dict[str, Callable[[Any, str], Any]] = {
    "precisions": _precisions,
    "state_precision": _state_precision,
    "mode": partial(choice, known=MODES),
    "layers": _layers,
    "measure": as_measured,
    "constants": partial(choice, known=CONSTANTS),
    "device": partial(text, example="cpu"),
    "against": _place,
    "round_weights": _groups,
    "quantise_activations": _operand,
    "effort": partial(choice, known=tuple(EFFORTS)),
    "bounds": switch,
    "floor": switch,
    "probes": partial(whole, least=0),
    "readouts": lambda value, name: None if value is None else whole(value, name, 0),
    "ball": switch,
    "growth": partial(switch, or_none=True),
    "seed": _seed,
    "fail_on": partial(choice, known=(ERROR, WARNING)),
    "select": _codes,
    "ignore": _codes,
    "allow_partial": switch,
    "exit_zero": switch,
    "tokens_are_text": switch,
    "n_probes": partial(whole, least=1),
    "format": _format,
    "measured": partial(whole, least=0),
    "keep": _share,
}
"""What reads each setting, by its name; given the value and the name."""


def checked_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `check` and `audit` as a report repeats them: plain JSON types.

    **Raises:** `LyapunovError` with a hint for the first that is of the wrong type, out
    of range, or names what there is not; names without a rule are left as they are.
    """
    settings = {
        name: _SETTINGS[name](value, name) if name in _SETTINGS else value
        for name, value in given.items()
    }
    if settings.get("precisions") == [] and settings.get("measure") != NONE:
        raise ArgumentError(
            "precisions is empty: there is nothing to measure",
            hint='precisions=["bf16"]; for exponents alone, check(..., measure="none")',
        )
    return settings
