"""Mixtures of experts: a router weighs experts token by token, and the best few count.

Every expert is computed for every token, and the weight of one that was not chosen is
0: one function with what implementations compute, which leave those out.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from .mlp import MlpParameters, activate, feed_forward
from .norm import Norm, normalise, scaled


class ExpertsParameters(eqx.Module):
    """One sublayer: the norm, the router, the experts, and an expert that all share."""

    norm: Norm | None
    router: Weight
    """(experts, d_model)."""
    router_bias: Float[Array, " experts"] | None
    """Added to the scores where experts are chosen, not where they are weighed."""
    up: Float[Array, "experts d_hidden width"]
    gate: Float[Array, "experts d_hidden width"] | None
    down: Float[Array, "experts width d_hidden"]
    to_latent: Weight | None
    """(width, d_model), where experts work on fewer channels (Nemotron-H)."""
    to_latent_bias: Float[Array, " width"] | None
    from_latent: Weight | None
    """(d_model, width)."""
    from_latent_bias: Float[Array, " d_model"] | None
    shared: MlpParameters | None
    """An MLP without a norm that every token goes through as well."""
    activation: str = eqx.field(static=True)
    chosen: int = eqx.field(static=True)
    """Experts of a token."""
    scoring: str = eqx.field(static=True)
    """"softmax" or "sigmoid" of the router's output."""
    shares: bool = eqx.field(static=True)
    """Whether weights are divided by their sum over the chosen experts."""
    share_floor: float = eqx.field(static=True, default=0.0)
    """What is added to that sum."""
    routed_multiplier: float = eqx.field(static=True, default=1.0)
    """Of the weights."""
    out_multiplier: float = eqx.field(static=True, default=1.0)

    def initial_state(self):
        """Nothing is carried."""
        return


def experts(at: AbstractArithmetic, residual, p: ExpertsParameters, start=None):
    """One sublayer over a sequence: (seq, d_model) to (seq, d_model)."""
    x = normalise(at, at.store("norm_input", residual), p.norm)
    weight = route(at, x, p)

    y = x
    if p.to_latent is not None:
        y = at.store("latent", at.matmul(x, p.to_latent, p.to_latent_bias))
    up = at.store("expert_up", at.einsum("sd,ehd->seh", y, p.up))
    if p.gate is None:
        hidden = activate(at, up, p.activation, "expert_activated")
    else:
        gate = at.store("expert_gate", at.einsum("sd,ehd->seh", y, p.gate))
        gate = activate(at, gate, p.activation, "expert_activated")
        hidden = at.store("expert_hidden", at.multiply(up, gate))
    each = at.store("expert_out", at.einsum("seh,edh->sed", hidden, p.down))
    each = at.multiply(each, at.view(lambda a: a[..., None], weight))
    each = at.store("expert_weighed", each)
    if at.stores("routed_sum"):
        total = _one_by_one(at, each)
    else:
        total = at.einsum("sed,e->sd", each, jnp.ones(p.up.shape[0]))
    total = at.store("routed", total)
    if p.from_latent is not None:
        total = at.matmul(total, p.from_latent, p.from_latent_bias)
        total = at.store("from_latent", total)
    if p.shared is not None:
        common = at.store("shared", feed_forward(at, x, p.shared))
        total = at.add(total, common)
    out = at.store("out", total)
    return scaled(at, out, p.out_multiplier, "out_scaled"), start


def _one_by_one(at: AbstractArithmetic, each):
    """The sum over experts, stored after each; of those not chosen 0 is added."""

    def one(at, total, other):
        total = at.store("routed_sum", at.add(total, other, alone=True))
        return at.carry(total), ()

    by_expert = at.view(lambda a: jnp.moveaxis(a, -2, 0), each)
    start = at.carry(jnp.zeros((each.shape[0], each.shape[-1])))
    return at.scan(one, start, by_expert)[0]


def route(at: AbstractArithmetic, x, p: ExpertsParameters):
    """Weights of the experts, (seq, experts): 0 for those that are not chosen."""
    scores = at.store("router", at.matmul(x, p.router))
    if p.scoring == "softmax":
        scores = at.softmax(scores, jnp.ones(scores.shape))
    else:
        scores = at.sigmoid(scores)
    ranked = scores if p.router_bias is None else at.add(scores, p.router_bias)
    weight = at.multiply(scores, at.largest(ranked, p.chosen))
    if p.shares:
        weight = at.shares(weight, p.share_floor)
    return at.store("expert_weight", scaled(at, weight, p.routed_multiplier, "routing"))
