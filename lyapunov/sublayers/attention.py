"""Causal attention with rotary positions, as GPT-NeoX, Llama and their kin compute it.

Attention has no state of fixed size: its cache grows with the text, so that it is not
a recurrence and has no Lyapunov exponents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._devices import in_batch
from ..arithmetic import AbstractArithmetic, Weight
from ._sublayer import (
    AbstractSublayer,
    Counts,
    Get,
    HandedOn,
    convolution,
    with_biases,
    within,
)
from .latent import Latent, latent, latent_of
from .mlp import LowRank, adapter_of, around, projected, weight_of
from .norm import Norm, norm_of, normalise, scaled
from .rotary import rotary_table, turned
from .scores import attended
from .sites import BEHIND, FRONT
from .token_blocks import in_token_blocks


NOT_A_RECURRENCE = "no exponent: not a recurrence"

_LATENT = ("", "_norm_hat", "_norm")
ATTEND = (
    "in_scaled", "in_operand", *(f"{x}_down{e}" for x in ("q", "kv") for e in _LATENT),
    *(f"{part}_{of}" for part in "qkv" for of in ("shared", "low", "own")),
    "q", "k", "v", "output_gate", "q_clipped", "k_clipped", "v_clipped", "conv",
    "q_norm_hat", "q_norm", "k_norm_hat", "k_norm", "k_scaled", "rotary_cos",
    "rotary_sin", "q_cos", "q_sin", "q_turned", "k_cos", "k_sin", "k_turned",
    "scores_product", "scores", "attention", "read", "output_gate_sigmoid",
    "read_gated",
)  # fmt: skip
"""Sites between the norms of an attention."""

SCORES_AT_ONCE = 2**24
"""Scores, of all heads and sequences, that one temporary holds: 128 MiB in fp64. Of
more, queries go through in blocks."""


class AttentionParameters(eqx.Module):
    """One sublayer: the norm and the attention after it."""

    norm: Norm | None
    q_proj: Weight
    """(heads head_dim, width); of its latent, where it has one, as the next two."""
    k_proj: Weight
    """(kv_heads head_dim, width), without the channels that all heads share."""
    v_proj: Weight
    """(kv_heads value_dim, width)."""
    q_bias: Float[Array, " q_channels"] | None
    k_bias: Float[Array, " kv_channels"] | None
    v_bias: Float[Array, " kv_channels"] | None
    """Of heads head_dim and of kv_heads head_dim channels."""
    q_norm: Norm | None
    """Over each head's channels; over all of them where its weight is as wide."""
    k_norm: Norm | None
    o_proj: Weight
    """(d_model, heads value_dim)."""
    o_bias: Float[Array, " d_model"] | None
    heads: int = eqx.field(static=True)
    kv_heads: int = eqx.field(static=True)
    rotary: int = eqx.field(static=True)
    """Leading channels of a head that turn with position; 0: none."""
    theta: float = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    """Of the scores; usually 1 / sqrt(head_dim)."""
    clip: float | None = eqx.field(static=True, default=None)
    """q, k and v are clipped to its magnitude (OLMo)."""
    key_multiplier: float = eqx.field(static=True, default=1.0)
    in_multiplier: float = eqx.field(static=True, default=1.0)
    """Of what q, k and v are made of (Falcon-H1)."""
    out_multiplier: float = eqx.field(static=True, default=1.0)
    """Of the output, before it joins the residual; `keeps`: of that (MiniMax)."""
    keeps: float = eqx.field(static=True, default=1.0)
    norm_behind: Norm | None = None
    """Of the output (OLMo 2)."""
    q_adapter: LowRank | None = None
    k_adapter: LowRank | None = None
    v_adapter: LowRank | None = None
    conv_weight: Float[Array, "channels d_conv"] | None = None
    """Of a causal convolution over q, k and v, in this order (mamba_ssm's MHA)."""
    conv_bias: Float[Array, " channels"] | None = None
    g_proj: Weight | None = None
    """(heads value_dim, width), or (heads, width): its sigmoid multiplies what heads
    read (Qwen3-Next, Ling)."""
    g_bias: Float[Array, " gates"] | None = None
    q_latent: Latent | None = None
    kv_latent: Latent | None = None
    """Beside the latent itself it has the leading channels of each head's key."""
    window: int | None = eqx.field(static=True, default=None)

    def initial_state(self) -> "AttentionState":
        """Nothing has been read."""
        return initial_state(self)


class AttentionState(eqx.Module):
    """The cache: keys, turned already, and values of all tokens so far."""

    keys: Any
    """(past, kv_heads, head_dim)."""
    values: Any
    """(past, kv_heads, value_dim)."""
    window: Any = None
    """(d_conv - 1, channels), the convolution's last inputs, where there is one."""


def initial_state(p: AttentionParameters) -> AttentionState:
    """An empty cache."""
    empty = lambda rows, heads: jnp.zeros((0, p.kv_heads, rows.shape[0] // heads))
    window = None
    if p.conv_weight is not None:
        channels, taps = p.conv_weight.shape
        window = jnp.zeros((taps - 1, channels))
    keys, values = empty(p.q_proj.matrix, p.heads), empty(p.v_proj.matrix, p.kv_heads)
    return AttentionState(keys=keys, values=values, window=window)


def attention(
    at: AbstractArithmetic, residual, p: AttentionParameters, start: AttentionState
):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, width), the stream before the norm.
    - `start`: the cache of the tokens before.

    **Returns:** the output (seq, d_model), and the cache with these tokens in it.
    """
    y, after = attend(at, residual, p, start)
    out, _ = in_token_blocks(at, _put_out, y, p, None, widest=y.shape[-1])
    return out, after


def _put_out(at: AbstractArithmetic, y, p: AttentionParameters, start):
    out = at.store("out", at.matmul(at.store("read_operand", y), p.o_proj, p.o_bias))
    out = normalise(at, out, p.norm_behind, "norm_behind")
    return scaled(at, out, p.out_multiplier, "out_scaled"), start


def _normed_and_projected(at: AbstractArithmetic, x, p: AttentionParameters, start):
    """Queries, keys, values, keys that heads share, and gates: (seq, channels) each."""
    x = normalise(at, at.store("norm_input", x), p.norm)
    x = at.store("in_operand", scaled(at, x, p.in_multiplier, "in_scaled"))
    of_q, _ = latent(at, x, p.q_latent, p.q_proj.matrix.shape[1], "q_down")
    of_kv, shared = latent(at, x, p.kv_latent, p.k_proj.matrix.shape[1], "kv_down")
    q = projected(at, of_q, p.q_proj, p.q_bias, p.q_adapter, "q")
    k = projected(at, of_kv, p.k_proj, p.k_bias, p.k_adapter, "k")
    v = projected(at, of_kv, p.v_proj, p.v_bias, p.v_adapter, "v")
    gate = None
    if p.g_proj is not None:
        gate = projected(at, x, p.g_proj, p.g_bias, None, "output_gate")
    return (q, k, v, shared, gate), start


def attend(at: AbstractArithmetic, x, p: AttentionParameters, start: AttentionState):
    """The attention on an input (seq, width), the norm before it, not what is behind.

    **Returns:** what the heads read side by side, gated where there is a gate, (seq,
    heads value_dim), and the cache.
    """
    past, widest = start.keys.shape[0], max(x.shape[-1], p.q_proj.matrix.shape[0])
    parts, _ = in_token_blocks(at, _normed_and_projected, x, p, None, widest=widest)
    q, k, v, shared, gate = parts
    window = start.window
    if p.conv_weight is not None:
        padded = at.join([window, at.join([q, k, v], axis=-1)])
        mixed = at.causal_conv(padded, p.conv_weight, p.conv_bias)
        mixed = at.store("conv", mixed)
        first, second = q.shape[-1], q.shape[-1] + k.shape[-1]
        q, k, v = mixed[..., :first], mixed[..., first:second], mixed[..., second:]
        window = padded[x.shape[0] :]
    if (most := p.clip) is not None:
        clipped = lambda y, site: at.store(site, at.clip(y, -most, most))
        q, k = clipped(q, "q_clipped"), clipped(k, "k_clipped")
        v = clipped(v, "v_clipped")
    q = _in_heads(at, q, p.heads, p.q_norm, "q_norm")
    k = _in_heads(at, k, p.kv_heads, p.k_norm, "k_norm")
    v = _in_heads(at, v, p.kv_heads, None, "")
    if shared is not None:
        all_heads = lambda a: jnp.repeat(a[:, None], p.kv_heads, 1)
        k = at.join([at.view(all_heads, shared), k], axis=-1)
    k = scaled(at, k, p.key_multiplier, "k_scaled")
    if p.rotary:
        table = rotary_table(at, x.shape[0], p.rotary, p.theta, past)
        q, k = turned(at, q, table, "q"), turned(at, k, table, "k")
    q, k = at.store("q_turned", q), at.store("k_turned", k)
    k, v = at.join([start.keys, k]), at.join([start.values, v])

    rows = rows_at_once(p.heads, k.shape[0])
    own = lambda a: a
    if rows >= q.shape[0]:
        # no larger than the scores; of several blocks each would make copies anew
        own = partial(jnp.repeat, repeats=p.heads // p.kv_heads, axis=1)
    keys, values = at.view(own, k), at.view(own, v)

    def read(at, state, queries):
        q, places = queries
        return state, attended(at, q, keys, values, places + past, p.scale, p.window)

    _, y = at.in_row_blocks(read, None, (q, jnp.arange(q.shape[0])), rows, pairs=True)
    y = at.store("read", at.view(lambda a: a.reshape(a.shape[0], -1), y))
    if gate is not None:
        gate = at.store("output_gate_sigmoid", at.sigmoid(gate))
        of_each = y.shape[-1] // gate.shape[-1]
        gate = at.view(lambda a: jnp.repeat(a, of_each, -1), gate)
        alone = at.stores("output_gate_sigmoid")
        y = at.store("read_gated", at.multiply(y, gate, alone=alone))
    return y, AttentionState(keys=k, values=v, window=window)


def rows_at_once(heads: int, keys: int, sequences: int | None = None) -> int:
    """Count the queries whose scores are held at once; at least one.

    **Arguments:**

    - `sequences`: of the batch; None: those that `over_batch` runs side by side.
    """
    side_by_side = in_batch() if sequences is None else sequences
    return max(1, SCORES_AT_ONCE // (heads * keys * side_by_side))


def _in_heads(at: AbstractArithmetic, x, heads: int, norm: Norm | None, site: str):
    """(seq, heads head_dim) to (seq, heads, head_dim), normalised before or after."""
    part = lambda a: a.reshape(a.shape[0], heads, -1)
    weight = None if norm is None else norm.weight
    if weight is not None and weight.shape[0] == x.shape[-1]:
        return at.view(part, normalise(at, x, norm, site))
    return normalise(at, at.view(part, x), norm, site)


@final
@dataclass(frozen=True)
class AttentionSizes(AbstractSublayer):
    """One attention with the norm before it.

    **Arguments:**

    - `rotary`: leading channels of a head that turn with position, at rates from
      `theta`; 0: positions are not seen.
    - `scale`: of the scores.
    - `norm_epsilon`, `norm_centred`: of the norm; centred is LayerNorm.
    - `norm_offset`: of all norms, those over heads among them, as in `Norm`.
    - `norm_front`, `norm_behind`: whether the input and the output are normalised.
    - `width`: of the input, where it is not d_model.
    - `clip`: q, k and v are clipped to this magnitude.
    - `d_conv`: taps of a convolution over q, k and v; 0: none.
    - `key_multiplier`, `in_multiplier`, `out_multiplier`, `keeps`: of keys, input,
      output and of the stream in front, which the output joins.
    - `beside`: reads what the sublayer before it read, not what that one wrote.
    - `gates`: of a head's output, `value_dim` or one for all of it; 0: none.
    - `q_rank`, `kv_rank`: width of the latents that queries, and keys and values, are
      made of, with norms of `latent_epsilon`; 0: they are made of the input.
    - `shared_key`: leading channels of a head's key that all heads share.
    - `value_dim`: channels of a head's values, where they are not `head_dim`.
    - `window`: tokens that a token reads, itself among them; None: all before it.
    """

    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    theta: float
    scale: float
    norm_epsilon: float
    norm_centred: bool = False
    norm_offset: float = 0.0
    norm_front: bool = True
    norm_behind: bool = False
    width: int | None = None
    clip: float | None = None
    d_conv: int = 0
    key_multiplier: float = 1.0
    in_multiplier: float = 1.0
    out_multiplier: float = 1.0
    keeps: float = 1.0
    beside: bool = False
    gates: int = 0
    q_rank: int = 0
    kv_rank: int = 0
    shared_key: int = 0
    value_dim: int | None = None
    latent_epsilon: float = 1e-6
    window: int | None = None

    kind: ClassVar = "attention"
    recurrent: ClassVar = False
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(attention)
    sites: ClassVar = (*FRONT, *ATTEND, "read_operand", *BEHIND)
    weight_groups: ClassVar = within(
        "attention",
        projections="q_proj k_proj v_proj o_proj g_proj q_down kv_down q_adapter_down"
        " q_adapter_up k_adapter_down k_adapter_up v_adapter_down v_adapter_up",
        biases="q_bias k_bias v_bias o_bias g_bias q_down_bias kv_down_bias",
        norms=with_biases(
            *("norm", "norm_behind", "q_norm", "k_norm", "q_down_norm", "kv_down_norm")
        ),
        conv="conv_weight conv_bias",
    )

    @property
    def hand_over(self) -> tuple[HandedOn, ...]:
        """Keys and values of all tokens, and a convolution's last inputs."""
        values = "v" if self.d_conv == 0 else "conv"
        cache = (
            HandedOn("keys", "cache", ("k_turned",)),
            HandedOn(
                "values", "cache", (values if self.clip is None else "v_clipped",)
            ),
        )
        if self.d_conv == 0:
            return cache
        return (*cache, HandedOn("window", "window", ("q", "k", "v")))

    def parameters(self, get: Get) -> AttentionParameters:
        """Put the flow's parameters together from stored ones."""
        how = self.norm_epsilon, self.norm_centred, self.norm_offset
        head_norms = {
            name: None if get(name) is None else norm_of(get, name, *how)
            for name in ("q_norm", "k_norm")
        }
        return AttentionParameters(
            q_proj=Weight(get("q_proj")),
            k_proj=Weight(get("k_proj")),
            v_proj=Weight(get("v_proj")),
            q_bias=get("q_bias"),
            k_bias=get("k_bias"),
            v_bias=get("v_bias"),
            o_proj=Weight(get("o_proj")),
            o_bias=get("o_bias"),
            heads=self.heads,
            kv_heads=self.kv_heads,
            rotary=self.rotary,
            theta=self.theta,
            scale=self.scale,
            clip=self.clip,
            key_multiplier=self.key_multiplier,
            in_multiplier=self.in_multiplier,
            q_adapter=adapter_of(get, "q"),
            k_adapter=adapter_of(get, "k"),
            v_adapter=adapter_of(get, "v"),
            **convolution(get),
            g_proj=weight_of(get, "g_proj"),
            g_bias=get("g_bias"),
            q_latent=latent_of(get, "q_down", self.latent_epsilon),
            kv_latent=latent_of(get, "kv_down", self.latent_epsilon),
            window=self.window,
            **head_norms,
            **around(self, get),
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights and activations; a cache is no state of fixed size."""
        width, value = self.width or self.d_model, self.value_dim or self.head_dim
        of_kv = self.kv_heads * (self.head_dim - self.shared_key + value)
        down = self.q_rank + self.kv_rank + self.shared_key + self.gates * self.heads
        weights = (
            self.heads * self.head_dim * (self.q_rank or width)
            + of_kv * (self.kv_rank or width)
            + (self.heads * self.head_dim + of_kv) * self.d_conv
            + down * width
            + value * self.heads * self.d_model
        )
        rows = rows_at_once(self.heads, length, batch)
        each = self.heads * length * batch
        whole = rows >= length
        return Counts(
            weights=weights,
            channels=self.heads * max(self.head_dim, value, length if whole else 0),
            scores=0 if whole else max(SCORES_AT_ONCE, each),
            states=0,
            # Granite-4-H's widths: none in blocks beside the stream's and the scores';
            # 7 in T1 and 11 in T0 of 512 tokens, whose scores are stored whole
            arrays=28 if whole else 1,
        )

    def exponents(
        self, raw: Mapping[str, np.ndarray], observed: Mapping[str, Any]
    ) -> str:
        """Say why there are none."""
        return NOT_A_RECURRENCE
