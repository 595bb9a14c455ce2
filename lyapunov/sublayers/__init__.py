"""What a network is made of: the kinds of sublayer, and what each computes."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
