r"""What exact steps of a delta rule make of errors: a column's length, and its shape.

With $s' = a s$, $r = v - k^T s'$ and hats for what an execution has,
$\hat s - s = \hat P (\hat a \hat s - a s) + (\hat\beta \hat r - \beta r) k
+ \hat\beta \hat r (\hat k - k)$, where $|\hat r - r| \le e_v + |\hat k - k| |s'|$ reads
the reference's own column. Errors of what is written point along the key, which is what
later tokens with keys alike erase.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import _delta as flow
from .._bounded_values import Bounded
from . import ellipsoids
from .declared import dot
from .ellipsoids import BoundedColumns, Ellipsoid


class Passed(NamedTuple):
    """How the exact step of a token passes errors on, by columns.

    `kept` is the state behind its decay, (heads, value_dim, key_dim), of which
    `length` and `arrived` are L2 of columns and of their errors; `missed` value - k^T
    S', `off` its error but for what arrived, all (heads, value_dim); `seen`: most that
    keys see of what arrived. `longest` and `rates`: most that a key is long and a rate
    is, (heads, 1). `through`: the norm of the step matrix behind its decay. `written`:
    what is written is off by, along the key, for the token's own errors; `aside`: in
    any direction.
    """

    kept: jax.Array
    length: jax.Array
    arrived: jax.Array
    seen: jax.Array
    longest: jax.Array
    rates: jax.Array
    through: jax.Array
    missed: jax.Array
    off: jax.Array
    written: jax.Array
    aside: jax.Array
    drift: jax.Array
    """Of what arrived: what decays are off by."""
    shape: Ellipsoid
    """What is left of the state's errors, where inputs are as they are known."""

    def error(self, token: flow.DeltaToken, written, aside):
        """L2 of what the state behind the token is off by, and its shape.

        **Arguments:**

        - `written`, `aside`: what arithmetic loses of what is written, and besides.
        """
        key = token.key
        along, off_key = self.written + written, key.norm[:, None]
        aside = self.aside + aside + off_key * written
        of_key = jnp.linalg.norm(key.value, axis=-1)[:, None]
        radius = self.through * self.arrived + of_key * along + aside
        off_rate, size = token.rate.error[:, None], jnp.abs(token.rate.value)[:, None]
        off_matrix = off_rate * self.longest**2
        off_matrix = off_matrix + size * off_key * (self.longest + of_key)
        drift = off_matrix * self.arrived + self.through * self.drift
        parts = (
            self.shape,
            ellipsoids.along(key.value[None], along[None]),
            ellipsoids.ball(drift + aside, key.shape[-1]),
        )
        shape = ellipsoids.total(*parts)
        return jnp.minimum(radius, ellipsoids.length(shape, squarings=0)), shape


def pass_on(column, radius, shape: Ellipsoid, token: flow.DeltaToken) -> Passed:
    """The way of a state's error, `radius` by columns, through a token of `Bounded`."""
    decay, key, value, rate = token
    a, error_a = flow.spread(decay.value), flow.spread(decay.error)
    largest = jnp.max(jnp.minimum(a + error_a, 1.0), axis=-1)
    kept = a * column
    length = jnp.linalg.norm(kept, axis=-1)
    drift = jnp.linalg.norm(error_a * jnp.abs(column), axis=-1)
    arrived = largest * radius + drift
    drift = drift + jnp.max(error_a, axis=-1) * radius

    of_key, off_key = jnp.linalg.norm(key.value, axis=-1)[:, None], key.norm[:, None]
    longest = of_key + off_key
    size, off_rate = jnp.abs(rate.value)[:, None], rate.error[:, None]
    rates = size + off_rate
    below_zero = jnp.maximum(off_rate - rate.value[:, None], 0.0)
    through = jnp.maximum(rates * longest**2 - 1.0, 1.0 + below_zero * longest**2)

    decays = jnp.broadcast_to(a[:, 0], key.value.shape)
    seen = ellipsoids.reach(shape, key.value * decays)
    seen = jnp.minimum(seen + of_key * drift, of_key * arrived) + off_key * arrived
    missed = value.value - dot("hvk,hk->hv", kept, key.value)
    off = value.error + off_key * length
    most = jnp.abs(missed) + off
    written, aside = off_rate * most + size * off, rates * off_key * most
    left = ellipsoids.through_token(shape, decays, key.value, rate.value)
    found = (kept, length, arrived, seen, longest, rates, through, missed, off)
    return Passed(*found, written, aside, drift, left)


class Walked(NamedTuple):
    """What the tokens of a chunk do, in exact arithmetic, and how far off it may be."""

    write: jax.Array
    """rate (v - k^T S) of each token: (tokens, heads, value_dim)."""
    off: jax.Array
    """What an execution may have instead, further by its residual."""
    length: jax.Array
    """L2 of each column behind each token."""
    radius: jax.Array
    """L2 of what it is off by."""
    read: jax.Array
    """What the token's query sees of it."""


def walk(state: BoundedColumns, c: flow.DeltaChunk, residual):
    """Token after token, where inputs are off and equations are left: the state's
    columns, their errors' lengths and shape, and `Walked`.

    **Arguments:**

    - `residual`: of each token's equation, (tokens, heads, value_dim).
    """

    def one(carry, token):
        column, radius, shape = carry
        key, rate, value, gate, query, lost = token
        decay = jnp.exp(gate.value)
        off = decay * jnp.expm1(jnp.minimum(gate.error, 300.0))
        token = flow.DeltaToken(Bounded(decay, off), key, value, rate)
        x = pass_on(column, radius, shape, token)
        write = rate.value[:, None] * x.missed
        off = x.rates * (x.off + x.seen)
        off = off + rate.error[:, None] * jnp.abs(x.missed) + lost
        column = x.kept + write[..., None] * key.value[:, None, :]
        radius, shape = x.error(token, lost, 0.0)
        read = jnp.linalg.norm(query, axis=-1)[:, None] * radius
        read = jnp.minimum(read, ellipsoids.reach(shape, query))
        seen = Walked(write, off, jnp.linalg.norm(column, axis=-1), radius, read)
        return (column, radius, shape), seen

    inputs = (c.key, c.rate, c.value, c.log_gate, c.query.value, residual)
    return jax.lax.scan(one, (state.value, state.norm, state.ellipsoid), inputs)
