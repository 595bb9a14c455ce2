"""How a result shows itself: in the words of whoever registered some.

Results are data, and what shows them stands above them: `lyapunov` registers its
reports here when it is imported.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any


_forms: dict[str, Callable[[Any], str]] = {}


def show_results(*, text: Callable[[Any], str], html: Callable[[Any], str]) -> None:
    """Register what `print(result)` and a notebook show of a result."""
    _forms.update(text=text, html=html)


class Shown:
    """Show a result as a table by `print`, and as a page in a notebook.

    A data class, whose fields `schema_version` and `kind` come first in its document.
    """

    def to_dict(self) -> dict[str, Any]:
        """Make plain JSON types; inf and NaN become null beside a `NAME_flag`."""
        fields = plain(self)
        first = [name for name in ("schema_version", "kind") if name in fields]
        return {name: fields[name] for name in dict.fromkeys([*first, *fields])}

    def __str__(self) -> str:
        return _forms["text"](self) if "text" in _forms else repr(self)

    def _repr_html_(self) -> str | None:
        return _forms["html"](self) if "html" in _forms else None


def plain(value: Any) -> Any:
    """Reduce to JSON types. Non-finite numbers become null; a sibling key
    `NAME_flag` says which of nan, inf and -inf it was."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, item in value.items():
            found[key] = plain(item)
            several = isinstance(item, list | tuple)
            flags = [_flag(x) for x in item] if several else _flag(item)
            if any(flags or ()):
                found[f"{key}_flag"] = flags
        return found
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    value = _number(value)
    return None if _flag(value) else value


def _number(value: Any) -> Any:
    """Python's own number of an array's, anything else as it is."""
    return value.item() if callable(getattr(value, "item", None)) else value


def _flag(value: Any) -> str | None:
    """Which of nan, inf and -inf a number is; None for any other and what is none."""
    value = _number(value)
    if not isinstance(value, float) or math.isfinite(value):
        return None
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
