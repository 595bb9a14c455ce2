"""What a Kimi Delta Attention sublayer computes (arXiv 2510.26692).

As in Kimi Linear, GLM and Ling (`modeling_kimi_linear.py`, `modeling_glm5_next.py`,
`modeling_bailing_hybrid.py` of transformers 5.24): a Gated DeltaNet whose every key
channel has a gate of its own, made of a projection of low rank.
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
from .delta_scan import BY_HEAD, CHUNK
from .norm import Norm, front
from .sites import FRONT
from .token_blocks import tokens_at_once


class KimiDeltaParameters(eqx.Module):
    """One sublayer: the norm and the mixer after it."""

    norm: Norm | None
    q_proj: Weight
    """(heads key_dim, d_model)."""
    k_proj: Weight
    v_proj: Weight
    """(heads value_dim, d_model)."""
    f_down: Weight | None
    """(rank, d_model), in front of `f_proj`; None: that reads the input itself."""
    f_proj: Weight
    """(heads key_dim, rank or d_model), of the gates."""
    g_down: Weight | None
    g_proj: Weight
    """(heads value_dim, rank or d_model), of the gated norm."""
    b_proj: Weight
    conv_weight: Float[Array, "conv_channels d_conv"]
    conv_bias: Float[Array, " conv_channels"]
    dt_bias: Float[Array, " gates"]
    A_log: Float[Array, " heads"]
    gate_norm: Float[Array, " value_dim"]
    out_proj: Weight
    gate_norm_epsilon: float = eqx.field(static=True)
    gate_lower_bound: float | None = eqx.field(static=True)
    key_epsilon: float = eqx.field(static=True)
    chunk: int = eqx.field(static=True)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Heads, and the sizes of a key and of a value."""
        heads, each = self.A_log.shape[0], (self.q_proj, self.v_proj)
        key_dim, value_dim = (one.matrix.shape[0] // heads for one in each)
        return heads, key_dim, value_dim

    def initial_state(self) -> DeltaState:
        """What is carried before the first token of a text."""
        return DeltaState.zeros(self.conv_weight, *self.sizes)


def kimi_delta(
    at: AbstractArithmetic, residual, p: KimiDeltaParameters, start: DeltaState
):
    """One sublayer over a sequence: as `gated_delta`."""
    return through_blocks(at, _kimi_delta, residual, p, start)


def _kimi_delta(
    at: AbstractArithmetic, residual, p: KimiDeltaParameters, start: DeltaState
):
    x = front(at, residual, p.norm)
    heads = p.sizes[0]
    read = at.store("in_operand", x)
    put = lambda site, x, rows: at.store(site, at.matmul(x, rows))
    mixed = [put("q", read, p.q_proj), put("k", read, p.k_proj)]
    mixed.append(put("v", read, p.v_proj))
    z = at.view(headed(heads), _projected(at, x, p.g_down, p.g_proj, "z"))
    q, k, v, window = convolved(at, mixed, p, start)

    gate = _projected(at, x, p.f_down, p.f_proj, "forget")
    rate = at.store("rate", at.sigmoid(put("rate_logit", x, p.b_proj)))
    gate = at.view(headed(heads), at.add(gate, p.dt_bias))
    size = at.view(lambda a: a[:, None], at.exp(p.A_log))
    if p.gate_lower_bound is None:
        step = at.store("softplus", at.softplus(gate))
        log_gate = at.multiply(step, at.negate(size))
    else:
        open_ = at.sigmoid(at.multiply(gate, size))
        log_gate = at.multiply(open_, at.fixed(p.gate_lower_bound))
    log_gate = at.store("log_gate", log_gate)
    q, k = units(at, q, k, heads, p.key_epsilon)
    y, state = delta_rule(
        at, q, k, v, rate, log_gate, start.state, p.chunk, inverted=True
    )

    out = gated_out(at, y, at.sigmoid(z), p)
    return out, DeltaState(window, state)


def _projected(at: AbstractArithmetic, x, down: Weight | None, up: Weight, site: str):
    if down is not None:
        x = at.store(f"{site}_low", at.matmul(x, down))
    return at.store(site, at.matmul(x, up))


@final
@dataclass(frozen=True)
class KimiDeltaSizes(AbstractSublayer):
    """One Kimi Delta Attention with the norm before it.

    **Arguments:**

    - `key_dim`, `value_dim`: of one head.
    - `gate_rank`: of what the gates, and that of the norm behind, are made of; None:
      of one matrix each.
    - `gate_lower_bound`: log gates lie between it and 0 (GLM, Ling); None: softplus.
    - `key_epsilon`: under the root that queries and keys are divided by.
    - `chunk`: tokens of a chunk in the chunked form.
    - `norm_front`: whether there is a norm before it.
    """

    d_model: int
    heads: int
    key_dim: int
    value_dim: int
    d_conv: int
    norm_epsilon: float
    gate_norm_epsilon: float
    gate_rank: int | None = None
    gate_lower_bound: float | None = None
    key_epsilon: float = 1e-6
    chunk: int = 64
    norm_front: bool = True

    kind: ClassVar = "kimi_delta"
    recurrent: ClassVar = True
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(kimi_delta)
    sites: ClassVar = (
        *FRONT, "in_operand",
        "q", "k", "v", "z_low", "z", "forget_low", "forget", "rate_logit",
        *CONVOLVED, "rate", "softplus", "log_gate", "q_unit", "k_unit",
        *(site for site in CHUNK if site not in BY_HEAD), "state", "state_read",
        "scan_output", "gate_norm_hat", "gate_norm", "gated", "out_operand", "out",
    )  # fmt: skip
    weight_groups: ClassVar = within(
        "kimi_delta",
        "mixers",
        projections="q_proj k_proj v_proj f_down f_proj f_up g_down g_proj g_up b_proj"
        " out_proj",
        recurrence="A_log dt_bias",
        conv="conv_weight conv_bias",
        norms="norm gate_norm",
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """The convolution's last inputs, and S."""
        return HAND_OVER

    def parameters(self, get: Get) -> KimiDeltaParameters:
        """Put the flow's parameters together from stored ones."""
        low: dict[str, Any] = {
            f"{of}_{part}": get(f"{of}_{name}")
            for of in "fg"
            for part, name in (("down", "down"), ("proj", "up"))
        }
        for of in "fg":
            if low[f"{of}_down"] is None:
                low[f"{of}_proj"] = get(f"{of}_proj")
        low = {name: None if a is None else Weight(a) for name, a in low.items()}
        return KimiDeltaParameters(
            norm=Norm(get("norm"), None, self.norm_epsilon)
            if self.norm_front
            else None,
            gate_norm_epsilon=self.gate_norm_epsilon,
            gate_lower_bound=self.gate_lower_bound,
            key_epsilon=self.key_epsilon,
            chunk=self.chunk,
            **shared_parameters(get),
            **low,
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights, activations and states."""
        del length
        keys, values = self.heads * self.key_dim, self.heads * self.value_dim
        conv = 2 * keys + values
        rank, gates = self.gate_rank, keys + values
        low = self.d_model * gates
        if rank is not None:
            low = rank * (2 * self.d_model + gates)
        return Counts(
            weights=self.d_model * (conv + self.heads + values)
            + low
            + conv * self.d_conv,
            channels=max(conv, self.chunk * self.heads),
            scores=0,
            states=values * self.key_dim,
            at_once=batch * tokens_at_once(2 * conv, self.chunk, batch),
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> DeltaDynamics:
        """Find what the step matrices are made of."""
        return dynamics(raw, observed, self.value_dim)
