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
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ._sublayer import (
    AbstractSublayer,
    Counts,
    DeltaDynamics,
    Get,
    HandedOn,
    within,
)
from .delta_mixer import (
    CONVOLVED,
    HAND_OVER,
    DeltaState,
    convolved,
    delta_rule,
    dynamics,
    gated_out,
    headed,
    shared_parameters,
    through_blocks,
    units,
)
from .delta_scan import BY_KEY, CHUNK
from .norm import Norm, front
from .sites import FRONT
from .token_blocks import tokens_at_once


DELTA = (
    *FRONT, "in_operand",
    "q", "k", "v", "z", "gate_logit", "rate_logit", *CONVOLVED, "rate",
    "softplus", "q_unit", "k_unit", *(site for site in CHUNK if site not in BY_KEY),
    "state", "state_read", "scan_output", "silu_z", "gate_norm_hat", "gate_norm",
    "gated", "out_operand", "out",
)  # fmt: skip
"""Sites of a mixer whose recurrence is a delta rule."""


class GatedDeltaParameters(eqx.Module):
    """One sublayer: the norm and the mixer after it.

    Value heads that follow each other read one key head. The conv's channels are q's,
    k's and v's, head-major each.
    """

    norm: Norm | None
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
    return through_blocks(at, _gated_delta, residual, p, start)


def _gated_delta(
    at: AbstractArithmetic, residual, p: GatedDeltaParameters, start: DeltaState
):
    x = front(at, residual, p.norm)
    read = at.store("in_operand", x)
    put = lambda site, x, rows: at.store(site, at.matmul(x, rows))
    mixed = [put("q", read, p.q_proj), put("k", read, p.k_proj)]
    mixed.append(put("v", read, p.v_proj))
    z, a = put("z", read, p.z_proj), put("gate_logit", x, p.a_proj)
    b = put("rate_logit", x, p.b_proj)

    q, k, v, window = convolved(at, mixed, p, start)
    rate = at.store("rate", at.sigmoid(b))
    if p.rate_scale != 1.0:
        rate = at.multiply(rate, at.fixed(p.rate_scale))
    step = at.store("softplus", at.softplus(at.add(a, p.dt_bias)))
    log_gate = at.multiply(step, at.negate(at.exp(p.A_log)))
    q, k = units(at, q, k, p.key_heads, p.key_epsilon)
    y, state = delta_rule(at, q, k, v, rate, log_gate, start.state, p.chunk)

    z = at.store("silu_z", at.silu(at.view(headed(p.sizes[0]), z)))
    return gated_out(at, y, z, p), DeltaState(window, state)


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
    - `norm_front`: whether there is a norm before it.
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
    norm_front: bool = True

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
        return HAND_OVER

    def parameters(self, get: Get) -> GatedDeltaParameters:
        """Put the flow's parameters together from stored ones."""
        return GatedDeltaParameters(
            norm=Norm(get("norm"), None, self.norm_epsilon, offset=self.norm_offset)
            if self.norm_front
            else None,
            key_heads=self.key_heads,
            gate_norm_epsilon=self.gate_norm_epsilon,
            rate_scale=self.rate_scale,
            key_epsilon=self.key_epsilon,
            chunk=self.chunk,
            **shared_parameters(get),
            z_proj=Weight(get("z_proj")),
            a_proj=Weight(get("a_proj")),
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
        return dynamics(raw, observed, self.value_dim)
