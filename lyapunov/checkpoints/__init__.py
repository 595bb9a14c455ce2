"""Find, read and recognise a checkpoint, one layer at a time; runs nothing in it."""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ._architectures import list_architectures as list_architectures
    from ._checkpoint import (
        Checkpoint as Checkpoint,
        open_checkpoint as open_checkpoint,
    )
    from ._layouts import recognise as recognise
    from ._network import NetworkLayout as NetworkLayout


__all__ = [
    "Checkpoint",
    "NetworkLayout",
    "list_architectures",
    "open_checkpoint",
    "recognise",
]

_HOMES = {
    "Checkpoint": "._checkpoint",
    "open_checkpoint": "._checkpoint",
    "list_architectures": "._architectures",
    "recognise": "._layouts",
    "NetworkLayout": "._network",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
