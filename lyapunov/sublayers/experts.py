"""Mixtures of experts: a router weighs experts token by token, and the best few count.

Every expert is computed for every token, and the weight of one that was not chosen is
0: one function with what implementations compute, which leave those out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ._sublayer import (
    AbstractSublayer,
    Counts,
    Get,
    HandedOn,
    with_biases,
    within,
)
from .mlp import (
    FEED_FORWARD,
    NO_STATE,
    MlpParameters,
    MlpSizes,
    activate,
    feed_forward,
    weight_of,
)
from .norm import Norm, norm_of, normalise, scaled
from .sites import FRONT, GELU_NEW
from .token_blocks import in_token_blocks, tokens_at_once


FAR = 2.0**100
"""What scores outside of the chosen groups are lowered by; no score is as large."""


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
    groups: int = eqx.field(static=True, default=1)
    chosen_groups: int = eqx.field(static=True, default=1)
    """Of consecutive experts, by the sums of their two best scores: where experts are
    chosen from."""
    routed_multiplier: float = eqx.field(static=True, default=1.0)
    """Of the weights."""
    out_multiplier: float = eqx.field(static=True, default=1.0)
    keeps: float = eqx.field(static=True, default=1.0)
    """As in `AttentionParameters`."""
    shared_router: Weight | None = None
    """(1, d_model): its sigmoid weighs what the shared MLP puts out (Qwen3-Next)."""

    def initial_state(self):
        """Nothing is carried."""
        return


def experts(at: AbstractArithmetic, residual, p: ExpertsParameters, start=None):
    """One sublayer over a sequence: (seq, d_model) to (seq, d_model)."""
    widest = p.up.shape[0] * max(p.up.shape[1:])
    return in_token_blocks(at, _experts, residual, p, start, widest=widest)


def _experts(at: AbstractArithmetic, residual, p: ExpertsParameters, start):
    x = normalise(at, at.store("norm_input", residual), p.norm)
    weight = route(at, x, p)

    y = x
    if p.to_latent is not None:
        y = at.store("latent", at.matmul(x, p.to_latent, p.to_latent_bias))
    y = at.store("expert_up_operand", y)
    up = at.store("expert_up", at.einsum("sd,ehd->seh", y, p.up))
    if p.gate is None:
        hidden = activate(at, up, p.activation, "expert_activated")
    else:
        gate = at.store("expert_gate", at.einsum("sd,ehd->seh", y, p.gate))
        gate = activate(at, gate, p.activation, "expert_activated")
        hidden = at.store("expert_hidden", at.multiply(up, gate))
    hidden = at.store("expert_down_operand", hidden)
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
        if p.shared_router is not None:
            share = at.store("shared_router", at.matmul(x, p.shared_router))
            share = at.store("shared_weight", at.sigmoid(share))
            common = at.store("shared_weighed", at.multiply(common, share))
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
    if p.groups > p.chosen_groups:
        ranked = _in_best_groups(at, ranked, p.groups, p.chosen_groups)
    weight = at.multiply(scores, at.largest(ranked, p.chosen))
    if p.shares:
        weight = at.shares(weight, p.share_floor)
    return at.store("expert_weight", scaled(at, weight, p.routed_multiplier, "routing"))


def _in_best_groups(at: AbstractArithmetic, ranked, groups: int, chosen: int):
    """Scores as they are within the chosen groups, and far below all elsewhere."""
    parted = at.view(lambda a: a.reshape(a.shape[0], groups, -1), ranked)
    best = at.einsum("sge,sge->sg", parted, at.largest(parted, 2))
    kept = at.largest(best, chosen)
    each = ranked.shape[-1] // groups
    kept = at.view(lambda a: jnp.repeat(a, each, -1), kept)
    aside = at.multiply(at.add(kept, jnp.full(kept.shape, -1.0)), at.fixed(FAR))
    return at.add(ranked, aside)


_flow = experts  # the class has a field of this name


@final
@dataclass(frozen=True)
class ExpertsSizes(AbstractSublayer):
    """One mixture of experts with the norm before it.

    **Arguments:**

    - `experts`, `chosen`: how many there are, and how many a token goes through.
    - `scoring`: "softmax" or "sigmoid" of the router's output.
    - `shares`: whether weights are divided by their sum over the chosen experts, and
      `share_floor`: what is added to that sum.
    - `groups`, `chosen_groups`: consecutive experts that are chosen together first, by
      their two best scores, and how many of these; 1: experts are chosen from all.
    - `gated`: of each expert, as in `MlpSizes`.
    - `norm_offset`: as in `Norm`.
    - `norm_front`, `keeps`: as for `AttentionSizes`.
    - `width`: channels that the experts work on; d_model where not given.
    - `shared`: an MLP that every token goes through as well; `shared_routed`: whether
      the token weighs it.
    """

    d_model: int
    d_hidden: int
    experts: int
    chosen: int
    scoring: str
    shares: bool
    activation: str
    gated: bool
    norm_epsilon: float
    norm_offset: float = 0.0
    width: int | None = None
    shared: MlpSizes | None = None
    shared_routed: bool = False
    groups: int = 1
    chosen_groups: int = 1
    routed_multiplier: float = 1.0
    out_multiplier: float = 1.0
    share_floor: float = 0.0
    norm_front: bool = True
    keeps: float = 1.0

    kind: ClassVar = "experts"
    recurrent: ClassVar = False
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(_flow)
    sites: ClassVar = (
        *FRONT, "router", "routing", "expert_weight", "latent", *FEED_FORWARD,
        "expert_up_operand", "expert_up", "expert_gate",
        *(f"expert_activated_{part}" for part in GELU_NEW), "expert_activated",
        "expert_hidden", "expert_down_operand", "expert_out", "expert_weighed",
        "routed_sum", "routed", "from_latent", "shared",
        "shared_router", "shared_weight", "shared_weighed", "out", "out_scaled",
    )  # fmt: skip
    weight_groups: ClassVar = {
        **within(
            "experts",
            projections="up gate down to_latent from_latent",
            biases="to_latent_bias from_latent_bias",
            norms=with_biases("norm"),
        ),
        **within("router", projections="router shared_router", biases="router_bias"),
        **within(
            "shared_experts",
            projections="shared_up shared_gate shared_down shared_up_adapter_down"
            " shared_up_adapter_up shared_gate_adapter_down shared_gate_adapter_up",
            biases="shared_up_bias shared_gate_bias shared_down_bias",
        ),
    }

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """Nothing: every token goes through alone."""
        return ()

    def parameters(self, get: Get) -> ExpertsParameters:
        """Put the flow's parameters together from stored ones."""
        shared_mlp = None
        if self.shared is not None:
            shared_mlp = self.shared.parameters(lambda name: get(f"shared_{name}"))
        return ExpertsParameters(
            norm=norm_of(get, "norm", self.norm_epsilon, False, self.norm_offset)
            if self.norm_front
            else None,
            router=Weight(get("router")),
            router_bias=get("router_bias"),
            up=get("up"),
            gate=get("gate"),
            down=get("down"),
            to_latent=weight_of(get, "to_latent"),
            to_latent_bias=get("to_latent_bias"),
            from_latent=weight_of(get, "from_latent"),
            from_latent_bias=get("from_latent_bias"),
            shared=shared_mlp,
            shared_router=weight_of(get, "shared_router"),
            groups=self.groups,
            chosen_groups=self.chosen_groups,
            activation=self.activation,
            chosen=self.chosen,
            scoring=self.scoring,
            shares=self.shares,
            share_floor=self.share_floor,
            routed_multiplier=self.routed_multiplier,
            out_multiplier=self.out_multiplier,
            keeps=self.keeps,
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights and activations of all experts: every one is computed."""
        width = self.d_model if self.width is None else self.width
        projections = 3 if self.gated else 2
        weights = self.experts * (projections * width * self.d_hidden + self.d_model)
        if self.width is not None:
            weights += 2 * width * self.d_model
        if self.shared is not None:
            weights += self.shared.count(length, batch).weights
            weights += self.shared_routed * self.d_model
        channels = self.experts * max(self.d_hidden, width)
        at_once = batch * tokens_at_once(channels, 1, batch)
        return Counts(
            weights=weights,
            channels=channels,
            scores=0,
            states=0,
            at_once=at_once,
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> str:
        """Say why there are none."""
        return NO_STATE
