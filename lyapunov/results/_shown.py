"""How a result shows itself: in the words of whoever registered some.

Results are data, and what shows them stands above them: `lyapunov` registers its
reports here when it is imported.
"""

from collections.abc import Callable
from typing import Any


_forms: dict[str, Callable[[Any], str]] = {}


def show_results(*, text: Callable[[Any], str], html: Callable[[Any], str]) -> None:
    """Register what `print(result)` and a notebook show of a result."""
    _forms.update(text=text, html=html)


class Shown:
    """A result that `print` shows as a table and a notebook as a page."""

    def __str__(self) -> str:
        return _forms["text"](self) if "text" in _forms else repr(self)

    def _repr_html_(self) -> str | None:
        return _forms["html"](self) if "html" in _forms else None
