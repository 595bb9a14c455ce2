"""The implementations there are: one line each, and the names that all else asks for.

Nothing here loads JAX: the command's choices and error texts come from these names.
"""

import os
from typing import Any

from .._arguments import shown
from .._errors import UsageError
from ._implementation import AbstractImplementation
from .dump.implementation import DumpImplementation
from .emulated.implementation import EmulatedImplementation
from .fla.implementation import FlaImplementation
from .mamba_ssm.implementation import MambaSsmImplementation
from .sglang.implementation import SglangEmulatedImplementation, SglangImplementation
from .transformers.implementation import (
    TransformersCudaImplementation,
    TransformersImplementation,
)
from .vllm.implementation import VllmEmulatedImplementation, VllmImplementation


NONE = "none"
"""As `--measure`: nothing runs in a lower precision."""

IMPLEMENTATIONS: dict[str, AbstractImplementation] = {
    one.name: one
    for one in (
        EmulatedImplementation(),
        MambaSsmImplementation(),
        TransformersImplementation(),
        TransformersCudaImplementation(),
        FlaImplementation(),
        VllmImplementation(),
        VllmEmulatedImplementation(),
        SglangImplementation(),
        SglangEmulatedImplementation(),
        DumpImplementation(),
    )
}
"""By the name that users write; what is entered here is known everywhere."""


def measure_names() -> tuple[str, ...]:
    """What a check can measure with, `none` last."""
    return (*(one.name for one in IMPLEMENTATIONS.values() if one.measures), NONE)


def source_names() -> tuple[str, ...]:
    """Implementations that an audit can run here."""
    return tuple(
        one.name for one in IMPLEMENTATIONS.values() if one.ways and not one.suffixes
    )


def flow_names() -> tuple[str, ...]:
    """Implementations whose flow a dump may follow."""
    return tuple(o.name for o in IMPLEMENTATIONS.values() if o.followed_by_dumps)


def followed(name: object) -> bool:
    """Whether a dump may say that it follows this flow, flags behind it or none.

    **Raises:** `UsageError` for flags that its server does not have.
    """
    if not isinstance(name, str) or parted(name)[0] not in flow_names():
        return False
    implementation_named(name)
    return True


def gpu_names() -> tuple[str, ...]:
    """Implementations that need a GPU."""
    return tuple(one.name for one in IMPLEMENTATIONS.values() if one.needs_gpu)


def reproducible_names() -> tuple[str, ...]:
    """Implementations whose bugs a script without this tool can show."""
    return tuple(one.name for one in IMPLEMENTATIONS.values() if one.reproducible)


def sources_hint() -> str:
    """What the source of an audit may be, for people."""
    files = " or ".join(f"a {s}" for o in IMPLEMENTATIONS.values() for s in o.suffixes)
    return f"one of {', '.join(source_names())}, or the path of a dump, {files}"


def implementation_named(name: str) -> AbstractImplementation:
    """The implementation of that name, as started with the flags behind it if any.

    **Arguments:**

    - `name`: such as `emulated`, or `vllm_emulated --enforce-eager`.

    **Raises:** `UsageError` that says which there are.
    """
    first, flags = parted(name) if isinstance(name, str) else ("", "")
    found = IMPLEMENTATIONS.get(first)
    if found is None:
        raise UsageError(
            f"no implementation is called {shown(name)}",
            hint=f"one of {', '.join(IMPLEMENTATIONS)}",
        )
    return found.launched(flags) if flags else found


def parted(name: str) -> tuple[str, str]:
    """A name, and the flags of a server behind it."""
    first, _, flags = name.partition(" ")
    return (first, flags.strip()) if flags.strip() else (name, "")


def measuring(name: str) -> AbstractImplementation | None:
    """What a check measures with, None for `none`.

    **Raises:** `UsageError` for what there is not, or what measures nothing.
    """
    if not isinstance(name, str) or parted(name)[0] not in measure_names():
        raise UsageError(
            f"cannot measure with {shown(name)}",
            hint=f"one of {', '.join(measure_names())}",
        )
    return None if name == NONE else implementation_named(name)


def as_measured(value: Any, name: str) -> str:
    """What a check measures with, as it was written.

    **Raises:** `UsageError` as `measuring`, about a setting of that name.
    """
    if not isinstance(value, str):
        raise UsageError(
            f"{name} is {shown(value)}", hint=f"one of {', '.join(measure_names())}"
        )
    measuring(value)
    return value


def is_recorded(source: str | os.PathLike) -> bool:
    """Whether the source of an audit is a file of runs that were made elsewhere."""
    text = os.fsdecode(os.fspath(source))
    return parted(text)[0] not in source_names() and _of_suffix(text) is not None


def audited(source: str | os.PathLike) -> AbstractImplementation:
    """The implementation that runs, or has recorded, what an audit looks at.

    **Raises:** `UsageError` for what is neither a name nor the path of a dump.
    """
    text = os.fsdecode(os.fspath(source))
    if parted(text)[0] in source_names():
        return implementation_named(text)
    found = _of_suffix(text)
    if found is None:
        raise UsageError(f"cannot audit {shown(text)}", hint=sources_hint())
    return found


def _of_suffix(text: str) -> Any:
    for one in IMPLEMENTATIONS.values():
        if one.suffixes and text.lower().endswith(one.suffixes):
            return one
    return None
