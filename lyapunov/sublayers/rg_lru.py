"""What a recurrent block of RecurrentGemma computes (De et al. 2024, arXiv 2402.19427).

After `RecurrentGemmaRecurrentBlock` of transformers 5.24. The real-gated linear
recurrent unit (RG-LRU) has one state a channel: h <- a h + sqrt(1 - a^2) i u, with a
decay a and a gate i of the token. At the first token of a text a is 0.
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
    Dynamics,
    Get,
    HandedOn,
    convolution,
    within,
)
from .mlp import activate
from .norm import Norm, front, with_bias
from .sites import FRONT, GELU_NEW
from .token_blocks import in_token_blocks, tokens_at_once


RATE = 8.0
"""Most that a log decay is of softplus(decay_logit): the paper's c."""


class RGLRUParameters(eqx.Module):
    """One sublayer: the norm and the mixer after it."""

    norm: Norm | None
    x_proj: Weight
    """(width, d_model), what goes through the recurrence."""
    x_bias: Float[Array, " width"] | None
    y_proj: Weight
    """(width, d_model), what is activated and multiplies it."""
    y_bias: Float[Array, " width"] | None
    conv_weight: Float[Array, "width d_conv"]
    conv_bias: Float[Array, " width"]
    input_gate: tuple[Weight, ...]
    """Of each head, (width / heads, width / heads), as the next."""
    input_gate_bias: Float[Array, " width"]
    decay_gate: tuple[Weight, ...]
    decay_gate_bias: Float[Array, " width"]
    decay_logit: Float[Array, " width"]
    """Its softplus is an eighth of the fastest log decay."""
    out_proj: Weight
    """(d_model, width)."""
    out_bias: Float[Array, " d_model"] | None
    activation: str = eqx.field(static=True)

    def initial_state(self) -> "RGLRUState":
        """What is carried before the first token of a text."""
        width, taps = self.conv_weight.shape
        return RGLRUState(
            jnp.zeros((taps - 1, width)), jnp.zeros((1, width)), jnp.zeros(1)
        )


class RGLRUState(eqx.Module):
    """What a decode step carries."""

    window: Any
    """(d_conv - 1, width), the last inputs of the convolution."""
    state: Any
    """(1, width), h."""
    begun: Any
    """(1), 0 at the start of a text, where the decay is 0, and 1 behind it."""


def rg_lru(at: AbstractArithmetic, residual, p: RGLRUParameters, start: RGLRUState):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, d_model), the residual stream before the norm.
    - `start`: window and state before the first token.

    **Returns:** the mixer's output (seq, d_model), and `start` for the token after
    the last.
    """
    rate = at.store("decay_rate", at.softplus(p.decay_logit))

    def block(at, residual, p, start):
        return _rg_lru(at, residual, p, start, rate)

    widest = 2 * p.conv_weight.shape[0]
    return in_token_blocks(at, block, residual, p, start, widest=widest)


def _rg_lru(at: AbstractArithmetic, residual, p: RGLRUParameters, start, rate):
    x = front(at, residual, p.norm)
    seq = residual.shape[0]
    u = at.store("x", at.matmul(x, p.x_proj, p.x_bias))
    padded = at.join([start.window, u])
    u = _convolved(at, padded, seq, p)

    i = at.sigmoid(_of_heads(at, u, p.input_gate, p.input_gate_bias, "input_logit"))
    i = at.store("input_gate", i)
    r = at.sigmoid(_of_heads(at, u, p.decay_gate, p.decay_gate_bias, "decay_logit"))
    r = at.multiply(at.store("decay_gate", r), at.fixed(-RATE))
    log_decay = at.multiply(r, rate, alone=at.stores("decay_gate"))
    log_decay = at.store("log_decay", log_decay)
    at.observe("log_decay", log_decay)

    # a decay of 0 at the first token of a text, and 1 at all others
    first = (1.0 - start.begun) * (jnp.arange(seq) == 0)
    first = jnp.broadcast_to(first[:, None], u.shape)
    a = at.mask(at.store("decay", at.fading(log_decay)), 1.0 - first)
    scale = at.store("input_scale", at.square_root(_rest(at, log_decay, first)))
    u = at.store("gated_input", at.multiply(u, i, alone=at.stores("input_gate")))
    u = at.store("drive", at.multiply(u, scale, alone=at.stores("input_scale")))
    state, y = at.scan(_token, at.initial_state(start.state), (a, u))
    y = at.store("scan_output", y)

    gate = at.store("branch", at.matmul(x, p.y_proj, p.y_bias))
    gate = activate(at, gate, p.activation, "branch_activated")
    y = at.store("gated", at.multiply(y, gate, alone=at.stores("branch_activated")))
    # one token transposed is contiguous, and rounded once with its bias
    out = with_bias(at, y, p.out_proj, p.out_bias, "out", seq > 1)
    return out, RGLRUState(padded[seq:], state, jnp.ones(1))


def _convolved(at: AbstractArithmetic, padded, seq: int, p: RGLRUParameters):
    if not at.stores("conv_product"):
        return at.store("conv", at.causal_conv(padded, p.conv_weight, p.conv_bias))
    # a step of transformers: products, their sum and that with the bias are tensors
    taps = p.conv_weight.shape[1]
    windows = at.view(
        lambda a: jnp.stack([a[tap : tap + seq] for tap in range(taps)], axis=1), padded
    )
    weight = jnp.broadcast_to(p.conv_weight.T, (seq, *p.conv_weight.T.shape))
    products = at.store("conv_product", at.multiply(windows, weight, alone=True))
    total = at.einsum("stc,t->sc", products, at.carry(jnp.ones(taps)))
    total = at.store("conv_sum", total)
    return at.store("conv", at.add(total, p.conv_bias, alone=True))


def _of_heads(at: AbstractArithmetic, x, weights: tuple[Weight, ...], bias, site: str):
    """Each head's channels times its own matrix, stored."""
    width = x.shape[-1] // len(weights)
    parts = []
    for i, weight in enumerate(weights):
        own = slice(i * width, (i + 1) * width)
        parts.append(at.matmul(x[..., own], weight, bias[own]))
    return at.store(site, at.join(parts, axis=-1))


def _rest(at: AbstractArithmetic, log_decay, first):
    """1 - a^2, which is 1 where `first` is 1."""
    squared = at.fading(at.multiply(log_decay, at.fixed(2.0)))
    if at.stores("decay_squared"):
        squared = at.mask(at.store("decay_squared", squared), 1.0 - first)
        rest = at.add(at.negate(squared), jnp.ones_like(first), alone=True)
        return at.store("decay_squared_rest", rest)
    # 1 - exp(2 x) = -tanh(x) (1 + exp(2 x)), in which nothing cancels near a = 1
    rest = at.multiply(at.negate(at.tanh(log_decay)), at.add(squared, 1.0))
    return at.add(at.mask(rest, 1.0 - first), first)


def _token(at: AbstractArithmetic, state, inputs):
    a, drive = inputs
    after = at.advance(state, a[None], drive[None])
    at.observe("state", after)
    # a cache gets the state in its format; what is read now is not from there
    return at.store("state", after), at.contract(after, jnp.ones(1))


@final
@dataclass(frozen=True)
class RGLRUSizes(AbstractSublayer):
    """One recurrent block with the norm before it.

    **Arguments:**

    - `d_inner`: channels of the recurrence.
    - `heads`: parts of the channels with gates of their own.
    - `activation`: of what multiplies the recurrence's output.
    - `norm_offset`: the weight of the norm in front is stored as its distance from it.
    - `norm_front`: whether there is a norm before it.
    """

    d_model: int
    d_inner: int
    heads: int
    d_conv: int
    activation: str
    norm_epsilon: float
    norm_offset: float = 0.0
    norm_front: bool = True

    kind: ClassVar = "rg_lru"
    recurrent: ClassVar = True
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(rg_lru)
    sites: ClassVar = (
        "decay_rate", *FRONT, "x", "conv_product", "conv_sum", "conv", "input_logit",
        "input_gate", "decay_logit", "decay_gate", "log_decay", "decay",
        "decay_squared", "decay_squared_rest", "input_scale", "gated_input", "drive",
        "state", "scan_output", "branch",
        *(f"branch_activated_{part}" for part in GELU_NEW), "branch_activated",
        "gated", "out_product", "out",
    )  # fmt: skip
    weight_groups: ClassVar = within(
        "rg_lru",
        "mixers",
        projections="x_proj y_proj input_gate decay_gate out_proj",
        biases="x_bias y_bias input_gate_bias decay_gate_bias out_bias",
        recurrence="decay_logit",
        conv="conv_weight conv_bias",
        norms="norm",
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """The convolution's last inputs, h, and whether there was a token."""
        return (
            HandedOn("window", "window", ("x",)),
            HandedOn("state", "state", ("state",)),
            HandedOn("begun", "window", ()),
        )

    def parameters(self, get: Get) -> RGLRUParameters:
        """Put the flow's parameters together from stored ones."""
        gates: dict[str, Any] = {
            name: tuple(Weight(own) for own in get(name))
            for name in ("input_gate", "decay_gate")
        }
        return RGLRUParameters(
            norm=Norm(get("norm"), None, self.norm_epsilon, offset=self.norm_offset)
            if self.norm_front
            else None,
            activation=self.activation,
            **gates,
            **convolution(get),
            **{name: Weight(get(name)) for name in ("x_proj", "y_proj", "out_proj")},
            **{
                name: get(name)
                for name in (
                    *("x_bias", "y_bias", "input_gate_bias"),
                    *("decay_gate_bias", "decay_logit", "out_bias"),
                )
            },
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights, activations and states."""
        del length
        own = 2 * self.d_inner // self.heads
        return Counts(
            weights=self.d_inner * (3 * self.d_model + self.d_conv + own),
            channels=2 * self.d_inner,
            scores=0,
            states=self.d_inner,
            at_once=batch * tokens_at_once(2 * self.d_inner, 1, batch),
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> Dynamics:
        """Find one decay a channel, of every token that had one before it.

        The first token of a text forgets what was before it, of which there is nothing.
        """
        log_decay = np.asarray(observed["log_decay"], np.float64)
        return Dynamics(1, log_decay[:, min(1, log_decay.shape[1] - 1) :])
