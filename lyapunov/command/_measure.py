"""What `--measure` takes: a name, and behind that of a server its flags."""

from typing import Any

import click

from lyapunov.implementations._registry import is_recorded, measure_names, parted


class MeasureChoice(click.Choice):
    """Names that a check can measure with; what is registered late counts as well."""

    def __init__(self):
        super().__init__(measure_names())

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The name that was given.

        **Raises:** `click.BadParameter` for a name that there is not.
        """
        self.choices = measure_names()
        if value not in self.choices and is_recorded(value):
            self.fail(f"{value} is a dump: --audit {value}", param, ctx)
        name, flags = parted(value)
        name = super().convert(name, param, ctx)
        return f"{name} {flags}" if flags else name
