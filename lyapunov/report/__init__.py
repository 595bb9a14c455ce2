"""A report as text: terminal table, JSON, Markdown, one self-contained HTML page.

Everything here shows; nothing here computes.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
