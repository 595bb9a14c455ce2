"""Arguments from Python, refused as the command refuses its options.

Each function takes a value and the argument's name, and gives the value back in the
type that the work expects. What is wrong is an `ArgumentError` that says what was
given and what to give; nothing here loads JAX.
"""

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

from ._errors import ArgumentError


def shown(value: Any) -> str:
    """The value as it is typed, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def words(value: Any, name: str, example: str) -> tuple[str, ...]:
    """Strings in order, each once; one string is one of them, None is none.

    **Raises:** `ArgumentError` for anything that is not a sequence of strings.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        value = (value,)
    found = list(value) if _is_sequence(value) else [value]
    if not all(isinstance(word, str) for word in found):
        raise ArgumentError(
            f"{name} is {shown(value)}",
            hint=f"strings, as {name}={example}",
        )
    return tuple(dict.fromkeys(found))


def choice(value: Any, name: str, known: Sequence[str]) -> str:
    """One of the known words.

    **Raises:** `ArgumentError` that lists them.
    """
    if not isinstance(value, str) or value not in known:
        raise ArgumentError(
            f"{name} is {shown(value)}", hint=f"one of {', '.join(known)}"
        )
    return value


def text(value: Any, name: str, example: str) -> str | None:
    """A string, or None.

    **Raises:** `ArgumentError` for another type, or an empty string.
    """
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ArgumentError(f"{name} is {shown(value)}", hint=f"as {name}={example!r}")
    return value


def whole(value: Any, name: str, least: int) -> int:
    """A whole number, `least` or more.

    **Raises:** `ArgumentError` for one below, and for what is no whole number: True,
    2.0 and "2" are none.
    """
    number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not number or value < least:
        raise ArgumentError(
            f"{name} is {shown(value)}", hint=f"a whole number, {least} or more"
        )
    return int(value)


def positive(value: Any, name: str, most: float = math.inf) -> float:
    """A finite number above 0, `most` or less.

    **Raises:** `ArgumentError`.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number = float(value) if real else math.nan
    if not (0 < number <= most and math.isfinite(number)):
        upto = "" if most == math.inf else f", at most {most:g}"
        raise ArgumentError(f"{name} is {shown(value)}", hint=f"a number above 0{upto}")
    return float(value)


def switch(value: Any, name: str, *, or_none: bool = False) -> Any:
    """True or False; None as well, where that is a choice of its own.

    **Raises:** `ArgumentError` for anything else: 0, 1 and "no" are no answers.
    """
    if value is None and or_none:
        return None
    if type(value).__name__ not in ("bool", "bool_"):
        also = ", or None" if or_none else ""
        raise ArgumentError(
            f"{name} is {shown(value)}", hint=f"{name}=True or {name}=False{also}"
        )
    return bool(value)


def sublayer_numbers(value: Any) -> tuple[int, ...] | None:
    """Numbers of sublayers, ascending, each once; None is all of them.

    **Raises:** `ArgumentError` for anything but whole numbers from 0 on, or none.
    """
    if value is None:
        return None
    hint = "whole numbers in order, as layers=[0, 3]; leave it out for all"
    if not _is_sequence(value) or isinstance(value, str | bytes):
        raise ArgumentError(f"layers is {shown(value)}", hint=hint)
    found = list(value)
    for one in found:
        number = isinstance(one, numbers.Integral) and not isinstance(one, bool)
        if not number or one < 0:
            raise ArgumentError(f"layers holds {shown(one)}", hint=hint)
    if not found:
        raise ArgumentError("layers is empty: there is nothing to check", hint=hint)
    return tuple(sorted({int(one) for one in found}))


def progress_or_none(value: Any) -> Any:
    """An object that is told how far the work is, or None.

    **Raises:** `ArgumentError` for one without `start` and `advance`.
    """
    missing = [
        name
        for name in ("start", "advance")
        if not callable(getattr(value, name, None))
    ]
    if value is not None and missing:
        raise ArgumentError(
            f"progress is {shown(value)}, which has no {' and no '.join(missing)}",
            hint="an object with start(total, what), advance(n, what) and close()",
        )
    return value


def _is_sequence(value: Any) -> bool:
    """Whether it has an order and an end: a list, a tuple, a range, an array."""
    return (
        isinstance(value, Iterable)
        and hasattr(value, "__len__")
        and not isinstance(value, dict | set | frozenset)
    )
