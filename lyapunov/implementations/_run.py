"""A trace by whoever is asked to run the network."""

from .._arguments import shown
from .._errors import ArgumentError
from .._xla import demand_flags
from ..models._load import model_of
from ..models._token_ids import check_range, integer_tokens
from ._reference import Reference
from ._trace import Trace


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
            hint="such as Reference() or Emulated(execution) of "
            "lyapunov.implementations",
        )
    return runner.trace(model, tokens)
