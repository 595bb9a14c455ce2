"""Feed-forward sublayers, plain and gated."""

import math

import equinox as eqx
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from .norm import Norm, normalise, scaled


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "gelu_new", "relu_squared")


def activate(at: AbstractArithmetic, x, name: str, site: str):
    """Compute the activation of that name and store it at the site.

    `gelu_new` is `gelu_tanh` written out in operations, of which each may be stored.
    """
    if name == "silu":
        return at.store(site, at.silu(x))
    if name == "relu_squared":
        return at.store(site, at.relu_squared(x))
    if name == "gelu_new" and at.stores(f"{site}_cube"):
        return at.store(site, _gelu_new(at, x, site))
    return at.store(site, at.gelu(x, tanh=name != "gelu"))


def _gelu_new(at: AbstractArithmetic, x, site: str):
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), an operation at a time."""
    kept = at.stores(f"{site}_square")
    square = at.store(f"{site}_square", at.multiply(x, x, alone=kept))
    cube = at.store(f"{site}_cube", at.multiply(square, x, alone=kept))
    cubic = at.multiply(cube, at.fixed(0.044715), alone=True)
    total = at.add(x, at.store(f"{site}_cubic", cubic), alone=True)
    total = at.store(f"{site}_sum", total)
    argument = at.multiply(total, at.fixed(math.sqrt(2 / math.pi)), alone=True)
    tanh = at.tanh(at.store(f"{site}_argument", argument))
    tanh = at.store(f"{site}_tanh", tanh)
    whole = at.store(f"{site}_whole", at.add(tanh, at.fixed(1.0), alone=True))
    half = at.store(f"{site}_half", at.multiply(x, at.fixed(0.5), alone=True))
    return at.multiply(half, whole, alone=True)


class LowRank(eqx.Module):
    """A product of two matrices that is added to a shared one (Zamba2's adapters)."""

    down: Weight
    """(rank, width)."""
    up: Weight
    """(rows, rank)."""


def projected(
    at: AbstractArithmetic, x, weight: Weight, bias, adapter: LowRank | None, site: str
):
    """x W^T + bias, and what the adapter adds, stored at `site`."""
    y = at.matmul(x, weight, bias)
    if adapter is not None:
        y = at.store(f"{site}_shared", y)
        low = at.store(f"{site}_low", at.matmul(x, adapter.down))
        y = at.add(y, at.store(f"{site}_own", at.matmul(low, adapter.up)))
    return at.store(site, y)


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
    out_multiplier: float = eqx.field(static=True, default=1.0)
    """Of the output, before it joins the residual (Granite)."""
    norm_behind: Norm | None = None
    """Of the output (OLMo 2)."""
    up_adapter: LowRank | None = None
    gate_adapter: LowRank | None = None

    def initial_state(self):
        """Nothing is carried."""
        return


def mlp(at: AbstractArithmetic, residual, p: MlpParameters, start=None):
    """One sublayer over a sequence: (seq, d_model) to (seq, d_model)."""
    x = normalise(at, at.store("norm_input", residual), p.norm)
    out = at.store("out", feed_forward(at, x, p))
    out = normalise(at, out, p.norm_behind, "norm_behind")
    return scaled(at, out, p.out_multiplier, "out_scaled"), start


def feed_forward(at: AbstractArithmetic, x, p: MlpParameters):
    """The MLP on a normalised input."""
    up = projected(at, x, p.up, p.up_bias, p.up_adapter, "up")
    if p.gate is None:
        hidden = activate(at, up, p.activation, "activated")
    else:
        gate = projected(at, x, p.gate, p.gate_bias, p.gate_adapter, "gate")
        gate = scaled(at, gate, p.gate_multiplier, "gate_scaled")
        gate = activate(at, gate, p.activation, "activated")
        hidden = at.store("hidden", at.multiply(up, gate, alone=at.stores("activated")))
    out = at.matmul(hidden, p.down, p.down_bias)
    if p.down_multiplier != 1.0:
        out = at.multiply(at.store("down", out), at.fixed(p.down_multiplier))
    return out
