"""The delta rule written in an arithmetic's operations, a token or a chunk at a time.

A state of columns (heads, value_dim, key_dim) holds, for each entry of a value, the
vector over keys that it is read with. Sources: Schlag et al. 2021 (arXiv 2102.11174),
equation 24; chunks by Yang et al. 2024 (arXiv 2406.06484), section 3; with gates
2412.06464, section 3.3, and Kimi Delta Attention 2510.26692.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class DeltaToken(NamedTuple):
    """What a token brings: S <- S D + rate (value - S D key) key^T."""

    decay: Any
    """D in [0, 1]: (heads), or (heads, key_dim)."""
    key: Any
    """(heads, key_dim)."""
    value: Any
    """(heads, value_dim)."""
    rate: Any
    """(heads)."""


class DeltaChunk(NamedTuple):
    """A chunk of tokens: what it writes is `u - w S`, S the state in front of it.

    With G the sums of log gates from the start of the chunk on, the rows of u and w
    solve (1 + A) u = rate v and (1 + A) w = rate k e^G, where A is `system`.
    """

    u: Any
    """(tokens, heads, value_dim)."""
    w: Any
    """(tokens, heads, key_dim)."""
    reads: Any
    """Queries that read the state in front: (tokens, heads, key_dim)."""
    reach: Any
    """What they are multiplied by after it, (tokens, heads); None: they are whole."""
    keys: Any
    """Keys that writes are kept under at the chunk's end."""
    left: Any
    """What a write is multiplied by for the chunk's end, (tokens, heads); or None."""
    pairs: Any
    """q_i . k_j and the decays between them, j <= i: (heads, tokens, tokens)."""
    decay: Any
    """Of the whole chunk: (heads), or (heads, key_dim)."""
    system: Any
    """A of the chunk: (heads, tokens, tokens)."""
    key: Any
    """k, (tokens, heads, key_dim), and below what else exact steps are made of."""
    rate: Any
    """(tokens, heads)."""
    log_gate: Any
    """(tokens, heads), or (tokens, heads, key_dim)."""
    value: Any
    """(tokens, heads, value_dim)."""
    query: Any
    """(tokens, heads, key_dim)."""


TILE = 16
"""Rows of a diagonal block that kernels invert by substitution."""


def spread(decay: Any) -> Any:
    """Give decays the axes of a state: (heads, 1, 1) or (heads, 1, key_dim)."""
    return decay[:, None, None] if decay.ndim == 1 else decay[:, None, :]


def log_norm_bound(log_gate: Any, share: Any) -> Any:
    """Bound log of the norm of D (1 - rate key key^T): it, where D is one number.

    **Arguments:**

    - `log_gate`: of the shape of `share`, or with an axis of keys. `share`: rate
      |key|^2.
    """
    slowest = jnp.max(log_gate.reshape(*share.shape, -1), axis=-1)
    return slowest + jnp.log(jnp.maximum(1.0, jnp.abs(1.0 - share)))


def keys_first(state: Any) -> Any:
    """(heads, value_dim, key_dim) to (key_dim, heads, value_dim)."""
    return jnp.moveaxis(state, -1, 0)


def keys_last(state: Any) -> Any:
    """And back."""
    return jnp.moveaxis(state, 0, -1)


def step(at: Any, state: Any, token: DeltaToken) -> Any:
    """One token: the state after it, in registers."""
    kept = at.multiply(state, at.view(spread, token.decay))
    return at.updated(kept, written(at, kept, token))


def written(at: Any, kept: Any, token: DeltaToken) -> Any:
    """What a token adds to a state that has decayed already."""
    missed = at.add(token.value, at.negate(at.delta_read(kept, token.key)))
    write = at.multiply(missed, at.view(lambda a: a[:, None], token.rate))
    along = at.view(lambda a: a[:, None, :], token.key)
    return at.multiply(along, at.view(lambda a: a[:, :, None], write))


def chunk(at: Any, state: Any, c: DeltaChunk) -> tuple[Any, Any]:
    """A chunk of tokens: (state after it, what they read)."""
    handed = at.store_columns("chunk_state", state)
    written = at.add(c.u, at.negate(at.einsum("jhk,hvk->jhv", c.w, handed)))
    column = lambda a: a[..., None]
    left = written
    if c.left is not None:
        left = at.multiply(written, at.view(column, c.left))
    left = at.store("v_new_decayed", left)
    kept = at.multiply(state, at.view(spread, c.decay))
    after = at.add(kept, at.einsum("jhv,jhk->hvk", left, c.keys))

    before = at.einsum("ihk,hvk->ihv", c.reads, handed)
    if c.reach is not None:
        before = at.multiply(before, at.view(column, c.reach))
    fresh = at.store("v_new", written)
    return after, at.add(at.einsum("hij,jhv->ihv", c.pairs, fresh), before)


def solve_unit_lower(
    system: Float[Array, "*batch rows rows"], x: Float[Array, "... rows columns"]
) -> Float[Array, "*batch rows columns"]:
    """(1 + system)^-1 x; what is on and above the diagonal of `system` is not read.

    By an inverse of blocks twice as large at each step, in nothing but products:
    XLA's own solve calls LAPACK, and on CPUs now and then never came back.
    """
    rows = system.shape[-1]
    size = 1 << max(rows - 1, 0).bit_length()
    fill = [(0, 0)] * (system.ndim - 2) + [(0, size - rows)] * 2
    padded = jnp.pad(system, fill)
    batch = system.shape[:-2]
    inverse = jnp.ones((*batch, size, 1, 1), system.dtype)
    for width in (1 << i for i in range(size.bit_length() - 1)):
        pairs = size // (2 * width)
        # of each pair of blocks on the diagonal, what stands below the first
        cut = padded.reshape(*batch, pairs, 2 * width, pairs, 2 * width)
        own = jnp.diagonal(cut, axis1=-4, axis2=-2)
        own = jnp.moveaxis(own, -1, -3)[..., width:, :width]
        first, second = inverse[..., ::2, :, :], inverse[..., 1::2, :, :]
        below = -_product(_product(second, own), first)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        lower = jnp.concatenate([below, second], axis=-1)
        inverse = jnp.concatenate([upper, lower], axis=-2)
    return _product(inverse[..., 0, :rows, :rows], x)


def _product(x, y):
    return jnp.matmul(x, y, precision="highest")
