"""Whoever runs a network and yields its trace."""

from typing import TYPE_CHECKING

from .emulated import Emulated
from .reference import Reference


if TYPE_CHECKING:
    from .mamba_ssm import MambaSsm as MambaSsm
    from .transformers import Transformers as Transformers


__all__ = ["Emulated", "MambaSsm", "Reference", "Transformers"]


def __getattr__(name):
    # torch is imported by those who measure with it
    if name == "MambaSsm":
        from .mamba_ssm import MambaSsm

        return MambaSsm
    if name == "Transformers":
        from .transformers import Transformers

        return Transformers
    raise AttributeError(name)
