"""Rows that meet in a state alone, a block at a time, so that few are held at once.

What attention makes of its scores is as large as queries times keys, and a query's row
needs no other row; a token of a recurrence needs the state that the token before left.
Such rows go through in blocks, one after another, in one program.
"""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def over_blocks(
    make: Callable[[Any, Int[Array, " rows"]], Any],
    body: Callable,
    state: Any,
    x: Any,
    rows: int,
    *,
    given: Callable[[int], Any] = lambda count: None,
    enter: Callable[[Any, Any], Any] = lambda state, like: state,
    axis: int = 0,
) -> tuple[Any, Any, Any]:
    """Run `body(at, state, block)` for `rows` rows of `x` at a time.

    Backward, a block is computed anew from the state in front of it, so that a reverse
    pass holds one block and the states between them. The last block has what is left,
    but never one row, which implementations take for a step of decoding.

    **Arguments:**

    - `make`: the interpreter of a block, and what is kept of it once it is through:
      `make(given, places) -> (at, kept)`, `kept()` a pytree of arrays whose rows lie
      along `axis`.
    - `x`: pytree of arrays (seq, ...).
    - `given`: pytree for so many blocks, one entry each along its first axis.
    - `enter`: the state in front of the first block in the form that a block leaves
      it in, of which it is told shapes and dtypes.

    **Returns:** the state after the last row, the outputs joined, (seq, ...), and what
    was kept.
    """
    seq = jax.tree.leaves(x)[0].shape[0]
    whole = seq // rows - (seq % rows == 1)
    stop = whole * rows

    def one(state, block):
        own, places, part = block
        at, kept = make(own, places)
        state, output = body(at, state, part)
        return state, (output, kept())

    places, keys = jnp.arange(seq), given(whole + (stop < seq))
    cut = lambda a: a[:stop].reshape(whole, rows, *a.shape[1:])
    blocks = keys, cut(places), jax.tree.map(cut, x)
    if keys is not None:
        blocks = keys[:whole], *blocks[1:]
    # a loop keeps its turns apart by itself
    one = jax.checkpoint(one, prevent_cse=False)
    shapes = jax.eval_shape(one, state, jax.tree.map(lambda a: a[0], blocks))
    state = enter(state, shapes[0])
    state, (output, kept) = jax.lax.scan(one, state, blocks)

    def joined(a, axis):
        a = jnp.moveaxis(a, 0, axis)
        return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])

    output = jax.tree.map(lambda a: joined(a, 0), output)
    kept = jax.tree.map(lambda a: joined(a, axis), kept)
    if stop == seq:
        return state, output, kept
    last = None if keys is None else keys[whole]
    rest = last, places[stop:], jax.tree.map(lambda a: a[stop:], x)
    state, more = one(state, rest)
    beside = lambda axis: lambda a, b: jnp.concatenate([a, b], axis)
    output = jax.tree.map(beside(0), output, more[0])
    return state, output, jax.tree.map(beside(axis), kept, more[1])


def at_once(x: Any, rows: int) -> bool:
    """Whether all rows of `x` make one block, since `over_blocks` leaves no single."""
    return rows >= jax.tree.leaves(x)[0].shape[0] - 1


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
