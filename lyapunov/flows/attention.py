"""Causal attention with rotary positions, as GPT-NeoX, Llama and their kin compute it.

Attention has no state of fixed size: its cache grows with the text, so that it is not
a recurrence and has no Lyapunov exponents.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arithmetic import AbstractArithmetic, Weight
from .norm import Norm, normalise


class AttentionParameters(eqx.Module):
    """One sublayer: the norm and the attention after it."""

    norm: Norm | None
    q_proj: Weight
    """(heads head_dim, width)."""
    k_proj: Weight
    """(kv_heads head_dim, width)."""
    v_proj: Weight
    """(kv_heads head_dim, width)."""
    q_bias: Float[Array, " heads*head_dim"] | None
    k_bias: Float[Array, " kv_heads*head_dim"] | None
    v_bias: Float[Array, " kv_heads*head_dim"] | None
    q_norm: Norm | None
    """Over each head's channels."""
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

    def initial_state(self) -> "AttentionState":
        """Nothing has been read."""
        return initial_state(self)


class AttentionState(eqx.Module):
    """The cache: keys, turned already, and values of all tokens so far."""

    keys: Any
    """(past, kv_heads, head_dim)."""
    values: Any


def initial_state(p: AttentionParameters) -> AttentionState:
    """An empty cache."""
    head_dim = p.k_proj.matrix.shape[0] // p.kv_heads
    empty = jnp.zeros((0, p.kv_heads, head_dim))
    return AttentionState(keys=empty, values=empty)


def attention(
    at: AbstractArithmetic, residual, p: AttentionParameters, start: AttentionState
):
    """One sublayer over a sequence.

    **Arguments:**

    - `residual`: (seq, width), the stream before the norm.
    - `start`: the cache of the tokens before.

    **Returns:** the output (seq, d_model), and the cache with these tokens in it.
    """
    x = normalise(at, at.store("norm_input", residual), p.norm)
    heads = lambda n: lambda a: a.reshape(a.shape[0], n, -1)
    past = start.keys.shape[0]

    def projected(site, weight, bias, n, norm):
        y = at.store(site, at.matmul(x, weight, bias))
        if p.clip is not None:
            y = at.clip(y, -p.clip, p.clip)
        return normalise(at, at.view(heads(n), y), norm, f"{site}_norm")

    q = projected("q", p.q_proj, p.q_bias, p.heads, p.q_norm)
    k = projected("k", p.k_proj, p.k_bias, p.kv_heads, p.k_norm)
    v = projected("v", p.v_proj, p.v_bias, p.kv_heads, None)
    if p.key_multiplier != 1.0:
        k = at.store("k_scaled", at.multiply(k, p.key_multiplier))
    q = at.store("q_turned", turned(at, q, p, past))
    k = at.store("k_turned", turned(at, k, p, past))
    k, v = at.join([start.keys, k]), at.join([start.values, v])

    shared = p.heads // p.kv_heads
    repeat = lambda a: jnp.repeat(a, shared, axis=1)
    scores = at.einsum("lhd,shd->hls", q, at.view(repeat, k))
    scores = at.store("scores", at.multiply(scores, p.scale))
    rows, columns = scores.shape[-2:]
    causal = jnp.tril(jnp.ones((rows, columns)), k=columns - rows)
    weight = at.store("attention", at.softmax(scores, causal))
    y = at.einsum("hls,shd->lhd", weight, at.view(repeat, v))
    y = at.store("read", at.view(lambda a: a.reshape(a.shape[0], -1), y))
    out = at.store("out", at.matmul(y, p.o_proj, p.o_bias))
    return out, AttentionState(keys=k, values=v)


def turned(at: AbstractArithmetic, x, p: AttentionParameters, past: int):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): halves of the channels.

    Channels i and i + rotary / 2 turn by position theta^(-2 i / rotary).

    **Arguments:**

    - `x`: (seq, heads, head_dim). `past`: position of the first token.
    """
    if p.rotary == 0:
        return x
    half = p.rotary // 2
    rate = p.theta ** (-jnp.arange(half, dtype=jnp.float64) / half)
    angle = (past + jnp.arange(x.shape[0]))[:, None] * rate
    cos = jnp.tile(jnp.cos(angle), 2)[:, None]
    sin = jnp.concatenate([-jnp.sin(angle), jnp.sin(angle)], axis=-1)[:, None]
    turning = x[..., : p.rotary]
    swap = lambda a: jnp.concatenate([a[..., half:], a[..., :half]], axis=-1)
    mixed = at.add(at.multiply(turning, cos), at.multiply(at.view(swap, turning), sin))
    if p.rotary == x.shape[-1]:
        return mixed
    return at.join([mixed, x[..., p.rotary :]], axis=-1)
