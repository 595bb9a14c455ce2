r"""A chunk of a delta rule, bounded by what its tokens make of errors one by one.

Three things move an execution away. What its inputs are off by, which goes through the
exact recurrence: token by token, by norms of step matrices. What the chunk's own
algorithm loses of the equations that its writes solve, $(I + A) W = r$: whatever way
they were solved, the chunk is the recurrence with its i-th write changed by the
residual of the i-th equation, so that it goes the same way. And what is rounded of the
solution, which is counted where it is.

The residual of substitution is Higham 2002, theorem 8.5; that of an inverse made of
tiles, with X the inverse, T the products by tiles in front and $\tau$ the relative
loss of a product, is at most
$(\tau + (\gamma + \tau) |I + A_{ii}| |X_{ii}|) \sum_l |A_{il}| |X_{lj}|$.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...formats import is_state_numbers
from .. import _delta as flow
from .._bounded_values import SAFETY, Bounded, lift
from . import ellipsoids, storage
from .declared import Declared, dot, near_zero, unless_overflow
from .delta_walk import walk
from .ellipsoids import BoundedColumns


def solve_unit_lower(declared: Declared, system, x) -> Bounded:
    r"""Backward error of substitution, componentwise, in any order of sums.

    $(I + A' + \Delta) y' = x'$ with $|\Delta| \le \gamma (I + |A'|)$ (Higham 2002,
    theorem 8.5). With $N = e_A + \gamma (I + |A| + e_A)$, strictly lower but for
    $\gamma$, $|y' - y| \le (I - |L| N)^{-1} |L| (e_x + N |y|)$, L the inverse.
    """
    system, x = lift(system), lift(x)
    rows = system.shape[-1]
    growth = jnp.expm1(declared.reduction_depth(rows + 1) * declared.model.unit)
    eye, below = jnp.eye(rows), jnp.tril(jnp.ones((rows, rows)), -1)
    size, error = (jnp.abs(a) * below for a in (system.value, system.error))
    own = error + growth * (eye + size + error)
    inverse = flow.solve_unit_lower(system.value, eye)
    value = jnp.matmul(inverse, x.value, precision="highest")
    inverse = jnp.abs(inverse)
    moved = inverse @ own
    most = jnp.abs(value) + x.error
    least = inverse @ (x.error + own @ jnp.abs(value))
    # 1 - its diagonal in front: what is left is of unit diagonal
    scale = 1.0 - jnp.diagonal(moved, axis1=-2, axis2=-1)[..., None]
    known = scale > 0.5
    scale = jnp.where(known, scale, 1.0)
    spread = flow.solve_unit_lower(-moved * below / scale, least / scale)
    flushed = declared.model.underflow * (2 * rows) * (inverse @ (1.0 + most))
    rounding = declared.model.unit * most
    total = jnp.sum(most, axis=-2, keepdims=True)
    rounding = unless_overflow(declared, total, rounding + flushed)
    error = jnp.where(known, spread, jnp.inf) + rounding
    return Bounded(value, error * SAFETY)


class Losses(NamedTuple):
    """What an execution loses by its own arithmetic, its inputs as it has them."""

    residual: jax.Array
    """Of the equations that writes solve: (tokens, heads, value_dim)."""
    solution: jax.Array
    """Of what solves them."""


def losses(
    declared: Declared, c: flow.DeltaChunk, fading, whole, moved, growths, *, inverted
) -> Losses:
    """What the arithmetic loses of a chunk's writes.

    **Arguments:**

    - `fading`: see `_of_decays`. `whole`: most that a column is long that the chunk
      reads, (heads, value_dim); `moved`: what storing it moves. `growths`: of a
      sum over keys, and what `near_zero` gives.
    """
    unit, tokens, terms = declared.model.unit, c.w.shape[0], c.w.shape[-1]
    root, (by_key, of_operand, of_sum) = terms**0.5, growths
    first = lambda a: jnp.moveaxis(a, 0, 1)
    eye = jnp.eye(tokens)
    size = jnp.abs(c.system.value) + c.system.error
    growth = jnp.expm1(declared.reduction_depth(tokens + 1) * unit)
    rates = first(jnp.abs(c.rate.value) + c.rate.error)
    lengths = first(jnp.linalg.norm(c.key.value, axis=-1) + c.key.norm)
    decays, between, reach, _, _ = fading

    # the system itself: sums over keys of products with decays in front or behind
    keys = jnp.abs(c.key.value) + c.key.error
    alike = dot("ihk,jhk->hij", keys, keys) * rates[..., None] * decays
    operands = _unit_of(declared, "k_operand") + _unit_of(declared, "pair_operand")
    operands = 2 * operands + _unit_of(declared, "k_rated")
    of_pairs = jnp.expm1(by_key + 6 * unit + operands + between)
    own = alike * of_pairs * jnp.tril(jnp.ones((tokens, tokens)), -1)

    # both right hand sides as they are read: equations with other ones
    given = first(jnp.abs(c.value.value) + c.value.error) * rates[..., None]
    erased = (rates * lengths)[..., None]
    residual_u = jnp.expm1(2 * unit) * given
    residual_u, given = _with_stores(declared, residual_u, given, 1.0, "v_beta")
    residual_w = jnp.expm1(3 * unit + reach.T[..., None]) * erased
    residual_w, erased = _with_stores(
        declared, residual_w, erased, root, "k_beta", "k_beta_decayed"
    )
    u = first(jnp.abs(c.u.value) + c.u.error)
    w = first(jnp.linalg.norm(c.w.value, axis=-1) + c.w.norm)[..., None]
    solution_u, solution_w = unit * u, unit * w
    if "inverse" in declared.sites or inverted:
        left = lambda x: _of_inverse(declared, size, own, growth, x)
        inverse = solve_unit_lower(declared, c.system, eye).magnitude
        ceiling = eye + rates[..., None] * decays * _ceiling(c, lengths)
        inverse = jnp.minimum(inverse, ceiling)
        # what is computed is no larger than this and `more`, if that reproduces itself
        more = 4.0 * inverse @ left(inverse)
        found = left(inverse + more)
        known = jnp.all(inverse @ found <= more, axis=(-2, -1), keepdims=True)
        inverse = jnp.where(known, inverse + more, jnp.inf)
        residual_u = residual_u + found @ given
        residual_w = residual_w + found @ erased
        depth = declared.accumulation_depth(tokens)
        of_sum = jnp.expm1(depth * declared.model.accumulator_unit)
        stored = jnp.zeros_like(inverse)
        stored, inverse = _with_stores(declared, stored, inverse, 1.0, "inverse")
        solution_u = solution_u + stored @ given + of_sum * (inverse @ given)
        u = jnp.minimum(u, inverse @ given * (1.0 + of_sum))
        stored, inverse = _with_stores(
            declared, stored, inverse, 1.0, "inverse_operand"
        )
        solution_w = solution_w + stored @ erased + of_sum * (inverse @ erased)
        w = jnp.minimum(w, inverse @ erased * (1.0 + of_sum))
    else:
        left = growth * (eye + size) + own
        residual_u, residual_w = residual_u + left @ u, residual_w + left @ w
    solution_u, u = _with_stores(declared, solution_u, u, 1.0, "u")
    solution_w, w = _with_stores(declared, solution_w, w, root, "w")

    back = lambda a: jnp.moveaxis(a, 1, 0)
    residual = back(residual_u) + back(residual_w) * whole
    w = back(w)
    solution = back(solution_u) + (back(solution_w) + by_key * w) * whole + w * moved
    flushed = 4 * of_sum + 2 * of_operand * (tokens + terms)
    flushed = flushed * (1.0 + jnp.max(whole) + jnp.max(given))
    return Losses(residual + flushed, solution + flushed)


def _with_stores(declared: Declared, lost, size, root: float, *sites: str):
    """What is lost and how large the rest may be, behind stores one after another."""
    for site in sites:
        if site in declared.sites:
            off = _unit_of(declared, site) * size + root * least_stored(declared, site)
            lost, size = lost + off, size + off
    return lost, size


def _of_inverse(declared: Declared, size, own, growth, inverse):
    """Most that (1 + A) X - 1 is, of a computed X no larger than `inverse`."""
    tokens = size.shape[-1]
    eye = jnp.eye(tokens)
    if "tile_operand" not in declared.sites:
        return (growth * (eye + size) + own) @ inverse
    of_sum = declared.accumulation_depth(tokens) * declared.model.accumulator_unit
    made = jnp.expm1(of_sum + 2 * _unit_of(declared, "tile_operand"))
    place = jnp.arange(tokens) // flow.TILE
    tiles = jnp.where(place[:, None] == place[None, :], 1.0, 0.0)
    front = (1.0 + made) * size @ inverse
    solved = ((eye + size) * tiles) @ (inverse * tiles)
    return own @ inverse + made * front + (growth + made) * solved @ (eye + front)


def _of_decays(declared: Declared, c: flow.DeltaChunk):
    """Decays between tokens, (heads, later, earlier), and from the start of the chunk
    on, at most; and what arithmetic loses of both, and of those until its end."""
    gate = c.log_gate.value.reshape(*c.log_gate.shape[:2], -1)
    off = c.log_gate.error.reshape(gate.shape)
    elapsed = jnp.cumsum(jnp.max(gate, axis=-1), axis=0)
    passed = jnp.cumsum(jnp.max(jnp.abs(gate) + off, axis=-1), axis=0)
    spread = jnp.cumsum(jnp.max(off, axis=-1), axis=0)
    apart = elapsed[:, None] - elapsed[None] + spread[:, None]
    decays = jnp.exp(jnp.minimum(apart, 0.0)).transpose(2, 0, 1)
    of_pairs = (passed[:, None] + passed[None]).transpose(2, 0, 1)
    start = jnp.exp(jnp.minimum(elapsed + spread, 0.0))
    lost = lambda size: _exponent_lost(declared, size)
    return decays, lost(of_pairs), lost(passed), lost(passed + passed[-1:]), start


def _exponent_lost(declared: Declared, passed):
    """Relative loss of exp of sums of gates whose sizes add up to `passed`."""
    model = declared.model
    levels = declared.scan_depth + 2
    argument = jnp.expm1(levels * model.unit) + 2 * model.unit + model.exp_argument
    argument = argument + _unit_of(declared, "elapsed")
    return jnp.expm1(jnp.minimum(argument * passed + model.exp_relative, 300.0))


def _ceiling(c: flow.DeltaChunk, lengths):
    """|k_i| |k_j| times norms of the steps between: of entries of the inverse below
    its diagonal, over the rate (`proofs.delta_inverse`)."""
    share = (jnp.abs(c.rate.value) + c.rate.error).T * lengths**2
    norms = jnp.cumsum(jnp.log(jnp.maximum(share - 1.0, 1.0)), axis=-1)
    grown = jnp.exp(jnp.maximum(norms[..., :, None] - norms[..., None, :], 0.0))
    below = jnp.tril(jnp.ones(grown.shape[-2:]), -1)
    return lengths[..., :, None] * lengths[..., None, :] * grown * below


def _unit_of(declared: Declared, site: str):
    """What a store loses relative to what it stores; 0 where there is none."""
    if site not in declared.sites:
        return 0.0
    numbers = declared.sites[site]
    assert not is_state_numbers(numbers)
    return numbers.unit


def chunk_by_tokens(
    declared: Declared,
    state: BoundedColumns,
    c: flow.DeltaChunk,
    *,
    inverted: bool = False,
) -> tuple[BoundedColumns, Bounded]:
    """The state behind a chunk and what is read, around exact ones."""
    unit, terms, tokens = declared.model.unit, c.w.shape[-1], c.w.shape[0]
    root = terms**0.5
    by_key, by_token = (summing(declared, n) for n in (terms, tokens + 1))
    growth = jnp.maximum(by_key, by_token)
    of_operand, of_sum = near_zero(declared, max(terms, tokens + 1), growth)

    longest = jnp.linalg.norm(state.value, axis=-1) + state.norm
    moved, whole = _with_stores(
        declared, jnp.zeros_like(longest), longest, root, "chunk_state"
    )
    decays, between, reach, until, start = fading = _of_decays(declared, c)
    growths = by_key, of_operand, of_sum
    own = losses(declared, c, fading, whole, moved, growths, inverted=inverted)
    (end, radius, shape), seen = walk(state, c, own.residual)
    most = jnp.abs(seen.write) + seen.off
    written = own.solution + unit * (most + own.solution)
    kept = most + written
    column = lambda a: a[..., None]

    # the state at the end: what solutions are off by, and its own sums
    left = column(decays[:, -1].T)
    lost = jnp.expm1(2 * unit + column(until)) * kept
    size = (kept + lost) * left
    ended, size = _with_stores(declared, written * left, size, 1.0, "v_new_decayed")
    of_keys = jnp.linalg.norm(c.key.value, axis=-1) + c.key.norm
    operands = _unit_of(declared, "k_operand") + _unit_of(declared, "k_decayed")
    aside = lost * left + jnp.expm1(by_token + operands) * size
    # decays that are off turn keys
    aside = aside + -jnp.expm1(-2.0 * column(_off_gates(c))) * ended
    aside = column(of_keys) * aside + column(c.key.norm) * ended
    aside = jnp.sum(aside, axis=0)
    held = column(start[-1]) * longest
    aside = aside + jnp.expm1(by_token + 2 * unit + column(reach[-1])) * held
    aside = aside + root * (2 * of_sum + of_operand * jnp.sum(size, axis=0))
    aside = aside + of_operand * jnp.sum(of_keys, axis=0)[:, None]
    aside = aside + root * least_stored(declared, "k_decayed") * jnp.sum(size, axis=0)
    aside = unless_overflow(declared, held + jnp.sum(kept, axis=0), aside)
    solved = ellipsoids.along(_faded_keys(c), ended)
    shape = ellipsoids.total(shape, solved, ellipsoids.ball(aside, terms))
    radius = radius + aside + dot("jh,jhv->hv", of_keys, ended)
    radius = jnp.minimum(radius * SAFETY, ellipsoids.length(shape))
    error = jnp.broadcast_to(radius[..., None], end.shape)

    # what is read
    q = c.query
    of_query = column(jnp.linalg.norm(q.value, axis=-1) + q.norm)
    y = _exact_reads(state, c, seen.write)
    found = seen.read + column(q.norm) * (seen.radius + seen.length)
    operands = _unit_of(declared, "q_operand") + _unit_of(declared, "q_decayed")
    operands = operands + _unit_of(declared, "query_scaled")
    of_start = jnp.expm1(by_key + by_token + 3 * unit + operands + column(reach))
    found = found + of_query * column(start) * (moved + of_start * whole)
    least = least_stored(declared, "q_decayed") + least_stored(declared, "query_scaled")
    found = found + root * least * whole
    pairs, shown = _read_pairs(declared, c, decays, by_key + 5 * unit + between)
    fresh, kept = _with_stores(declared, written, kept, 1.0, "v_new")
    found = found + dot("hij,jhv->ihv", pairs, kept)
    found = found + dot("hij,jhv->ihv", shown, fresh + by_token * kept)
    found = found + unit * (jnp.abs(y) + found)
    sizes = root * (jnp.max(of_query) + jnp.max(whole))
    sizes = sizes + tokens * (jnp.max(kept) + jnp.max(shown))
    flushed = 4 * of_sum + jnp.where(of_operand > 0, of_operand * sizes, 0.0)
    largest = dot("hij,jhv->ihv", shown, kept) + of_query * whole
    found = unless_overflow(declared, largest, found + flushed)
    after = BoundedColumns(Bounded(end, error, radius), shape)
    return after, Bounded(y, found * SAFETY)


def _read_pairs(declared: Declared, c: flow.DeltaChunk, decays, lost):
    """What weights of pairs are off by as they are read, and how large they may be.

    **Arguments:**

    - `lost`: what their sums and decays lose, in log.
    """
    q, tokens = c.query, c.w.shape[0]
    keys = jnp.abs(c.key.value) + c.key.error
    pairs = dot("ihk,jhk->hij", jnp.abs(q.value) + q.error, keys) * decays
    pairs = pairs * jnp.tril(jnp.ones((tokens, tokens)))
    operands = 2 * _unit_of(declared, "pair_operand")
    operands = operands + _unit_of(declared, "q_operand")
    operands = operands + _unit_of(declared, "k_operand")
    pairs = pairs * jnp.expm1(lost + operands)
    shown = jnp.abs(c.pairs.value) + c.pairs.error
    return _with_stores(declared, pairs, shown, 1.0, "QK_decayed")


def _off_gates(c: flow.DeltaChunk):
    """What the gates of a chunk are off by together, at most: (heads)."""
    off = c.log_gate.error.reshape(*c.log_gate.shape[:2], -1)
    return jnp.sum(jnp.max(off, axis=-1), axis=0)


def _elapsed(c: flow.DeltaChunk):
    """Sums of log gates from a chunk's start on: (tokens, heads, 1 or key_dim)."""
    gate = c.log_gate.value
    return jnp.cumsum(gate.reshape(*gate.shape[:2], -1), axis=0)


def _faded_keys(c: flow.DeltaChunk):
    """Keys as they are left at the chunk's end, next to the channel that fades least.

    What fades by the same in all channels is in what they multiply.
    """
    elapsed = _elapsed(c)
    left = elapsed[-1:] - elapsed
    return c.key.value * jnp.exp(left - jnp.max(left, axis=-1, keepdims=True))


def _exact_reads(state: Bounded, c: flow.DeltaChunk, write):
    queries = c.query.value * jnp.exp(_elapsed(c))
    before = dot("ihk,hvk->ihv", queries, state.value)
    return before + dot("hij,jhv->ihv", c.pairs.value, write)


def least_stored(declared: Declared, site: str):
    """Most that a store loses of what is below its normal numbers."""
    if site not in declared.sites:
        return 0.0
    numbers = declared.sites[site]
    assert not is_state_numbers(numbers)
    return storage.rounding_error_bound(jnp.zeros(()), numbers)


def summing(declared: Declared, terms: int):
    """(1 + u)^depth - 1 of a sum of products, in whichever unit is larger."""
    unit = jnp.maximum(declared.model.accumulator_unit, declared.model.unit)
    return jnp.expm1(declared.accumulation_depth(terms) * unit)
