"""Where a report was made: versions, machine, date, and the command that made it."""

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from ..implementations import IMPLEMENTATIONS


OURS = {"jax": "jax", "jaxlib": "jaxlib", "numpy": "numpy"}
"""What the reference and the bounds are computed with."""


def distributions() -> dict[str, str]:
    """What decides what is measured, and the distribution that has it."""
    found = dict(OURS)
    for implementation in IMPLEMENTATIONS.values():
        found |= implementation.libraries
    return found


def environment() -> dict[str, Any]:
    """What a report says of where it was made; all of it text.

    Versions are those that are installed: nothing is imported for them, and what is not
    installed has no entry. `command` is None: the command puts its line there.
    """
    device = jnp.zeros(()).devices().pop()
    found: dict[str, Any] = {"python": platform.python_version()}
    for name, distribution in distributions().items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    found["jax"] = jax.__version__
    return found | {
        "device": str(getattr(device, "device_kind", device)),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": None,
    }
