"""Rotary positions (Su et al. 2021, arXiv 2104.09864): pairs of channels that turn."""

import math

import jax.numpy as jnp

from ..arithmetic import AbstractArithmetic


def rotary_table(
    at: AbstractArithmetic, seq: int, rotary: int, theta: float, past: int
):
    """Tabulate cos and signed sin of every position, each (seq, 1, rotary).

    Channels i and i + rotary / 2 turn by position theta^(-2 i / rotary).

    **Arguments:**

    - `rotary`, `theta`: as in `AttentionSizes`.
    - `past`: position of the first token.
    """
    half = rotary // 2
    rate = theta ** (-jnp.arange(half, dtype=jnp.float64) / half)
    angle = (past + jnp.arange(seq))[:, None] * rate
    # theta to a rounded exponent is off by log(theta) roundings of it; then the power
    # itself (2 ulp, so 4 roundings), its inverse and the product with the position
    roundings = math.ceil(abs(math.log(theta))) + 6
    cos, sin = at.turns(angle, roundings)
    cos = at.view(lambda a: jnp.tile(a, 2)[:, None], cos)
    sin = at.join([at.negate(sin), sin], axis=-1)
    sin = at.view(lambda a: a[:, None], sin)
    return at.store("rotary_cos", cos), at.store("rotary_sin", sin)


def turned(at: AbstractArithmetic, x, table, name: str):
    """Turn the halves of the channels against each other.

    **Arguments:**

    - `x`: (seq, heads, head_dim). `table`: from `rotary_table`.
    - `name`: "q" or "k", of the two products' sites.
    """
    cos, sin = table
    rotary = cos.shape[-1]
    half = rotary // 2
    turning = x[..., :rotary]
    swap = lambda a: jnp.concatenate([a[..., half:], a[..., :half]], axis=-1)
    alone = at.stores(f"{name}_cos")
    with_cos = at.multiply(turning, cos, alone=alone)
    with_sin = at.multiply(at.view(swap, turning), sin, alone=alone)
    with_cos = at.store(f"{name}_cos", with_cos)
    with_sin = at.store(f"{name}_sin", with_sin)
    mixed = at.add(with_cos, with_sin, alone=alone)
    if rotary == x.shape[-1]:
        return mixed
    return at.join([mixed, x[..., rotary:]], axis=-1)
