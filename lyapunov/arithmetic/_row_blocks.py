"""Rows that do not look at each other, a block at a time, so that few are held at once.

What attention makes of its scores is as large as queries times keys, and a query's row
needs no other row: the rows go through in blocks, one after another, in one program.
"""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def over_blocks(
    make: Callable[[Any], Any],
    body: Callable,
    x: Any,
    rows: int,
    given: Callable[[int], Any] = lambda count: None,
) -> tuple[Any, Any]:
    """Run `body(at, block, places)` for `rows` rows of `x` at a time.

    Backward, a block is computed anew, so that a reverse pass holds one as well. The
    last block is filled up with the last row, whose copies are dropped.

    **Arguments:**

    - `make`: the interpreter of a block, and what is kept of it once it is through:
      `make(given) -> (at, kept)`, `kept()` a pytree whose arrays have the rows as their
      second axis.
    - `x`: pytree of arrays (seq, ...).
    - `given`: pytree for so many blocks, one entry each along its first axis.

    **Returns:** the outputs joined, (seq, ...), and what was kept, (..., seq, ...).
    """
    seq = jax.tree.leaves(x)[0].shape[0]
    count = -(-seq // rows)
    places = jnp.minimum(jnp.arange(count * rows), seq - 1).reshape(count, rows)

    def one(block):
        part, places, own = block
        at, kept = make(own)
        output = body(at, part, places)
        return output, kept()

    # a loop keeps its turns apart by itself
    one = jax.checkpoint(one, prevent_cse=False)
    blocks = jax.tree.map(lambda a: a[places], x), places, given(count)
    output, kept = jax.lax.map(one, blocks)
    join = lambda a: a.reshape(-1, *a.shape[2:])[:seq]

    def beside(a):
        a = jnp.moveaxis(a, 0, 1)
        return a.reshape(a.shape[0], -1, *a.shape[3:])[:, :seq]

    return jax.tree.map(join, output), jax.tree.map(beside, kept)


def emptied(at: Any, **changes: Any) -> Any:
    """An interpreter as this one that has recorded nothing, for one block."""
    inside = copy.copy(at)
    inside.records, inside.observed = {}, {}
    for name, value in changes.items():
        setattr(inside, name, value)
    return inside


@jax.custom_vjp
def gauged(
    x: Float[Array, "*shape"],
    gauge: Float[Array, "sizes 2"],
    sizes: tuple[Float[Array, "*shape"], ...],
):
    r"""`x` itself. Backward `gauge` gets sums over its adjoint $\lambda$, for each of
    the sizes s: $\sum |\lambda| s$ and $\sum (\lambda s)^2$.

    As adjoints of a loop's constants add up over its turns, so do these sums, and no
    adjoint of all turns is held.
    """
    return x


def _gauged(x, gauge, sizes):
    return x, sizes


def _sums(sizes, adjoint):
    moved = [jnp.abs(adjoint) * size for size in sizes]
    sums = [jnp.stack([jnp.sum(m), jnp.sum(m**2)]) for m in moved]
    return adjoint, jnp.stack(sums), jax.tree.map(jnp.zeros_like, sizes)


gauged.defvjp(_gauged, _sums)
