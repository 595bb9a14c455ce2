"""A report read back from its file, to be shown again.

Anybody may have written the file: its size, every field and every text is looked at,
and a field that this version does not know is refused and not left out.
"""

import contextlib
import dataclasses
import functools
import math
import types
import typing
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lyapunov._errors import LyapunovError, ReportError
from lyapunov._version import __version__
from lyapunov.findings._baseline_file import no_report, read_json
from lyapunov.results._audit import AuditReport
from lyapunov.results._check import SCHEMA_VERSION, Report
from lyapunov.results._ranking import WeightRanking


MOST_NESTED = 16
LARGEST_WHOLE = 2**63
TURNED = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""Signs that turn the direction of text, so that it reads otherwise than it is."""
FLAGS = ("nan", "inf", "-inf")


def read_report(path: str | Path) -> Report | AuditReport | WeightRanking:
    """Read the report that `save`, `-o` or `--json` wrote.

    **Raises:** `ReportError` for anything else, for several reports in one file, and
    for a report of another schema.
    """
    found, _ = read_results(Path(path))
    if len(found) != 1 or isinstance(found[0], dict):
        raise ReportError(
            f"{path} has no report, or several", hint="write one file a checkpoint"
        )
    return found[0]


def read_results(path: Path) -> tuple[list[Any], str]:
    """Read all reports of a file, and errors of checkpoints that have none.

    **Returns:**

    Reports and `{"checkpoint": ..., "error": ...}`, and the version that wrote them.

    **Raises:** `ReportError`, as `read_report` does.
    """
    document = read_json(path, "report")
    try:
        _check_text(document)
        if not isinstance(document, dict):
            raise _Wrong("the document is not an object")
        several = document.get("reports")
        entries = [document] if several is None else several
        if not isinstance(entries, list) or not entries:
            raise _Wrong("reports is not a list of some")
        results = [_result(entry) for entry in entries]
    except _Wrong as wrong:
        raise no_report(path, str(wrong), ReportError) from None
    tools = [one.tool for one in results if not isinstance(one, dict)]
    return results, str(tools[0].get("version", "?")) if tools else __version__


@contextlib.contextmanager
def showing(path: Path) -> Iterator[None]:
    """**Raises:** `ReportError` where what was read is whole and still says nothing
    that could be shown: a histogram without edges, say."""
    try:
        yield
    except (LyapunovError, OSError):
        raise
    except Exception as error:
        why = f"it cannot be shown ({type(error).__name__}: {error!s:.80})"
        raise no_report(path, why, ReportError) from error


class _Wrong(Exception):
    """What is no report, in words."""


def _check_text(value: Any, depth: int = 0) -> None:
    """Nothing that would move a cursor, hide text, or nest without end."""
    if depth > MOST_NESTED:
        raise _Wrong(f"it nests deeper than {MOST_NESTED}")
    if isinstance(value, str):
        for sign in value:
            control = unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t"
            if control or sign in TURNED:
                raise _Wrong(f"a text holds the sign {sign!a}")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_text(name, depth + 1)
            _check_text(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_text(item, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _Wrong("a number is not finite and has no flag")
    elif isinstance(value, int) and abs(value) >= LARGEST_WHOLE:
        raise _Wrong("a whole number is too large")


def _result(entry: Any) -> Any:
    if not isinstance(entry, dict):
        raise _Wrong("a report is not an object")
    if "error" in entry:
        told = {"checkpoint": dict[str, str], "error": dict[str, str]}
        found = {name: _made(of, entry.get(name), name) for name, of in told.items()}
        if not {"code", "message", "hint"} <= set(found["error"]):
            raise _Wrong("error has no code, message and hint")
        if "source" not in found["checkpoint"]:
            raise _Wrong("checkpoint has no source")
        return found
    if entry.get("schema_version") != SCHEMA_VERSION:
        raise _Wrong(
            f"schema_version is {entry.get('schema_version')!r:.20}, and this is "
            f"lyapunov-check {__version__}, which reads {SCHEMA_VERSION}"
        )
    kinds = {None: Report, "audit": AuditReport, "ranking": WeightRanking}
    if not isinstance(entry.get("kind"), str | None) or entry.get("kind") not in kinds:
        raise _Wrong(
            f"its kind is {entry['kind']!r:.20}, neither a check, an audit nor "
            "a ranking"
        )
    return _made(kinds[entry.get("kind")], entry, "")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _made(kind: Any, value: Any, place: str) -> Any:
    """A value of the type that a field has.

    **Raises:** `_Wrong` with its place where it is of another.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _instance(typing.cast(type, kind), _of_kind(dict, value, place), place)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        wrong = None
        for one in sorted(arguments, key=lambda one: one is not type(None)):
            try:
                return _made(one, value, place)
            except _Wrong as error:
                wrong = error
        raise wrong or _Wrong(place)
    if origin is list:
        (of,) = arguments
        items = _of_kind(list, value, place)
        return [_made(of, item, f"{place}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        items = _unflagged(_of_kind(dict, value, place), place)
        of = arguments[1]
        return {key: _made(of, item, f"{place}.{key}") for key, item in items.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    return _of_kind(kind, value, place)


def _of_kind(kind: type, value: Any, place: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = "null" if kind is type(None) else kind.__name__
        raise _Wrong(f"{place.lstrip('.') or 'a report'} is not of type {wanted}")
    return value


def _instance(kind: type, value: Mapping[str, Any], place: str) -> Any:
    given, hints = _unflagged(value, place), _hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = set(given) - set(fields)
    if unknown:
        raise _Wrong(
            f"{place.lstrip('.') or 'it'} has a field {min(unknown)!r:.40}, which "
            f"version {__version__} does not know: is it from a newer one?"
        )
    found = {
        name: _made(hints[name], item, f"{place}.{name}")
        for name, item in given.items()
        if fields[name].init
    }
    nothing = dataclasses.MISSING
    for name, field in fields.items():
        needed = field.default is nothing and field.default_factory is nothing
        if field.init and needed and name not in found:
            raise _Wrong(f"{f'{place}.{name}'.lstrip('.')} is missing")
    return kind(**found)


def _unflagged(value: Mapping[str, Any], place: str) -> dict[str, Any]:
    """inf and NaN where null has a flag beside it, and no flags."""
    found = dict(value)
    for name in value:
        base = name.removesuffix("_flag")
        if base == name or base not in value:
            continue
        flag, item = found.pop(name), value[base]
        if isinstance(flag, list) and isinstance(item, list) and len(flag) == len(item):
            pairs = zip(item, flag, strict=True)
            found[base] = [_number(x, f, f"{place}.{name}") for x, f in pairs]
        else:
            found[base] = _number(item, flag, f"{place}.{name}")
    return found


def _number(value: Any, flag: Any, place: str) -> Any:
    if flag is None:
        return value
    if value is not None or flag not in FLAGS:
        raise _Wrong(f"{place.lstrip('.')} is none of {', '.join(FLAGS)}")
    return float(flag)
