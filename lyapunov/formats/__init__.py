"""Formats of stored numbers: what each can hold, and rounding to it."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
