"""What queries read of keys and values, by the softmax of their scores."""

import jax.numpy as jnp

from ..arithmetic import AbstractArithmetic


def attended(
    at: AbstractArithmetic, q, k, v, places, scale: float, window: int | None = None
):
    """What queries read of all keys up to their own place: (rows, heads, value_dim).

    **Arguments:**

    - `q`: (rows, heads, head_dim). `k`: (keys, kv_heads, head_dim). `v`: (keys,
      kv_heads, value_dim). Consecutive heads share one of these.
    - `places`: (rows,), of the queries among the keys.
    - `window`: how many keys a query reads at most, its own among them; None: all.
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
    behind = places[:, None] - jnp.arange(k.shape[0])
    seen = (behind >= 0) & (behind < (window or jnp.inf))
    weight = at.store("attention", at.softmax(scores, jnp.where(seen, 1.0, 0.0)))
    if heads == kv_heads:
        return at.einsum("hls,shd->lhd", weight, v)
    weight = at.view(lambda a: a.reshape(kv_heads, -1, *a.shape[1:]), weight)
    y = at.einsum("ghls,sgd->lghd", weight, v)
    return at.view(lambda a: a.reshape(rows, heads, -1), y)
