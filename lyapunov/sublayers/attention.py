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
    with_biases,
    within,
)
from .mlp import LowRank, adapter_of, around, projected
from .norm import Norm, norm_of, normalise, scaled
from .rotary import rotary_table, turned
from .sites import BEHIND, FRONT
from .token_blocks import in_token_blocks


NOT_A_RECURRENCE = "no exponent: not a recurrence"

ATTEND = (
    "in_scaled", *(f"{part}_{of}" for part in "qkv" for of in ("shared", "low", "own")),
    "q", "k", "v", "q_clipped", "k_clipped", "v_clipped", "conv", "q_norm_hat",
    "q_norm", "k_norm_hat", "k_norm", "k_scaled", "rotary_cos", "rotary_sin", "q_cos",
    "q_sin", "q_turned", "k_cos", "k_sin", "k_turned", "scores_product", "scores",
    "attention", "read",
)  # fmt: skip
"""Sites between the norms of an attention."""

SCORES_AT_ONCE = 2**24
"""Scores, of all heads and sequences, that one temporary holds: 128 MiB in fp64. Of
more, queries go through in blocks."""


class AttentionParameters(eqx.Module):
    """One sublayer: the norm and the attention after it."""

    norm: Norm | None
    q_proj: Weight
    """(heads head_dim, width)."""
    k_proj: Weight
    """(kv_heads head_dim, width)."""
    v_proj: Weight
    """(kv_heads head_dim, width)."""
    q_bias: Float[Array, " q_channels"] | None
    k_bias: Float[Array, " kv_channels"] | None
    v_bias: Float[Array, " kv_channels"] | None
    """Of heads head_dim and of kv_heads head_dim channels."""
    q_norm: Norm | None
    """Over each head's channels; over all of them where its weight is as wide."""
    k_norm: Norm | None
    o_proj: Weight
    """(d_model, heads head_dim)."""
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
    """Of the output, before it joins the residual."""
    norm_behind: Norm | None = None
    """Of the output (OLMo 2)."""
    q_adapter: LowRank | None = None
    k_adapter: LowRank | None = None
    v_adapter: LowRank | None = None
    conv_weight: Float[Array, "channels d_conv"] | None = None
    """Of a causal convolution over q, k and v, in this order (mamba_ssm's MHA)."""
    conv_bias: Float[Array, " channels"] | None = None

    def initial_state(self) -> "AttentionState":
        """Nothing has been read."""
        return initial_state(self)


class AttentionState(eqx.Module):
    """The cache: keys, turned already, and values of all tokens so far."""

    keys: Any
    """(past, kv_heads, head_dim)."""
    values: Any
    window: Any = None
    """(d_conv - 1, channels), the convolution's last inputs, where there is one."""


def initial_state(p: AttentionParameters) -> AttentionState:
    """An empty cache."""
    head_dim = p.k_proj.matrix.shape[0] // p.kv_heads
    empty = jnp.zeros((0, p.kv_heads, head_dim))
    window = None
    if p.conv_weight is not None:
        channels, taps = p.conv_weight.shape
        window = jnp.zeros((taps - 1, channels))
    return AttentionState(keys=empty, values=empty, window=window)


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
    out = at.store("out", at.matmul(y, p.o_proj, p.o_bias))
    out = normalise(at, out, p.norm_behind, "norm_behind")
    return scaled(at, out, p.out_multiplier, "out_scaled"), start


def _normed_and_projected(at: AbstractArithmetic, x, p: AttentionParameters, start):
    """Queries, keys and values, (seq, channels) each."""
    x = normalise(at, at.store("norm_input", x), p.norm)
    x = scaled(at, x, p.in_multiplier, "in_scaled")
    q = projected(at, x, p.q_proj, p.q_bias, p.q_adapter, "q")
    k = projected(at, x, p.k_proj, p.k_bias, p.k_adapter, "k")
    return (q, k, projected(at, x, p.v_proj, p.v_bias, p.v_adapter, "v")), start


def attend(at: AbstractArithmetic, x, p: AttentionParameters, start: AttentionState):
    """The attention on an input (seq, width), the norm before it, not what is behind.

    **Returns:** what the heads read side by side, (seq, heads head_dim), and the cache.
    """
    past, widest = start.keys.shape[0], max(x.shape[-1], p.q_proj.matrix.shape[0])
    (q, k, v), _ = in_token_blocks(at, _normed_and_projected, x, p, None, widest=widest)
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
        return state, attended(at, q, keys, values, places + past, p.scale)

    _, y = at.in_row_blocks(read, None, (q, jnp.arange(q.shape[0])), rows, pairs=True)
    y = at.store("read", at.view(lambda a: a.reshape(a.shape[0], -1), y))
    return y, AttentionState(keys=k, values=v, window=window)


def rows_at_once(heads: int, keys: int, sequences: int | None = None) -> int:
    """Count the queries whose scores are held at once; at least one.

    **Arguments:**

    - `sequences`: of the batch; None: those that `over_batch` runs side by side.
    """
    side_by_side = in_batch() if sequences is None else sequences
    return max(1, SCORES_AT_ONCE // (heads * keys * side_by_side))


def attended(at: AbstractArithmetic, q, k, v, places, scale: float):
    """What queries read of all keys up to their own place: (rows, heads, head_dim).

    **Arguments:**

    - `q`: (rows, heads, head_dim). `k`, `v`: (keys, kv_heads, head_dim); consecutive
      heads share one of these.
    - `places`: (rows,), of the queries among the keys.
    """
    rows, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    if heads == kv_heads:
        scores = at.einsum("lhd,shd->hls", q, k)
    else:
        grouped = lambda a: a.reshape(rows, kv_heads, -1, head_dim)
        scores = at.einsum("lghd,sgd->ghls", at.view(grouped, q), k)
        scores = at.view(lambda a: a.reshape(heads, *a.shape[2:]), scores)
    scores = at.store("scores_product", scores)
    scores = at.store("scores", at.multiply(scores, at.fixed(scale)))
    causal = jnp.where(jnp.arange(k.shape[0]) <= places[:, None], 1.0, 0.0)
    weight = at.store("attention", at.softmax(scores, causal))
    if heads == kv_heads:
        return at.einsum("hls,shd->lhd", weight, v)
    weight = at.view(lambda a: a.reshape(kv_heads, -1, *a.shape[1:]), weight)
    y = at.einsum("ghls,sgd->lghd", weight, v)
    return at.view(lambda a: a.reshape(rows, heads, head_dim), y)


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
    - `norm_front`, `norm_behind`: whether the input and the output are normalised.
    - `width`: of the input, where it is not d_model.
    - `clip`: q, k and v are clipped to this magnitude.
    - `d_conv`: taps of a convolution over q, k and v; 0: none.
    - `key_multiplier`, `in_multiplier`, `out_multiplier`: of keys, input and output.
    - `beside`: reads what the sublayer before it read, not what that one wrote.
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
    norm_front: bool = True
    norm_behind: bool = False
    width: int | None = None
    clip: float | None = None
    d_conv: int = 0
    key_multiplier: float = 1.0
    in_multiplier: float = 1.0
    out_multiplier: float = 1.0
    beside: bool = False

    kind: ClassVar = "attention"
    recurrent: ClassVar = False
    joins_calls: ClassVar = True
    flow: ClassVar = staticmethod(attention)
    sites: ClassVar = (*FRONT, *ATTEND, *BEHIND)
    weight_groups: ClassVar = within(
        "attention",
        projections="q_proj k_proj v_proj o_proj q_adapter_down q_adapter_up"
        " k_adapter_down k_adapter_up v_adapter_down v_adapter_up",
        biases="q_bias k_bias v_bias o_bias",
        norms=with_biases("norm", "norm_behind", "q_norm", "k_norm"),
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
        head_norms = {
            name: None
            if get(name) is None
            else norm_of(get, name, self.norm_epsilon, self.norm_centred)
            for name in ("q_norm", "k_norm")
        }
        conv_weight, conv_bias = get("conv_weight"), get("conv_bias")
        if conv_weight is not None and conv_bias is None:
            conv_bias = jnp.zeros(conv_weight.shape[0])
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
            conv_weight=conv_weight,
            conv_bias=conv_bias,
            **head_norms,
            **around(self, get),
        )

    def count(self, length: int, batch: int = 1) -> Counts:
        """Count weights and activations; a cache is no state of fixed size."""
        mixed = self.head_dim * (self.heads + 2 * self.kv_heads)
        out = self.head_dim * self.heads * self.d_model
        rows = rows_at_once(self.heads, length, batch)
        each = self.heads * length * batch
        whole = rows >= length
        return Counts(
            weights=mixed * ((self.width or self.d_model) + self.d_conv) + out,
            channels=self.heads * max(self.head_dim, length if whole else 0),
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
