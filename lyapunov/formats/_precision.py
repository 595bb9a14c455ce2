"""A precision's name, taken apart once: a format, and what is special about it.

Plain data, so that the command and the findings can read a name without JAX.
"""

import functools
from dataclasses import dataclass

from .._errors import UsageError
from ._table import FORMAT_TABLE, INTEGER_TABLE, PRECISIONS, STATE_PRECISIONS


@dataclass(frozen=True)
class Precision:
    """Name what a program runs in, or what it holds a recurrent state in.

    `str()` gives the whole name back, as `bf16-amp` or `fp8_e4m3-scaled-stochastic`.

    **Arguments:**

    - `format`: such as `bf16`.
    - `variant`: of a program, `cast` or `amp`; of a state, `scaled`, `stochastic` or
        `scaled-stochastic`; else empty.
    """

    format: str
    variant: str = ""

    @classmethod
    def named(cls, name: "str | Precision") -> "Precision":
        """Take a name apart.

        **Raises:** `UsageError` for one that stands for nothing here.
        """
        return name if isinstance(name, Precision) else _named(name)

    @property
    def cast(self) -> bool:
        """Tell whether A_log and D are cast as well."""
        return self.variant == "cast"

    @property
    def autocast(self) -> bool:
        """Tell whether weights stay fp32 and products are cast (torch's autocast)."""
        return self.variant == "amp"

    @property
    def scaled(self) -> bool:
        """Tell whether a channel's states share a scale."""
        return self.variant in ("scaled", "scaled-stochastic")

    @property
    def stochastic(self) -> bool:
        """Tell whether a state is rounded up or down by chance."""
        return self.variant in ("stochastic", "scaled-stochastic")

    def __str__(self) -> str:
        return f"{self.format}-{self.variant}" if self.variant else self.format


_KNOWN = frozenset((*FORMAT_TABLE, *INTEGER_TABLE, *PRECISIONS, *STATE_PRECISIONS))


@functools.lru_cache(maxsize=64)
def _named(name: str) -> Precision:
    if name not in _KNOWN:
        raise UsageError(
            f"no precision is called {name!r}",
            hint=f"to run in: {', '.join(PRECISIONS)}; see --state-precision for a "
            "state's",
        )
    form, _, variant = name.partition("-")
    return Precision(form, variant)
