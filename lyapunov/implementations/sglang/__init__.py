"""SGLang's operators of Mamba-2 networks, and what is promised of them."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
