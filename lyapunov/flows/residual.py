"""The residual stream around a sublayer, and the head at its end."""

import equinox as eqx
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight


def sublayer(at: AbstractArithmetic, flow, residual, hidden, p, start):
    """Add what the sublayer before put out, then run this one.

    **Arguments:**

    - `flow`: `(at, residual, p, start) -> (output, after)`, such as `mamba1`.
    - `residual`, `hidden`: (seq, d_model), the stream and the output before it.

    **Returns:** the stream (seq, d_model), the sublayer's output and its state.
    """
    residual = at.store("residual", at.add(residual, hidden, alone=True))
    output, after = flow(at, residual, p, start)
    return residual, output, after


class FinalNorm(eqx.Module):
    """The norm in front of the head."""

    weight: Float[Array, " d_model"]
    epsilon: float = eqx.field(static=True)


def final_norm(at: AbstractArithmetic, residual, hidden, p: FinalNorm):
    """The normalised stream (seq, d_model) that the head reads."""
    residual = at.store("residual", at.add(residual, hidden, alone=True))
    hat = at.store("norm_f_hat", at.rms_normalise(residual, p.epsilon))
    return at.store("norm_f", at.multiply(hat, p.weight, alone=at.stores("norm_f_hat")))


def logits(at: AbstractArithmetic, x, rows: Weight):
    """Logits (seq, rows) of a slice of the vocabulary."""
    return at.store("logits", at.matmul(x, rows))
