"""Networks as sublayers; parameters are read when needed, a layer at a time."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ._language_model import Model as Model, Sublayer as Sublayer


__all__ = ["Model", "Sublayer"]


def __getattr__(name: str):
    # the configs live here too, and reading a checkpoint's needs no JAX
    if name in __all__:
        from . import _language_model

        return getattr(_language_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
