"""Whoever runs a network and yields its trace."""

from typing import TYPE_CHECKING

from .._arguments import shown
from .._errors import ArgumentError
from .._load import model_of
from .._token_ids import check_range, integer_tokens
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

    Everything is computed in fp64, whatever `jax_enable_x64` is; operations of your own
    on what comes out are in fp64 inside `with jax.enable_x64(True):` alone.

    **Arguments:**

    - `model`: what `lyapunov.load` returns, or as for `check`.
    - `tokens`: (seq) or (batch, seq), integers.
    - `runner`: `Reference()` (default); `Emulated`, `Transformers` or `MambaSsm` of an
      execution; or a `File`.

    **Raises:** `LyapunovError` with a hint, at once, for a model, tokens or a runner
    that cannot be used.
    """
    demand_flags()
    model = model_of(model)
    tokens = integer_tokens(tokens)
    check_range(tokens, model.config.vocab_size)
    runner = Reference() if runner is None else runner
    if isinstance(runner, type) or not callable(getattr(runner, "trace", None)):
        raise ArgumentError(
            f"the runner is {shown(runner)}",
            hint="such as Reference() or Emulated(execution), of lyapunov.runners",
        )
    return runner.trace(model, tokens)
