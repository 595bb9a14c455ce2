"""Whoever runs a network and yields its trace."""

from typing import TYPE_CHECKING

import jax
import numpy as np

from .._trace import Trace
from .._xla import demand_flags
from ._dump import write_dump
from .emulated import Emulated
from .file import File
from .reference import Reference


if TYPE_CHECKING:
    from .mamba_ssm import MambaSsm as MambaSsm
    from .transformers import Transformers as Transformers
    from .transformers_network import TransformersNetwork as TransformersNetwork


__all__ = [
    "Emulated",
    "File",
    "MambaSsm",
    "Reference",
    "Transformers",
    "TransformersNetwork",
    "trace",
    "write_dump",
]


def __getattr__(name):
    # torch is imported by those who measure with it
    if name == "MambaSsm":
        from .mamba_ssm import MambaSsm

        return MambaSsm
    if name == "Transformers":
        from .transformers import Transformers

        return Transformers
    if name == "TransformersNetwork":
        from .transformers_network import TransformersNetwork

        return TransformersNetwork
    raise AttributeError(name)


def trace(model, tokens, *, runner=None) -> Trace:
    """What each sublayer did: one record a sublayer, then the head.

    **Arguments:**

    - `model`: what `lyapunov.load` returns.
    - `tokens`: (seq) or (batch, seq), integers.
    - `runner`: `Reference()` (default); `Emulated`, `Transformers` or `MambaSsm` of an
      execution; or a `File`.
    """
    demand_flags()
    tokens = np.atleast_2d(np.asarray(tokens))
    runner = Reference() if runner is None else runner
    records = runner.trace(model, tokens)
    while True:
        # fp64 is for the runner alone: between records the caller's setting holds
        with jax.enable_x64(True):
            record = next(records, None)
        if record is None:
            return
        yield record
