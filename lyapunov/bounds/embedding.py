"""The embedding of tokens as an execution may have it, in front of all sublayers."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from .._devices import over_batch
from ..arithmetic import Bounded
from ..arithmetic._programs import program
from ..formats import FP32
from ..implementations import Execution
from ..models import Model
from ..sublayers.norm import Norm, normalise
from .passes import Interpreter, Numbers, numbers_of, without_error


def embedded(
    model: Model,
    tokens: Int[np.ndarray, "batch seq"],
    execution: Execution,
    *,
    stored: bool = False,
) -> Bounded:
    """Rows of the embedding, exactly unless they are normalised or multiplied.

    **Arguments:**

    - `stored`: with the rounding to the format of the embedding, which the first
      sublayer's bound has by itself.
    """
    norm = model.embedding_norm(execution)
    if norm is not None:
        rows = model.embedding_rows(tokens, execution)
        interpreter = Interpreter(execution, np.shape(tokens)[-1], True)
        found = _normed(interpreter, numbers_of(execution), rows, norm)
    else:
        found = without_error(model.embed(tokens, execution))
        if model.config.embedding_multiplier == 1.0:
            return found
        # the multiplier in fp32
        found = Bounded(found.value, FP32.unit_roundoff * jnp.abs(found.value))
    if not stored:
        return found
    form = execution.sites["embedding"]
    rounding = form.unit_roundoff * (found.magnitude + form.smallest_normal)
    return Bounded(found.value, found.error + rounding)


@program
def _normed(interpreter: Interpreter, numbers: Numbers, rows, norm: Norm):
    one = lambda rows: normalise(interpreter(*numbers), rows, norm, "embedding_norm")
    return over_batch(one, rows)
