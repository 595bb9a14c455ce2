"""What is asked of a model: a check, an audit, changed weights, a plan, training."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
