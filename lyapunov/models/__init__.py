"""A network as a list of sublayers whose parameters are read when they are needed."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
