r"""Rules of the delta rule, whose state is bounded a column at a time, in L2.

Elementwise a step matrix $I - \beta k k^T$ grows without end; its norm is
$\max(1, |1 - \beta |k|^2|)$ (Golub and Van Loan 2013, section 5.1), which a column's
radius is multiplied by instead. A state is a `Bounded` of (heads, value_dim, key_dim),
so that its norm is a radius a column; the smaller of both bounds is kept. Where nothing
decays a norm of 1 a token adds up all errors that were ever made, although tokens erase
them: their shape is carried as well (`ellipsoids`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...formats import is_state_numbers, state_error_bound
from .. import _delta as flow
from .._bounded_values import SAFETY, Bounded, lift
from . import ellipsoids, storage, sums
from .declared import Declared, dot, near_zero, unless_overflow
from .delta_chunk import chunk_by_tokens, least_stored, summing
from .delta_walk import pass_on
from .ellipsoids import BoundedColumns


def columns(declared: Declared, state) -> BoundedColumns:
    """A state with its norms and the shape of its errors, or one that is exact."""
    if isinstance(state, BoundedColumns):
        return state
    state = lift(state)
    return BoundedColumns(state, ellipsoids.ball(state.norm, state.shape[-1]))


def step(declared: Declared, state, token: flow.DeltaToken) -> BoundedColumns:
    """One token: elementwise, and by the norm and the shape of what it passes on.

    As `delta_walk`, with roundings on the way: of the decayed state, which the step
    matrix passes on, of the sum that is read, of the difference and two products, and
    of the sum at the end.
    """
    state = columns(declared, state)
    token = flow.DeltaToken(*(lift(x) for x in token))
    entries = flow.step(declared, state, token)
    unit, underflow = declared.model.unit, declared.model.underflow
    x = pass_on(state.value, state.norm, state.ellipsoid, token)
    terms = token.key.shape[-1]
    root = terms**0.5
    whole = x.length + x.arrived
    lost = unit * whole + root * underflow
    missed = jnp.abs(x.missed) + x.off + x.seen + x.longest * lost
    read = summing(declared, terms) * x.longest * (whole + lost)
    read = read + underflow * (2 * terms + x.longest)
    rounded = jnp.expm1(3 * unit) * (missed + read)
    written = x.rates * (read + rounded)
    # products with entries of the key are rounded one by one
    aside = x.rates * x.longest * rounded + x.through * lost
    aside = aside + 3 * root * underflow * (1.0 + x.longest + x.rates)
    magnitude = jnp.linalg.norm(entries.value, axis=-1)
    along = x.longest * (x.written + written)
    magnitude = magnitude + x.through * x.arrived + along + x.aside + aside
    aside = aside + unit * magnitude + root * underflow
    largest_term = whole + x.rates * x.longest * (missed + read)
    aside = unless_overflow(declared, largest_term, aside)
    radius, shape = x.error(token, written, aside)
    return BoundedColumns(_smaller(entries, radius * SAFETY), shape)


def read(declared: Declared, state, query) -> Bounded:
    """A sum over keys: elementwise, and by the column's radius."""
    state, query = columns(declared, state), lift(query)
    entries = sums.einsum(declared, "hvk,hk->hv", state, query)
    length = jnp.linalg.norm(state.value, axis=-1)
    of_query = jnp.linalg.norm(query.value, axis=-1)[:, None]
    off = query.norm[:, None]
    terms, whole = query.shape[-1], length + state.norm
    seen = ellipsoids.reach(state.ellipsoid, query.value)
    error = jnp.minimum(seen, of_query * state.norm) + off * whole
    error = error + summing(declared, terms) * (of_query + off) * whole
    error = error + declared.model.underflow * (2 * terms + of_query + off)
    error = error + declared.model.unit * (jnp.abs(entries.value) + error)
    error = unless_overflow(declared, (of_query + off) * whole, error * SAFETY)
    return Bounded(entries.value, jnp.minimum(entries.error, error))


def chunk(
    declared: Declared, state, c: flow.DeltaChunk, *, inverted: bool = False
) -> tuple[BoundedColumns, Bounded]:
    """A chunk of tokens: by its own algorithm, or by its tokens, whichever says more.

    A column of a state is known around one of two centres; entries of what is read
    are, too.
    """
    state = columns(declared, state)
    c = flow.DeltaChunk(*(None if x is None else lift(x) for x in c))
    end, y = by_algorithm(declared, state, c)
    exact_end, exact_y = chunk_by_tokens(declared, state, c, inverted=inverted)
    # what a centre is away from the exact one counts, too
    away = jnp.linalg.norm(end.value - exact_end.value, axis=-1)
    nearer = end.norm + away <= exact_end.norm
    shape = ellipsoids.chosen(nearer, end.ellipsoid, exact_end.ellipsoid)
    end = BoundedColumns(_chosen(nearer, end, exact_end), shape)
    nearer = y.error + jnp.abs(y.value - exact_y.value) <= exact_y.error
    value = jnp.where(nearer, y.value, exact_y.value)
    return end, Bounded(value, jnp.where(nearer, y.error, exact_y.error))


def _chosen(first, one: Bounded, other: Bounded) -> Bounded:
    """Columns of one where `first`, else of the other."""
    column = first[..., None]
    return Bounded(
        jnp.where(column, one.value, other.value),
        jnp.where(column, one.error, other.error),
        jnp.where(first, one.norm, other.norm),
    )


class Front(NamedTuple):
    """The state in front of a chunk, and what sums of its products lose."""

    state: BoundedColumns
    handed: Bounded
    """As the chunk reads it."""
    moved: jax.Array
    """What storing it moves, a column, in L2."""
    whole: jax.Array
    """Most that a column is long."""
    by_key: Any
    by_token: Any
    """Relative losses of sums over keys and over tokens."""
    of_operand: Any
    of_sum: Any
    """Of operands near 0: `near_zero`."""

    def seen(self, rows):
        """What rows read of the state's own error, and of what storing it moves."""
        size = jnp.linalg.norm(rows, axis=-1)[..., None]
        own = ellipsoids.reach(self.state.ellipsoid, rows)
        return jnp.minimum(own, size * self.state.norm) + size * self.moved


class Writes(NamedTuple):
    """What the tokens of a chunk write, each (tokens, heads, value_dim)."""

    fresh: Bounded
    """As queries of the chunk read it."""
    off_fresh: jax.Array
    """What it is off by, but for what the state's error does to it: `linear`."""
    kept: Bounded
    """As it is left at the chunk's end."""
    off_kept: jax.Array
    linear: jax.Array


def by_algorithm(
    declared: Declared, state: BoundedColumns, c: flow.DeltaChunk
) -> tuple[BoundedColumns, Bounded]:
    r"""A chunk of tokens, which the state's own error goes through in L2.

    What a chunk writes is $u - w \hat S$. The part $-w (\hat S - S)$ of its error is
    linear in the state's, and so is what it makes at the chunk's end: $D - K^T w$, with
    keys and w as they are at hand, passes on shapes of errors, and what storing the
    state moves goes the way of $K^T w$. Errors of u and of w and what stores of writes
    move are numbers in front of keys. Everything else counts by its size.
    """
    terms, tokens = c.w.shape[-1], c.w.shape[0]
    by_key, by_token = summing(declared, terms), summing(declared, tokens + 1)
    growth = jnp.maximum(by_key, by_token)
    flushed = near_zero(declared, max(terms, tokens + 1), growth)
    handed, moved = _columns_stored(declared, "chunk_state", state)
    whole = jnp.linalg.norm(handed.value, axis=-1) + state.norm + moved
    front = Front(state, handed, moved, whole, by_key, by_token, *flushed)
    writes = _writes(declared, front, c)
    return _end(declared, front, writes, c), _read(declared, front, writes, c)


def _writes(declared: Declared, front: Front, c: flow.DeltaChunk) -> Writes:
    unit, by_key, whole = declared.model.unit, front.by_key, front.whole
    root = c.w.shape[-1] ** 0.5
    of_w, off_w = jnp.linalg.norm(c.w.value, axis=-1)[..., None], c.w.norm[..., None]
    value = c.u.value - dot("jhk,hvk->jhv", c.w.value, front.handed.value)
    linear = front.seen(c.w.value)
    own = c.u.error + (off_w + by_key * (of_w + off_w)) * whole
    own = own + front.of_sum + front.of_operand * root * (of_w + whole)
    own = own + unit * (jnp.abs(value) + own + linear)
    fresh, aside = _stored(declared, "v_new", Bounded(value, own + linear))
    off_fresh = own + aside

    left, off_left = _factor(c.left)
    own = (left + off_left) * own + off_left * (jnp.abs(value) + linear)
    own = own + unit * (left * jnp.abs(value) + own + left * linear)
    own = own + declared.model.underflow
    kept, aside = _stored(
        declared, "v_new_decayed", Bounded(value * left, own + left * linear)
    )
    return Writes(fresh, off_fresh, kept, own + aside, linear)


def _end(
    declared: Declared, front: Front, writes: Writes, c: flow.DeltaChunk
) -> BoundedColumns:
    state, terms = front.state, c.w.shape[-1]
    left, _ = _factor(c.left)
    most = jnp.abs(writes.kept.value) + writes.off_kept + left * writes.linear
    decay, off_decay = (flow.spread(x) for x in (c.decay.value, c.decay.error))
    size = jnp.abs(state.value)
    after = decay * state.value
    after = after + dot("jhv,jhk->hvk", writes.kept.value, c.keys.value)
    drift = jnp.linalg.norm(off_decay * size, axis=-1)
    drift = drift + jnp.max(off_decay, axis=-1) * state.norm
    keys = jnp.abs(c.keys.value) + c.keys.error
    added = jnp.linalg.norm(dot("jhv,jhk->hvk", most, keys), axis=-1)
    held = jnp.linalg.norm(decay * size, axis=-1) + state.norm + drift
    aside = drift + dot("jh,jhv->hv", c.keys.norm, most)
    aside = aside + front.by_token * (added + held) + 2 * declared.model.unit * held
    flushed = front.of_sum + front.of_operand * jnp.sum(most, axis=0)
    of_keys = jnp.sum(jnp.linalg.norm(keys, axis=-1), axis=0)[:, None]
    aside = aside + terms**0.5 * flushed + front.of_operand * of_keys
    aside = unless_overflow(declared, held + added, aside)

    made = dot("jhk,jhm->hkm", left * c.keys.value, c.w.value)
    shape = ellipsoids.total(
        ellipsoids.mapped(decay * jnp.eye(terms) - made, state.ellipsoid),
        ellipsoids.mapped(made, ellipsoids.ball(front.moved, terms)),
        ellipsoids.along(c.keys.value, writes.off_kept),
        ellipsoids.ball(aside, terms),
    )
    radius = ellipsoids.length(shape)
    error = jnp.broadcast_to(radius[..., None], after.shape)
    return BoundedColumns(Bounded(after, error, radius), shape)


def _read(
    declared: Declared, front: Front, writes: Writes, c: flow.DeltaChunk
) -> Bounded:
    unit, by_key, by_token = declared.model.unit, front.by_key, front.by_token
    root, whole = c.w.shape[-1] ** 0.5, front.whole
    reach, off_reach = _factor(c.reach)
    of_read = jnp.linalg.norm(c.reads.value, axis=-1)[..., None]
    off_read = c.reads.norm[..., None]
    before = dot("ihk,hvk->ihv", c.reads.value, front.handed.value)
    y = before * reach + dot("hij,jhv->ihv", c.pairs.value, writes.fresh.value)
    row = c.reads.value * reach - dot("hij,jhk->ihk", c.pairs.value, c.w.value)
    error = front.seen(row)
    error = error + (reach * off_read + off_reach * (of_read + off_read)) * whole
    # the sum over tokens may go on in the accumulator of that over keys
    growth = by_key + by_token + by_key * by_token + 2 * unit
    error = error + growth * (reach + off_reach) * (of_read + off_read) * whole
    pairs = jnp.abs(c.pairs.value)
    largest = jnp.abs(writes.fresh.value) + writes.off_fresh + writes.linear
    error = error + dot("hij,jhv->ihv", pairs, writes.off_fresh)
    error = error + dot("hij,jhv->ihv", c.pairs.error, largest)
    total = dot("hij,jhv->ihv", pairs + c.pairs.error, largest)
    error = error + by_token * total
    error = error + unit * (jnp.abs(y) + error)
    error = error + 2 * front.of_sum + front.of_operand * root * (of_read + whole)
    of_pairs = jnp.sum(pairs + c.pairs.error, axis=-1).T[..., None]
    summed = front.of_operand * (of_pairs + jnp.sum(largest, axis=0))
    error = error + jnp.where(front.of_operand > 0, summed, 0.0)
    magnitude = total + (of_read + off_read) * whole
    return Bounded(y, unless_overflow(declared, magnitude, error) * SAFETY)


def store_columns(declared: Declared, site: str, state) -> BoundedColumns:
    """A store of a state: see `_columns_stored`."""
    state = columns(declared, state)
    stored, moved = _columns_stored(declared, site, state)
    shape = state.ellipsoid
    if site in declared.sites:
        shape = ellipsoids.total(shape, ellipsoids.ball(moved, state.shape[-1]))
    return BoundedColumns(stored, shape)


def _columns_stored(declared: Declared, site: str, x: Bounded):
    """What a store makes of a state, and what it moves, a column, in L2.

    Either around the middle of what may be stored, by `storage`, or around x, further
    by roundings; whichever leaves less. In L2 roundings to nearest move a column by a
    unit of its whole length, however its error lies among its keys: entry by entry,
    each under the column's radius, they would be counted once a key.
    """
    if site not in declared.sites:
        return x, jnp.zeros_like(x.norm)
    numbers = declared.sites[site]
    half = flow.keys_last(state_error_bound(flow.keys_first(x.magnitude), numbers))
    moved = jnp.linalg.norm(half, axis=-1)
    if not is_state_numbers(numbers):
        length = jnp.linalg.norm(x.value, axis=-1) + x.norm
        root = x.shape[-1] ** 0.5
        whole = numbers.unit * length + root * least_stored(declared, site)
        # what may overflow in an entry has no bound in it
        known = jnp.all(jnp.isfinite(half), axis=-1)
        moved = jnp.where(known, jnp.minimum(moved, whole), jnp.inf)
    radius = (x.norm + moved) * SAFETY
    free = Bounded(x.value, jnp.minimum(x.error + half, radius[..., None]), radius)
    if not declared.centred or is_state_numbers(numbers):
        return free, moved
    middle = lift(storage.store(declared, numbers, x))
    nearer = middle.norm < free.norm
    stored = _chosen(nearer, middle, free)
    return stored, jnp.where(nearer, middle.norm + x.norm, moved)


def _stored(declared: Declared, site: str, x: Bounded):
    """What a store makes of x, and what it moves beside the error of x itself.

    As `_columns_stored`, entry by entry.
    """
    if site not in declared.sites:
        return x, jnp.zeros_like(x.value)
    numbers = declared.sites[site]
    assert not is_state_numbers(numbers)
    half = storage.rounding_error_bound(x.magnitude, numbers)
    if not declared.centred:
        return Bounded(x.value, (x.error + half) * SAFETY), half
    middle = lift(storage.store(declared, numbers, x))
    own = jnp.minimum(half + jnp.abs(middle.value - x.value), middle.error + x.error)
    nearer = own <= half
    value = jnp.where(nearer, middle.value, x.value)
    error = jnp.where(nearer, middle.error, (x.error + half) * SAFETY)
    return Bounded(value, error), jnp.where(nearer, own, half) * SAFETY


def _factor(x: Bounded | None):
    """A factor a token and head, and its error; 1 where there is none."""
    if x is None:
        return 1.0, 0.0
    return x.value[..., None], x.error[..., None]


def _smaller(entries: Bounded, radius) -> Bounded:
    """The smaller of an elementwise bound and one a column."""
    error = jnp.minimum(entries.error, radius[..., None])
    return Bounded(entries.value, error, radius)
