"""Stability and rounding of state-space models.

Names are loaded when they are asked for, so that `lyapunov-check --help` does not
wait for JAX; `__init__.pyi` is the list of them.
"""

import lazy_loader

from ._version import __version__ as __version__
from ._xla import set_flags
from .results._shown import show_results


def _as_text(result: object) -> str:
    from .report._shown import as_text

    return as_text(result)


def _as_html(result: object) -> str:
    from .report._shown import as_html

    return as_html(result)


set_flags()
# results stand below what shows them
show_results(text=_as_text, html=_as_html)
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*__all__, "__version__"]
