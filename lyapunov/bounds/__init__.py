"""How far rounding, rounded weights and perturbations can move a network."""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
