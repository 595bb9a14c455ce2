"""Whoever runs a network and yields its trace."""

from typing import TYPE_CHECKING

from .emulated import Emulated
from .reference import Reference


if TYPE_CHECKING:
    from .transformers import Transformers as Transformers


__all__ = ["Emulated", "Reference", "Transformers"]


def __getattr__(name):
    # torch and transformers are imported by those who measure with them
    if name == "Transformers":
        from .transformers import Transformers

        return Transformers
    raise AttributeError(name)
