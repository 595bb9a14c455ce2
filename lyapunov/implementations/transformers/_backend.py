"""Which code transformers gives a delta rule to: its own, or a package's kernels.

It decides when its modules are imported (`integrations/hub_kernels.py` of 5.24): fla's
functions where that can be imported, its own torch code elsewhere.
"""

import importlib.util
import inspect
import os
import sys
from typing import Any

from ..._errors import UsageError


FUNCTIONS = (
    "torch_chunk_gated_delta_rule",
    "torch_recurrent_gated_delta_rule",
    "chunk_kimi_delta_attention",
    "recurrent_kimi_delta_attention",
)
OTHERS = ("flash_qla", "flash_kda", "tilelang")
"""Packages that fla hands its work to where they are installed."""


def backends(network: Any) -> set[str]:
    """Packages whose functions the delta rules of a network are: `torch`, `fla`."""
    module = sys.modules[type(network).__module__]
    found = set()
    for name in FUNCTIONS:
        function = getattr(module, name, None)
        if function is not None:
            found.add(_package_of(function))
    return found


def refuse_other_backend(network: Any, wanted: str) -> None:
    """Refuse a network whose delta rules run in something else than is declared.

    **Arguments:**

    - `wanted`: `torch` or `fla`.

    **Raises:** `UsageError` that names what they run in.
    """
    found = backends(network)
    if wanted == "fla" and found:
        installed = [x for x in OTHERS if importlib.util.find_spec(x) is not None]
        if installed and os.environ.get("FLA_DISABLE_BACKEND_DISPATCH") != "1":
            raise UsageError(
                f"fla may hand its work to {', '.join(installed)}, which no execution "
                "here declares",
                hint="FLA_DISABLE_BACKEND_DISPATCH=1 keeps it in its own kernels",
            )
    if found - {wanted}:
        other = ", ".join(sorted(found - {wanted}))
        hint = "--measure fla" if "fla" in found else "pip install fla-core"
        raise UsageError(
            f"transformers runs this network's delta rules in {other}, not in {wanted}",
            hint=hint,
        )


def _package_of(function: Any) -> str:
    """The package of the function behind transformers' wrapper, or `torch`."""
    held = inspect.getclosurevars(inspect.unwrap(function, stop=_chooses)).nonlocals
    chosen = held.get("implementation", function)
    package = inspect.unwrap(chosen).__module__.partition(".")[0]
    return "torch" if package == "transformers" else package


def _chooses(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and "implementation" in code.co_freevars
