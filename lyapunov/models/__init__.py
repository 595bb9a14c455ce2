"""Networks as sublayers: parameters are read when they are needed, a layer at a time."""

from ._language_model import Model, Sublayer


__all__ = ["Model", "Sublayer"]
