"""Stability and rounding of state-space models.

Names are loaded when they are asked for, so that `lyapunov-check --help` does not
wait for JAX; `__init__.pyi` is the list of them.
"""

import lazy_loader

from ._xla import set_flags
from .results._shown import show_results


def _forms() -> object:
    from .report import _shown

    return _shown


set_flags()
# results stand below what shows them
show_results(_forms)
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
