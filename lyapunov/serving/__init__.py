"""Dumps of a live server: what vLLM and SGLang did with one request, for an audit.

Nothing here loads JAX, torch or a server before a hook is put on a model, and what is
written needs none of them: a worker of a server writes it. The facts about vLLM were
read in 0.33.0, those about SGLang in 0.5.23.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
