"""What an mLSTM sublayer computes (Beck et al. 2024, arXiv 2405.04517, section 2.3).

After `xLSTMLayer` of transformers 5.24 (`modeling_xlstm.py`), token by token: a matrix
of values by keys and the sum of the keys, beside it as one more value of 1, fade by one
forget gate a head. They are held over a running maximum of the gates' logarithms, which
exact arithmetic knows nothing of but where it ends a denominator; a cache that rounds
it multiplies all that it has by a number next to 1 (`rules.log_weights`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ..arithmetic._log_weights import LOG_WEIGHTS, NORMALISED, UNDER_SCALE
from ._sublayer import AbstractSublayer, Counts, Dynamics, Get, HandedOn, within
from .norm import Norm, front
from .sites import FRONT
from .soft_cap import soft_capped
from .token_blocks import in_token_blocks, tokens_at_once


GATES = tuple(
    f"{name}_{part}"
    for name in ("input", "forget")
    for part in ("logit", "divided", "tanh", "gate")
)
"""What both gates are made of, and they."""


class MLSTMParameters(eqx.Module):
    """One sublayer: the norm and the mixer after it."""

    norm: Norm | None
    q_proj: Weight
    """(heads key_dim, d_model)."""
    k_proj: Weight
    v_proj: Weight
    """(heads value_dim, d_model)."""
    g_proj: Weight
    """Of the output gate, as large."""
    i_proj: Weight
    """(heads, d_model)."""
    i_bias: Float[Array, " heads"]
    f_proj: Weight
    f_bias: Float[Array, " heads"]
    gate_norm: Float[Array, " values"]
    """heads value_dim of them; a LayerNorm of each head."""
    out_proj: Weight
    gate_norm_epsilon: float = eqx.field(static=True)
    soft_cap: float = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    def initial_state(self) -> "MLSTMState":
        """What is carried before the first token of a text."""
        heads = self.i_bias.shape[0]
        keys, values = (w.matrix.shape[0] // heads for w in (self.k_proj, self.v_proj))
        return MLSTMState(jnp.zeros((heads, keys, values + 1)), jnp.zeros(heads))


class MLSTMState(eqx.Module):
    """What a decode step carries."""

    state: Any
    """(heads, key_dim, value_dim + 1), over e^top."""
    top: Any
    """(heads)."""


def mlstm(at: AbstractArithmetic, residual, p: MLSTMParameters, start: MLSTMState):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, d_model), the stream before the norm.
    - `start`: state and maximum before the first token.

    **Returns:** the mixer's output (seq, d_model), and `start` for the token after
    the last.
    """
    widest = 2 * (p.q_proj.matrix.shape[0] + p.v_proj.matrix.shape[0])
    return in_token_blocks(at, _mlstm, residual, p, start, widest=widest)


def _mlstm(at: AbstractArithmetic, residual, p: MLSTMParameters, start: MLSTMState):
    x = front(at, residual, p.norm)
    seq, heads = x.shape[0], p.i_bias.shape[0]
    headed = lambda a: a.reshape(seq, heads, -1)
    put = lambda site, rows: at.store(site, at.matmul(x, rows))
    q, k = put("q", p.q_proj), put("k", p.k_proj)
    v, output = put("v", p.v_proj), put("output_logit", p.g_proj)
    log_input = _capped(at, "input", at.matmul(x, p.i_proj, p.i_bias), p.soft_cap)
    forget = _capped(at, "forget", at.matmul(x, p.f_proj, p.f_bias), p.soft_cap)
    log_forget = at.negate(at.softplus(at.negate(forget)))
    log_forget = at.store("log_forget", log_forget)
    at.observe("log_forget", log_forget)
    q, k, v = (at.view(headed, one) for one in (q, k, v))
    q = at.store("q_scaled", at.multiply(q, at.fixed(q.shape[-1] ** -0.5)))

    def token(at, carried, given):
        (state, top), (query, key, value, log_input, log_forget) = carried, given
        one = at.carry(jnp.ones((heads, 1)))
        drive = at.view(lambda a: a[:, None, :], at.join([value, one], axis=-1))
        key = at.view(lambda a: a[:, :, None], key)
        write = at.store("write", at.multiply(key, drive, alone=at.stores("write")))
        share = at.apply(LOG_WEIGHTS, top, log_forget, log_input)
        wide = lambda x: at.view(lambda a: a[:, None, None], x)
        kept = at.multiply(wide(share[0]), state)
        state = at.updated(kept, at.multiply(wide(share[1]), at.carry(write)))
        top = share[2]
        state = at.apply(UNDER_SCALE, state, wide(top))
        at.observe("state", state)
        read = at.store_under("state_read", state, wide(top))
        y = at.einsum("hk,hkv->hv", query, at.carry(read))
        row = at.view(lambda a: a[:, None], top)
        y = at.carry(at.store_under("read_out", y, row))
        below = y[..., -1:], row, at.fixed(p.epsilon)
        y = at.apply(NORMALISED, y[..., :-1], *below)
        state = at.store_under("state", state, wide(top))
        top, state = at.store_scale("state_top", top, state)
        return (at.carry(state), at.carry(top)), y

    carried = at.carry(start.state), at.carry(start.top)
    inputs = (q, k, v, log_input, log_forget)
    (state, top), y = at.scan(token, carried, inputs)
    y = at.store("scan_output", y)
    y = at.store("gate_norm_hat", at.layer_normalise(y, p.gate_norm_epsilon))
    y = at.view(lambda a: a.reshape(seq, -1), y)
    y = at.multiply(y, p.gate_norm, alone=at.stores("gate_norm_hat"))
    y = at.store("gate_norm", y)
    output = at.store("output_sigmoid", at.sigmoid(output))
    y = at.multiply(output, y, alone=at.stores("gate_norm"))
    out = at.store("out", at.matmul(at.store("gated", y), p.out_proj))
    return out, MLSTMState(state, top)


def _capped(at: AbstractArithmetic, name: str, logit, cap: float):
    """cap tanh(logit / cap), stored on the way."""
    y = at.store(f"{name}_logit", logit)
    return soft_capped(at, y, cap, name, f"{name}_gate")


@final
@dataclass(frozen=True)
class MLSTMSizes(AbstractSublayer):
    """One mLSTM with the norm before it.

    **Arguments:**

    - `key_dim`, `value_dim`: of one head.
    - `soft_cap`: c, where gates g are c tanh(g / c).
    - `epsilon`: added to what values are divided by.
    - `chunk`: tokens of a call from which on transformers runs in chunks.
    - `norm_front`: whether there is a norm before it.
    """

    d_model: int
    heads: int
    key_dim: int
    value_dim: int
    norm_epsilon: float
    gate_norm_epsilon: float
    soft_cap: float = 15.0
    epsilon: float = 1e-6
    chunk: int = 64
    norm_front: bool = True

    kind: ClassVar = "mlstm"
    recurrent: ClassVar = True
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(mlstm)
    sites: ClassVar = (
        *FRONT, "q", "k", "v", "output_logit", *GATES, "log_forget", "q_scaled",
        "write", "state", "state_read", "read_out", "state_top", "scan_output",
        "gate_norm_hat", "gate_norm", "output_sigmoid", "gated", "out",
    )  # fmt: skip
    weight_groups: ClassVar = within(
        "mlstm",
        "mixers",
        projections="q_proj k_proj v_proj g_proj i_proj f_proj out_proj",
        biases="i_bias f_bias",
        norms="norm gate_norm",
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """The state and its maximum."""
        return (
            HandedOn("state", "state", ("state",)),
            HandedOn("top", "state", ("state_top",)),
        )

    def parameters(self, get: Get) -> MLSTMParameters:
        """Put the flow's parameters together from stored ones."""
        names = (*(f"{name}_proj" for name in "qkvgif"), "out_proj")
        return MLSTMParameters(
            norm=Norm(get("norm"), None, self.norm_epsilon)
            if self.norm_front
            else None,
            i_bias=get("i_bias"),
            f_bias=get("f_bias"),
            gate_norm=get("gate_norm"),
            gate_norm_epsilon=self.gate_norm_epsilon,
            soft_cap=self.soft_cap,
            epsilon=self.epsilon,
            **{name: Weight(get(name)) for name in names},
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights, activations and states."""
        del length
        keys, values = self.heads * self.key_dim, self.heads * self.value_dim
        rows, wide = 2 * (keys + values + self.heads), 2 * (keys + values)
        return Counts(
            weights=self.d_model * (rows + values),
            channels=wide,
            scores=0,
            states=keys * (self.value_dim + 1),
            at_once=batch * tokens_at_once(wide, 1, batch),
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> Dynamics:
        """Find one decay a head, the forget gate."""
        log_forget = np.asarray(observed["log_forget"], np.float64)
        return Dynamics(self.key_dim * (self.value_dim + 1), log_forget)
