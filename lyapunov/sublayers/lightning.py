"""Lightning attention, linear attention whose heads each forget at one rate.

After `MiniMaxLightningAttention` of transformers 5.24 (arXiv 2501.08313, section 2.2):
S <- exp(-slope) S + v k^T, read by q. A whole text goes block by block, with tensors of
decays that the checkpoint holds beside the slopes; steps have no use for these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from ..arithmetic._delta import keys_first, keys_last
from ._sublayer import AbstractSublayer, Counts, Dynamics, Get, HandedOn, within
from .norm import Norm, normalise, scaled
from .token_blocks import in_token_blocks, tokens_at_once


class LightningParameters(eqx.Module):
    """One sublayer; its input is normalised already."""

    q_proj: Weight
    """(heads head_dim, d_model), as the next two."""
    k_proj: Weight
    v_proj: Weight
    g_proj: Weight
    """(heads head_dim, d_model), of the gate in front of the output."""
    gate_norm: Norm
    """Over all heads together."""
    out_proj: Weight
    """(d_model, heads head_dim)."""
    slope: Float[Array, " heads"]
    """Less the log decays."""
    query_decay: Float[Array, "heads block"]
    """From the start of a block to behind each of its tokens."""
    key_decay: Float[Array, "heads block"]
    """From behind each token to the end."""
    diagonal_decay: Float[Array, "heads block block"]
    """From each token to each later one, 0 to earlier ones."""
    keeps: float = eqx.field(static=True, default=1.0)
    out_multiplier: float = eqx.field(static=True, default=1.0)

    def initial_state(self) -> "LightningState":
        """What is carried before the first token of a text."""
        heads = self.slope.shape[0]
        size = self.q_proj.matrix.shape[0] // heads
        return LightningState(jnp.zeros((size, heads, size)))


class LightningState(eqx.Module):
    """What a step carries."""

    state: Any
    """(keys, heads, values), S of each head."""


def lightning(
    at: AbstractArithmetic, residual, p: LightningParameters, start: LightningState
):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, d_model), normalised.
    - `start`: the state before the first token.

    **Returns:** the output (seq, d_model), and `start` for the token after the last.
    """
    ratio = at.negate(p.slope)
    if not at.form.chunked:
        ratio = at.store("head_decay", at.fading(ratio))

    def flow(at, residual, p, start):
        return _lightning(at, residual, p, start, ratio)

    if at.form.calls:
        # of several calls blocks begin with each
        return flow(at, residual, p, start)
    block, widest = p.query_decay.shape[1], 3 * p.q_proj.matrix.shape[0]
    return in_token_blocks(at, flow, residual, p, start, widest=widest, multiple=block)


def _lightning(at: AbstractArithmetic, residual, p: LightningParameters, start, ratio):
    x = at.store("norm_input", residual)
    heads, seq = p.slope.shape[0], residual.shape[0]

    def projected(name, weight):
        y = at.store(name, at.matmul(x, weight))
        y = at.store(f"{name}_silu", at.silu(y))
        return at.view(lambda a: a.reshape(seq, heads, -1), y)

    q, k = projected("q", p.q_proj), projected("k", p.k_proj)
    v = projected("v", p.v_proj)
    gate = at.store("output_gate", at.matmul(x, p.g_proj))
    faded = at.negate(p.slope)
    at.observe("log_decay", at.view(lambda a: jnp.broadcast_to(a, (seq, heads)), faded))

    state = at.view(keys_last, at.carry(start.state))
    if at.form.chunked:
        y, state = _in_blocks(at, (q, k, v), p, ratio, state)
    else:
        state, y = at.scan(
            lambda at, state, token: _step(at, state, token, ratio), state, (q, k, v)
        )
    y = at.store("scan_output", at.view(lambda a: a.reshape(seq, -1), y))

    y = normalise(at, y, p.gate_norm, "gate_norm")
    gate = at.store("output_gate_sigmoid", at.sigmoid(gate))
    y = at.multiply(y, gate, alone=at.stores("output_gate_sigmoid"))
    y = at.store("read_gated", y)
    out = at.store("out", at.matmul(y, p.out_proj))
    out = scaled(at, out, p.out_multiplier, "out_scaled")
    return out, LightningState(at.view(keys_first, state))


def _step(at: AbstractArithmetic, state, token, ratio):
    """One token: (state after it, what is read)."""
    q, k, v = token
    written = at.multiply(
        at.view(lambda a: a[:, :, None], v), at.view(lambda a: a[:, None], k)
    )
    state = _kept_and_written(at, state, ratio, written, at.stores("state_written"))
    y = at.einsum("hvk,hk->hv", state, q)
    # a cache gets the state in its format; what is read now is not from there
    stored = at.store("state", at.view(keys_first, state))
    return at.carry(at.view(keys_last, stored)), y


def _kept_and_written(at: AbstractArithmetic, state, ratio, written, alone: bool):
    kept = at.multiply(state, at.view(lambda a: a[:, None, None], ratio), alone=alone)
    kept = at.store("state_kept", kept)
    after = at.updated(kept, at.store("state_written", written))
    at.observe("state", after)
    return at.carry(at.store("state_read", after))


def _in_blocks(at: AbstractArithmetic, tokens, p: LightningParameters, log_decay, S):
    """(what is read, state after it), a block of tokens at a time in each call."""
    seq, block = tokens[0].shape[0], p.query_decay.shape[1]
    outputs, begun = [], 0
    for call in at.form.calls or (seq,):
        whole = call // block * block
        end, stop = begun + whole, begun + call
        body = lambda at, S, some: _block(at, S, some, p, log_decay)
        if whole:
            cut = lambda a: a.reshape(-1, block, *a.shape[1:])
            blocks = tuple(at.view(cut, x[begun:end]) for x in tokens)
            S, y = at.scan(body, S, blocks)
            outputs.append(at.view(lambda a: a.reshape(-1, *a.shape[2:]), y))
        if end < stop:
            # what is left is a block of its own, and no row of zeros decays
            S, y = at.scan(body, S, tuple(x[end:stop][None] for x in tokens))
            outputs.append(at.view(lambda a: a[0], y))
        begun = stop
    return at.join(outputs), S


def _block(at: AbstractArithmetic, S, tokens, p: LightningParameters, log_decay):
    """One block: (state behind it, what is read)."""
    q, k, v = tokens
    count = q.shape[0]
    causal = jnp.tril(jnp.ones((count, count)))
    pairs = at.store("pairs", at.einsum("lhk,shk->hls", q, k))
    decay = p.diagonal_decay[:, :count, :count]
    pairs = at.mask(at.multiply(pairs, decay, alone=at.stores("pairs")), causal)
    pairs = at.store("pairs_decayed", pairs)
    within = at.store("read_within", at.einsum("hls,shv->lhv", pairs, v))
    by_token = lambda decay: decay.T[:, :, None]
    alone = at.stores("q_decayed")
    reads = at.multiply(q, by_token(p.query_decay[:, :count]), alone=alone)
    before = at.einsum("lhk,hvk->lhv", at.store("q_decayed", reads), S)
    y = at.add(at.store("read_before", before), within, alone=alone)

    keys = at.multiply(k, by_token(p.key_decay[:, -count:]), alone=alone)
    written = at.einsum("shk,shv->hvk", at.store("k_decayed", keys), v)
    elapsed = at.multiply(log_decay, at.fixed(float(count)), alone=alone)
    elapsed = at.store("head_log_decay", elapsed)
    ratio = at.store("head_decay", at.fading(elapsed))
    return _kept_and_written(at, S, ratio, written, alone), y


@final
@dataclass(frozen=True)
class LightningSizes(AbstractSublayer):
    """One lightning attention, whose input is normalised.

    **Arguments:**

    - `block`: tokens of a block.
    - `gate_norm_epsilon`: of the norm over what all heads read.
    - `keeps`: what the stream in front is multiplied by.
    """

    d_model: int
    heads: int
    head_dim: int
    block: int
    gate_norm_epsilon: float
    keeps: float = 1.0
    out_multiplier: float = 1.0

    norm_front: ClassVar = False
    kind: ClassVar = "lightning"
    recurrent: ClassVar = True
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(lightning)
    sites: ClassVar = (
        "norm_input", "q", "k", "v", "output_gate", "q_silu", "k_silu", "v_silu",
        "pairs", "pairs_decayed", "read_within", "q_decayed", "read_before",
        "k_decayed", "head_log_decay", "head_decay", "state_kept", "state_written",
        "state", "state_read", "scan_output", "gate_norm_hat", "gate_norm",
        "output_gate_sigmoid", "read_gated", "out", "out_scaled",
    )  # fmt: skip
    weight_groups: ClassVar = within(
        "lightning",
        "mixers",
        projections="q_proj k_proj v_proj g_proj out_proj",
        recurrence="slope query_decay key_decay diagonal_decay",
        norms="gate_norm",
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """S."""
        return (HandedOn("state", "state", ("state",)),)

    def parameters(self, get: Get) -> LightningParameters:
        """Put the flow's parameters together from stored ones."""
        own = ("slope", "query_decay", "key_decay", "diagonal_decay")
        return LightningParameters(
            gate_norm=Norm(get("gate_norm"), None, self.gate_norm_epsilon),
            keeps=self.keeps,
            out_multiplier=self.out_multiplier,
            **{
                name: Weight(get(name))
                for name in (*(f"{of}_proj" for of in "qkvg"), "out_proj")
            },
            **{name: get(name) for name in own},
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights, with the tensors of decays, activations and states."""
        del length
        wide = self.heads * self.head_dim
        return Counts(
            weights=5 * self.d_model * wide
            + self.heads * self.block * (self.block + 2),
            channels=max(3 * wide, self.heads * self.block),
            scores=0,
            states=wide * self.head_dim,
            at_once=batch * tokens_at_once(3 * wide, self.block, batch),
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> Dynamics:
        """Find one decay a head, the same at every token."""
        log_decay = np.asarray(observed["log_decay"], np.float64)
        return Dynamics(self.head_dim**2, log_decay)
