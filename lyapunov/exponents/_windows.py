"""Growth of tokens, summed over windows of them."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


Carry = TypeVar("Carry")


def along(
    one: Callable[[Carry, Any], tuple[Carry, Float[Array, " k"]]],
    carry: Carry,
    inputs: Any,
    n_tokens: int,
    width: int,
) -> tuple[Carry, Float[Array, "windows k"]]:
    """Scan `one(carry, input) -> carry, log growth`, summed over windows of tokens.

    Windows are an outer scan: neither the growth of every token is held nor an array
    updated at each.
    """
    full, rest = divmod(n_tokens, width)
    first = jax.tree.map(lambda x: x[0], inputs)
    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, carry, first)[1]
    )

    def add(summed, u):
        carry, total = summed
        carry, growth = one(carry, u)
        return (carry, total + growth), None

    def window(carry: Carry, inputs, length) -> tuple[Carry, Array]:
        return jax.lax.scan(add, (carry, zero), inputs, length)[0]

    sums = []
    if full:
        head = jax.tree.map(
            lambda x: x[: full * width].reshape(full, width, *x.shape[1:]), inputs
        )
        carry, growth = jax.lax.scan(
            lambda c, u: window(c, u, width), carry, head, full
        )
        sums.append(growth)
    if rest:
        tail = jax.tree.map(lambda x: x[full * width :], inputs)
        carry, growth = window(carry, tail, rest)
        sums.append(growth[None])
    return carry, jnp.concatenate(sums)


def in_blocks(
    one: Callable[[Carry, Any, int], tuple[Carry, Float[Array, " k"]]],
    carry: Carry,
    inputs: Any,
    n_tokens: int,
    block: int,
    width: int,
) -> tuple[Carry, Float[Array, "windows k"]]:
    """Go along blocks of tokens, then along those left over, summed over windows.

    **Arguments:**

    - `one`: `one(carry, inputs, length) -> carry, log growth` of `length` tokens.
    - `block`: tokens between two measurements; `width` is a multiple of it.
    """
    block = min(block, n_tokens)
    blocks, rest = divmod(n_tokens, block)
    head = jax.tree.map(
        lambda x: x[: blocks * block].reshape(blocks, block, *x.shape[1:]), inputs
    )
    per_window = max(1, width // block)
    carry, growth = along(
        lambda c, u: one(c, u, block), carry, head, blocks, per_window
    )
    if rest:
        tail = jax.tree.map(lambda x: x[blocks * block :], inputs)
        carry, last = one(carry, tail, rest)
        if blocks % per_window:
            growth = growth.at[-1].add(last)
        else:
            growth = jnp.concatenate([growth, last[None]])
    return carry, growth


def windows_of(
    growth: Float[Array, "tokens d"], width: int
) -> Float[Array, "windows d"]:
    """Sum over windows of `width` tokens, the last one shorter."""
    full = len(growth) // width
    sums = growth[: full * width].reshape(full, width, -1).sum(axis=1)
    if full * width < len(growth):
        sums = jnp.concatenate([sums, growth[full * width :].sum(axis=0)[None]])
    return sums
