"""How a result shows itself: in the words of whoever registered some.

Results are data, and what shows them stands above them: `lyapunov` registers its
reports here when it is imported.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


_forms: list[Callable[[], Any]] = []


def show_results(forms: Callable[[], Any]) -> None:
    """Register what shows results: a function that gives `report._shown`, which it may
    import only then."""
    _forms[:] = [forms]


class Shown:
    """Show a result as a table by `print`, as a page in a notebook, and as files.

    A data class, whose fields `schema_version` and `kind` come first in its document.
    """

    def to_dict(self) -> dict[str, Any]:
        """Make plain JSON types; inf and NaN become null beside a `NAME_flag`."""
        fields = plain(self)
        first = [name for name in ("schema_version", "kind") if name in fields]
        return {name: fields[name] for name in dict.fromkeys([*first, *fields])}

    def save(self, path: str | os.PathLike) -> list[Path]:
        """Write it to a file, whole or not at all; returns what was written.

        **Arguments:**

        - `path`: its suffix decides: `.html`, `.md`, `.tex`, `.json`; `.csv`, the rows
          of `to_pandas`; `.pdf`, a page a figure; `.png` or `.svg`, a file a figure,
          with the figure's name behind the file's.

        **Raises:** `OutputError` for any other suffix and where nothing can be written,
        `MissingExtraError` where the libraries of pages and figures are missing.
        """
        return _forms[0]().save(self, Path(path))

    def figures(self) -> dict[str, Any]:
        """Draw the page's figures: by name, each a `matplotlib.figure.Figure`.

        **Raises:** `MissingExtraError` where Matplotlib is not installed.
        """
        return _forms[0]().figures(self)

    def to_pandas(self) -> Any:
        """Make a `pandas.DataFrame`: of a check a row for each sublayer and execution,
        of an audit for each sublayer and run, of a ranking a matrix, of a plan a stage,
        else an exponent.

        **Raises:** `MissingExtraError` where pandas is not installed.
        """
        return _forms[0]().to_pandas(self)

    def __repr__(self) -> str:
        return _forms[0]().as_lines(self) if _forms else object.__repr__(self)

    def __str__(self) -> str:
        return _forms[0]().as_text(self) if _forms else repr(self)

    def _repr_html_(self) -> str | None:
        return _forms[0]().as_html(self) if _forms else None


class Judged(Shown):
    """Hold a verdict."""

    def assert_held(self, fail_on: str = "error") -> None:
        """Raise where the command would not end with 0, whatever `exit_zero` says.

        **Arguments:**

        - `fail_on`: `"error"` or `"warning"`, the lowest severity that fails.

        **Raises:** `AssertionError` with the verdict and the findings that fail;
        `UsageError` for another severity.
        """
        __tracebackhide__ = True  # pytest ends at the line that asserts
        _forms[0]().assert_held(self, fail_on)


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
