"""Whoever runs a network and yields its trace."""

from .emulated import Emulated
from .reference import Reference


__all__ = ["Emulated", "Reference", "Transformers"]


def __getattr__(name):
    # torch and transformers are imported by those who measure with them
    if name == "Transformers":
        from .transformers import Transformers

        return Transformers
    raise AttributeError(name)
