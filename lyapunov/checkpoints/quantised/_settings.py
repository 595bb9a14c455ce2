"""What a configuration says of a quantisation, which anybody may have written."""

from collections.abc import Mapping
from typing import Any

from ..._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ..files._files import listing, quote


ORIGINAL = "check the checkpoint that it was quantised from"


def text_of(settings: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """A setting that is a word.

    **Raises:** `CorruptCheckpointError` where it is none.
    """
    value = settings.get(key, default)
    if value is None and default is not None:
        value = default
    if not isinstance(value, str):
        raise CorruptCheckpointError(
            f"the quantisation's {key} is {quote(value, 40)}, no word",
            hint="take config.json from where the weights come from",
        )
    return value


def count_of(settings: Mapping[str, Any], key: str, default: int) -> int:
    """A setting that is a number of something; -1 is "all" in some.

    **Raises:** `CorruptCheckpointError` where it is none.
    """
    value = settings.get(key, default)
    if value is None:
        value = default
    if type(value) is not int or not -1 <= value <= 2**31:
        raise CorruptCheckpointError(
            f"the quantisation's {key} is {quote(value, 40)}, no plausible number",
            hint="take config.json from where the weights come from",
        )
    return value


def names_of(settings: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    """A setting that is a list of names, under the first of these keys; None is none.

    **Raises:** `CorruptCheckpointError` where it is none.
    """
    for key in keys:
        value = settings.get(key)
        if value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
            raise CorruptCheckpointError(
                f"the quantisation's {key} is no list of names",
                hint="take config.json from where the weights come from",
            )
        return tuple(value)
    return ()


def object_of(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A setting that is an object; empty where there is none.

    **Raises:** `CorruptCheckpointError` where it is something else.
    """
    value = settings.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CorruptCheckpointError(
            f"the quantisation's {key} is no object",
            hint="take config.json from where the weights come from",
        )
    return value


def unsupported(what: str, given: object, covered: tuple[str, ...]) -> Exception:
    """The error for a kind that no reader is there for."""
    return UnsupportedCheckpointError(
        f"{what} {quote(given)}, which is not covered (covered: {', '.join(covered)})",
        hint=ORIGINAL,
    )


def contradiction(tensors: list[str], made: str, told: str) -> Exception:
    """The error for a configuration of one layout and tensors of another."""
    return CorruptCheckpointError(
        f"the configuration says {told}; {listing(tensors)} are as {made} stores them",
        hint="take config.json and weights from the same place",
    )
