"""What a Gated DeltaNet sublayer computes (Yang et al. 2024, arXiv 2412.06464).

As in Qwen3-Next, Qwen3.5 and OLMo hybrid (`modeling_qwen3_next.py`,
`modeling_olmo_hybrid.py` of transformers 5.24). The middle is a recurrence over tokens
(decode, exact arithmetic) or its chunked form (`delta_scan`): one function in exact
arithmetic, two in rounded.
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
    DeltaDynamics,
    Get,
    HandedOn,
    as_stored,
    within,
)
from .delta_scan import BY_KEY, CHUNK, Tokens, chunked_delta, recurrent_delta
from .norm import Norm, normalise
from .sites import FRONT
from .token_blocks import in_token_blocks, tokens_at_once


DELTA = (
    *FRONT, "q", "k", "v", "z", "gate_logit", "rate_logit", "conv_sum", "conv", "rate",
    "softplus", "q_unit", "k_unit", *(site for site in CHUNK if site not in BY_KEY),
    "state", "state_read", "scan_output", "silu_z", "gate_norm_hat", "gate_norm",
    "gated", "out",
)  # fmt: skip
"""Sites of a mixer whose recurrence is a delta rule."""


class GatedDeltaParameters(eqx.Module):
    """One sublayer: the norm and the mixer after it.

    Value heads that follow each other read one key head. The conv's channels are q's,
    k's and v's, head-major each.
    """

    norm: Norm
    q_proj: Weight
    """(key_heads key_dim, d_model)."""
    k_proj: Weight
    v_proj: Weight
    """(value_heads value_dim, d_model)."""
    z_proj: Weight
    a_proj: Weight
    """(value_heads, d_model)."""
    b_proj: Weight
    conv_weight: Float[Array, "conv_channels d_conv"]
    conv_bias: Float[Array, " conv_channels"]
    dt_bias: Float[Array, " value_heads"]
    A_log: Float[Array, " value_heads"]
    gate_norm: Float[Array, " value_dim"]
    out_proj: Weight
    """(d_model, value_heads value_dim)."""
    key_heads: int = eqx.field(static=True)
    gate_norm_epsilon: float = eqx.field(static=True)
    rate_scale: float = eqx.field(static=True)
    key_epsilon: float = eqx.field(static=True)
    chunk: int = eqx.field(static=True)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Value heads, and the sizes of a key and of a value."""
        heads = self.A_log.shape[0]
        key_dim = self.q_proj.matrix.shape[0] // self.key_heads
        return heads, key_dim, self.v_proj.matrix.shape[0] // heads

    def initial_state(self) -> "DeltaState":
        """What is carried before the first token of a text."""
        return DeltaState.zeros(self.conv_weight, *self.sizes)


class DeltaState(eqx.Module):
    """What a decode step carries: the last inputs of the conv, and S."""

    window: Any
    """(d_conv - 1, conv channels)."""
    state: Any
    """(heads, value_dim, key_dim)."""

    @staticmethod
    def zeros(conv_weight, heads: int, key_dim: int, value_dim: int) -> "DeltaState":
        """As at the start of a text."""
        channels, taps = conv_weight.shape
        return DeltaState(
            window=jnp.zeros((taps - 1, channels)),
            state=jnp.zeros((heads, value_dim, key_dim)),
        )


def gated_delta(
    at: AbstractArithmetic, residual, p: GatedDeltaParameters, start: DeltaState
):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, d_model), the residual stream before the norm.
    - `start`: window and state before the first token.

    **Returns:** the mixer's output (seq, d_model), and `start` for the token after
    the last.
    """
    if at.calls:
        # of several calls chunks begin with each
        return _gated_delta(at, residual, p, start)
    widest = 2 * p.conv_weight.shape[0]
    return in_token_blocks(
        at, _gated_delta, residual, p, start, widest=widest, multiple=p.chunk
    )


def _gated_delta(
    at: AbstractArithmetic, residual, p: GatedDeltaParameters, start: DeltaState
):
    x = normalise(at, at.store("norm_input", residual), p.norm)
    heads, key_dim, _ = p.sizes
    keys, seq = p.key_heads * key_dim, x.shape[0]
    put = lambda site, rows: at.store(site, at.matmul(x, rows))
    mixed = [put("q", p.q_proj), put("k", p.k_proj), put("v", p.v_proj)]
    z, a = put("z", p.z_proj), put("gate_logit", p.a_proj)
    b = put("rate_logit", p.b_proj)

    mixed = at.join(mixed, axis=-1)
    padded = at.join([start.window, mixed])
    mixed = at.causal_conv(padded, p.conv_weight, p.conv_bias)
    mixed = at.store("conv", at.silu(at.store("conv_sum", mixed)))
    q = mixed[..., :keys]
    k = mixed[..., keys : 2 * keys]
    v = at.view(headed(heads), mixed[..., 2 * keys :])

    rate = at.store("rate", at.sigmoid(b))
    if p.rate_scale != 1.0:
        rate = at.multiply(rate, at.fixed(p.rate_scale))
    step = at.store("softplus", at.softplus(at.add(a, p.dt_bias)))
    log_gate = at.multiply(step, at.negate(at.exp(p.A_log)))
    q, k = units(at, q, k, p.key_heads, p.key_epsilon)
    y, state = delta_rule(at, q, k, v, rate, log_gate, start.state, p.chunk)

    hat = at.rms_normalise(y, p.gate_norm_epsilon)
    hat = at.store("gate_norm_hat", hat)
    normed = at.store("gate_norm", at.multiply(hat, p.gate_norm))
    z = at.store("silu_z", at.silu(at.view(headed(heads), z)))
    y = at.multiply(normed, z)
    y = at.store("gated", at.view(lambda a: a.reshape(seq, -1), y))
    out = at.store("out", at.matmul(y, p.out_proj))
    return out, DeltaState(window=padded[seq:], state=state)


def units(at: AbstractArithmetic, q, k, heads: int, epsilon: float):
    """Queries and keys of unit length, (seq, heads, key_dim), stored."""
    return tuple(
        at.store(site, at.unit_normalise(at.view(headed(heads), x), epsilon))
        for site, x in (("q_unit", q), ("k_unit", k))
    )


def delta_rule(
    at: AbstractArithmetic,
    q,
    k,
    v,
    rate,
    log_gate,
    state,
    chunk: int,
    *,
    inverted: bool = False,
):
    """What the queries of a sequence read, stored, and the state behind it.

    **Arguments:**

    - `q`, `k`: (seq, key_heads, key_dim), of unit length. `v`: (seq, heads, value_dim).
    - `rate`: (seq, heads). `log_gate`: (seq, heads), or (seq, heads, key_dim).
    """
    at.observe("log_gate", log_gate)
    at.observe("rate", rate)
    at.observe("key", k)
    heads, key_heads = v.shape[1], k.shape[1]
    if heads != key_heads:
        own = lambda a: jnp.repeat(a, heads // key_heads, axis=1)
        q, k = at.view(own, q), at.view(own, k)
    tokens = Tokens(q, k, v, rate, log_gate)
    if at.chunked:
        y, state = chunked_delta(at, tokens, state, chunk, inverted=inverted)
    else:
        y, state = recurrent_delta(at, tokens, state)
    y = at.multiply(y, at.fixed(q.shape[-1] ** -0.5))
    return at.store("scan_output", y), state


def headed(heads: int):
    """Cut the last axis into heads."""
    return lambda a: a.reshape(*a.shape[:-1], heads, -1)


@final
@dataclass(frozen=True)
class GatedDeltaSizes(AbstractSublayer):
    """One Gated DeltaNet mixer with the norm before it.

    **Arguments:**

    - `key_heads`, `value_heads`: neighbouring value heads share a key head.
    - `key_dim`, `value_dim`: of one head.
    - `rate_scale`: of the sigmoid that a token writes with; 2 lets it go beyond what
      it erases (OLMo hybrid).
    - `norm_offset`: the weight of the norm in front is stored as its distance from it.
    - `key_epsilon`: under the root that queries and keys are divided by.
    - `chunk`: tokens of a chunk in the chunked form.
    """

    d_model: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    d_conv: int
    norm_epsilon: float
    gate_norm_epsilon: float
    rate_scale: float = 1.0
    norm_offset: float = 0.0
    key_epsilon: float = 1e-6
    chunk: int = 64

    kind: ClassVar = "gated_delta"
    recurrent: ClassVar = True
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(gated_delta)
    sites: ClassVar = DELTA
    weight_groups: ClassVar = within(
        "gated_delta",
        "mixers",
        projections="q_proj k_proj v_proj z_proj a_proj b_proj out_proj",
        recurrence="A_log dt_bias",
        conv="conv_weight conv_bias",
        norms="norm gate_norm",
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """The convolution's last inputs, and S."""
        return (
            HandedOn("window", "window", ("q", "k", "v")),
            HandedOn("state", "state", ("state",)),
        )

    def parameters(self, get: Get) -> GatedDeltaParameters:
        """Put the flow's parameters together from stored ones."""
        conv_weight, conv_bias = get("conv_weight"), get("conv_bias")
        return GatedDeltaParameters(
            norm=Norm(get("norm"), None, self.norm_epsilon, offset=self.norm_offset),
            conv_weight=conv_weight,
            conv_bias=jnp.zeros(conv_weight.shape[0])
            if conv_bias is None
            else conv_bias,
            dt_bias=get("dt_bias"),
            A_log=get("A_log"),
            gate_norm=get("gate_norm"),
            key_heads=self.key_heads,
            gate_norm_epsilon=self.gate_norm_epsilon,
            rate_scale=self.rate_scale,
            key_epsilon=self.key_epsilon,
            chunk=self.chunk,
            **{
                name: Weight(get(name))
                for name in (*(f"{of}_proj" for of in "qkvzab"), "out_proj")
            },
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights, activations and states."""
        del length
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        conv, rows = 2 * keys + values, 2 * keys + 2 * values + 2 * self.value_heads
        wide = max(conv, self.value_heads * (self.chunk + self.key_dim))
        return Counts(
            weights=self.d_model * (rows + values) + conv * self.d_conv,
            channels=wide,
            scores=0,
            states=self.value_heads * self.value_dim * self.key_dim,
            at_once=batch * tokens_at_once(2 * conv, self.chunk, batch),
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> DeltaDynamics:
        """Find what the step matrices are made of."""
        seen = {
            name: np.asarray(observed[name], np.float64)
            for name in ("log_gate", "rate", "key")
        }
        used = {"ones": {"gate_norm": raw["gate_norm"]}, "per_head": True}
        stored = as_stored(raw, "A_log", "dt_bias") | used
        return DeltaDynamics(self.value_dim, **seen, parameters=stored)
