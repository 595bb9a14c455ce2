"""Feed-forward sublayers: plain, gated, and mixtures of experts."""

import equinox as eqx
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from .norm import Norm, normalise


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu_squared")


def activate(at: AbstractArithmetic, x, name: str):
    """The activation of that name."""
    if name == "silu":
        return at.silu(x)
    if name == "relu_squared":
        return at.relu_squared(x)
    return at.gelu(x, tanh=name == "gelu_tanh")


class MlpParameters(eqx.Module):
    """One sublayer: the norm and the MLP after it."""

    norm: Norm | None
    up: Weight
    """(d_hidden, d_model)."""
    up_bias: Float[Array, " d_hidden"] | None
    gate: Weight | None
    """(d_hidden, d_model); None: no gate, the activation is on `up`."""
    gate_bias: Float[Array, " d_hidden"] | None
    down: Weight
    """(d_model, d_hidden)."""
    down_bias: Float[Array, " d_model"] | None
    activation: str = eqx.field(static=True)
    gate_multiplier: float = eqx.field(static=True, default=1.0)
    down_multiplier: float = eqx.field(static=True, default=1.0)

    def initial_state(self):
        """Nothing is carried."""
        return


def mlp(at: AbstractArithmetic, residual, p: MlpParameters, start=None):
    """One sublayer over a sequence: (seq, d_model) to (seq, d_model)."""
    x = normalise(at, at.store("norm_input", residual), p.norm)
    return at.store("out", feed_forward(at, x, p)), start


def feed_forward(at: AbstractArithmetic, x, p: MlpParameters):
    """The MLP on a normalised input."""
    up = at.store("up", at.matmul(x, p.up, p.up_bias))
    if p.gate is None:
        hidden = at.store("activated", activate(at, up, p.activation))
    else:
        gate = at.store("gate", at.matmul(x, p.gate, p.gate_bias))
        if p.gate_multiplier != 1.0:
            gate = at.store("gate_scaled", at.multiply(gate, p.gate_multiplier))
        gate = at.store("activated", activate(at, gate, p.activation))
        hidden = at.store("hidden", at.multiply(up, gate, alone=at.stores("activated")))
    out = at.matmul(hidden, p.down, p.down_bias)
    if p.down_multiplier != 1.0:
        out = at.multiply(at.store("down", out), p.down_multiplier)
    return out
