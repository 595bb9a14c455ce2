"""The delta rule over a sequence: token by token, or chunk by chunk.

Chunks as matrix products (Yang et al. 2024, arXiv 2406.06484, section 3; with gates
2412.06464, section 3.3). The sites are where fla's Triton kernels store in the model's
format (flash-linear-attention 0.6.0: `gated_delta_rule/chunk.py`, `wy_fast.py`,
`common/chunk_delta_h.py`, `common/chunk_o.py`): the inverse, what multiplies it, u and
w, the state handed to a chunk, what is written, and the weights of pairs. What ends in
`_operand` is what tensor cores read of a tensor held in fp32. transformers' torch code
solves the system twice in fp32 and stores none of them.

vLLM 0.33.0 multiplies keys by their rates before a product of pairs reads them
(`k_rated`: `third_party/flash_linear_attention/ops/chunk_scaled_dot_kkt.py`), and in
Kimi's rounds queries times their scale first (`query_scaled`: in
`chunk_gla_fwd_kernel_o`).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..arithmetic import AbstractArithmetic
from ..arithmetic._delta import TILE, DeltaChunk, DeltaToken
from .ssd import chunks


CHUNK = (
    "elapsed", "q_operand", "k_operand", "k_rated", "pair_operand", "QK_decayed",
    "v_beta", "k_beta", "k_beta_decayed", "tile_operand", "inverse", "inverse_operand",
    "u", "w", "query_scaled", "q_decayed", "chunk_state", "k_decayed", "v_new",
    "v_new_decayed",
)  # fmt: skip
"""Sites of a chunk."""
BY_KEY = ("pair_operand", "query_scaled", "q_decayed", "k_decayed")
"""Those of them where every channel of a key has a decay of its own."""
BY_HEAD = ("k_rated",)
"""Those where a head has one."""


class Tokens(NamedTuple):
    """What a sequence brings to the recurrence; (seq, heads, ...) each."""

    query: Any
    key: Any
    value: Any
    rate: Any
    """(seq, heads)."""
    log_gate: Any
    """(seq, heads), or (seq, heads, key_dim)."""


def recurrent_delta(at: AbstractArithmetic, tokens: Tokens, state):
    """The whole sequence: what queries read, (seq, heads, value_dim), and the state.

    **Arguments:**

    - `state`: (heads, value_dim, key_dim), before the first token.
    """

    if at.form.period > 1 and at.stores("state"):
        return _by_period(at, tokens, state)
    inputs = (*tokens[:4], at.fading(tokens.log_gate))
    state, y = at.scan(_token, at.columns(state), inputs)
    return y, state


def _token(at, state, inputs, *, stored: bool = True):
    """One token: the state behind it, and what its query reads."""
    query, key, value, rate, decay = inputs
    state = at.delta_step(state, DeltaToken(decay, key, value, rate))
    at.observe("state", state)
    # a cache gets the state in its format; what is read out now is not from there
    read = at.store_columns("state_read", state)
    kept = at.store_columns("state", state) if stored else state
    return at.columns(kept), at.delta_read(read, query)


def _by_period(at, tokens: Tokens, state):
    """Tokens in windows of which the last one alone stores the state, as serving code
    does with drafts; rate 0 and gate 1 fill up the last window and change nothing."""
    period, seq = at.form.period, tokens.rate.shape[0]
    windows = -(-seq // period)

    def cut(a):
        behind = ((0, windows * period - seq), *((0, 0),) * (a.ndim - 1))
        return jnp.pad(a, behind).reshape(windows, period, *a.shape[1:])

    def body(at, state, inputs):
        outputs = []
        for i in range(period):
            given = tuple(x[i] for x in inputs)
            state, y = _token(at, state, given, stored=i == period - 1)
            outputs.append(at.view(lambda a: a[None], y))
        return state, at.join(outputs)

    *pieces, log_gate = (at.view(cut, x) for x in tokens)
    state, y = at.scan(body, at.columns(state), (*pieces, at.fading(log_gate)))
    return at.view(lambda a: a.reshape(-1, *a.shape[2:])[:seq], y), state


def chunked_delta(
    at: AbstractArithmetic,
    tokens: Tokens,
    state,
    chunk: int,
    *,
    scale: float = 1.0,
    inverted: bool = False,
):
    """As `recurrent_delta`, in chunks: one function in exact arithmetic.

    A chunk at the end of a call is filled up with rate 0 and gate 1, which changes
    nothing.

    **Arguments:**

    - `scale`: of what is read: at the end, and where channels have decays of their own
      of pairs before they are stored.
    - `inverted`: whether executions that store no inverse make one, and multiply by
      it, instead of solving twice.
    """
    seq = tokens.rate.shape[0]
    cut, joined = chunks(seq, chunk, at.form.calls)
    q, k, v, rate, gate = (at.view(cut, x) for x in tokens)
    by_key = len(gate.shape) == 4
    rows = lambda a: jnp.swapaxes(a, 1, 2)
    to_key = (lambda a: a) if by_key else _column

    def store(site, x):
        """A store has a row for each token, as those have that it is held to."""
        if not at.stores(site):
            return x
        return at.view(cut, at.store(site, at.view(joined, x)))

    # from (chunks, heads, tokens, ...) and back
    store_pairs = lambda site, x: at.view(rows, store(site, at.view(rows, x)))

    # running sums within chunks go along the first axis
    first = lambda a: jnp.swapaxes(a, 0, 1)
    elapsed = at.view(first, at.cumsum(at.view(first, gate)))
    # kernels hold it times log2(e), so that it is rounded at other places
    elapsed = at.may_store("elapsed", elapsed, rescaled=True)
    length = elapsed.shape[1]
    read_q, read_k = store("q_operand", q), store("k_operand", k)
    alike, seen = (
        _pairs_by_key(at, q, k, elapsed)
        if by_key
        else _pairs(at, read_q, read_k, elapsed, rate)
    )
    if not at.stores("k_rated"):
        alike = at.multiply(alike, at.view(lambda a: _column(rows(a)), rate))
    system = at.mask(alike, jnp.tril(jnp.ones((length, length)), -1))
    pairs = at.mask(seen, jnp.tril(jnp.ones((length, length))))
    if by_key:
        pairs = at.multiply(pairs, at.fixed(scale))
    pairs = store_pairs("QK_decayed", pairs)

    reach = at.fading(elapsed)
    v_beta = store("v_beta", at.multiply(v, at.view(_column, rate)))
    k_beta = store("k_beta", at.multiply(k, at.view(_column, rate)))
    k_beta = at.multiply(k_beta, at.view(to_key, reach))
    sides = [at.view(rows, x) for x in (v_beta, store("k_beta_decayed", k_beta))]
    u, w = _solved(at, system, sides, store_pairs, inverted=inverted)
    u, w = store("u", at.view(rows, u)), store("w", at.view(rows, w))

    end = lambda a: jnp.broadcast_to(a[:, -1:], a.shape)
    behind = jnp.arange(length) < length - 1
    behind = behind.reshape(-1, *(1,) * (len(gate.shape) - 2))
    left = at.add(at.view(end, elapsed), at.negate(elapsed))
    left = at.fading(at.mask(left, behind))
    decay = at.view(lambda a: a[:, -1], reach)
    reads, keys = read_q, read_k
    if by_key:
        keys, left = store("k_decayed", at.multiply(k, left)), None
        q, reads, reach = _reads_by_key(at, store, q, reach, rate, scale)

    exact = system, k, rate, gate, v, q
    given = DeltaChunk(u, w, reads, reach, keys, left, pairs, decay, *exact)

    def body(at, state, inputs):
        state, y = at.delta_chunk(state, DeltaChunk(*inputs), inverted=inverted)
        at.observe("state", state)
        return at.columns(state), y

    state, y = at.scan(body, at.columns(state), tuple(given))
    y = at.view(joined, y)
    return (y if by_key else at.multiply(y, at.fixed(scale))), state


def _reads_by_key(at, store, q, reach, rate, scale: float):
    """Queries, what they read as it is stored, and the decays that are not in it,
    where channels have decays of their own."""
    scaled_q = at.multiply(q, at.fixed(scale))
    if at.stores("query_scaled"):
        reads = at.multiply(store("query_scaled", scaled_q), reach)
        return scaled_q, at.may_store("q_decayed", reads), None
    reads = at.may_store("q_decayed", at.multiply(q, reach))
    return scaled_q, reads, at.carry(jnp.full(rate.shape, scale))


def _solved(at, system, sides, store_pairs, *, inverted: bool):
    """What solves (1 + system) x = side for both sides: by an inverse that is stored,
    by one that is not, or twice by substitution."""
    if not at.stores("inverse") and not inverted:
        return [at.solve_unit_lower(system, side) for side in sides]
    whole = lambda: at.solve_unit_lower(system, at.carry(jnp.eye(system.shape[-1])))
    made = _by_tiles(at, system) if at.stores("inverse") else whole()
    inverse = store_pairs("inverse", made)
    product = lambda x, side: at.einsum("nhij,nhjc->nhic", x, side)
    u = product(inverse, sides[0])
    return u, product(store_pairs("inverse_operand", inverse), sides[1])


def _column(a):
    return a[..., None]


def _apart(at, elapsed):
    """Decays from each token to each later one: (..., later, earlier, heads, ...)."""
    length = elapsed.shape[0]
    apart = at.add(
        at.view(lambda a: a[:, None], elapsed),
        at.negate(at.view(lambda a: a[None], elapsed)),
    )
    # nothing has passed at a token itself, which every execution gets exactly
    earlier = jnp.tril(jnp.ones((length, length)), -1)
    earlier = earlier.reshape(length, length, *(1,) * (len(elapsed.shape) - 1))
    return at.fading(at.mask(apart, earlier))


def _pairs(at, q, k, elapsed, rate):
    """k_i . k_j and q_i . k_j times the decay between them: (chunks, heads, i, j); of
    keys times their rates where products read those."""
    # tokens in front, chunks behind: decays are made of pairs of tokens
    turned = at.view(lambda a: jnp.swapaxes(a, 0, 1), elapsed)
    apart = at.view(lambda a: a.transpose(2, 3, 0, 1), _apart(at, turned))
    own = k
    if at.stores("k_rated"):
        rated = at.multiply(k, at.view(_column, rate))
        own = at.may_store("k_rated", rated, rescaled=True)
    return tuple(
        at.multiply(at.einsum("nihk,njhk->nhij", x, k), apart) for x in (own, q)
    )


def _pairs_by_key(at, q, k, elapsed):
    """The same where every key channel has a decay of its own, chunk by chunk."""

    def body(at, nothing, inputs):
        q, k, elapsed = inputs
        apart = _apart(at, elapsed)
        faded = lambda x: at.multiply(at.view(lambda a: a[:, None], x), apart)
        # a tile's: queries and keys times decays from and to its first token
        operand = lambda x: at.may_store("pair_operand", x, rescaled=True)
        found = [
            at.einsum("ijhk,jhk->hij", operand(faded(x)), operand(k)) for x in (k, q)
        ]
        return nothing, tuple(found)

    return at.scan(body, at.carry(jnp.zeros(())), (q, k, elapsed))[1]


def _by_tiles(at: AbstractArithmetic, system):
    """(1 + system)^-1, tiles on the diagonal by substitution, others by products.

    Tiles that are as far from the diagonal are made together: X_ij of X_ii, A_il, X_lj.
    """
    length = system.shape[-1]
    size = min(TILE, length)
    count = -(-length // size)
    filled = count * size - length
    pad = lambda a: jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, filled)] * 2)
    tile = lambda a, i, j: a[..., i * size : (i + 1) * size, j * size : (j + 1) * size]
    system = at.view(pad, system)
    # (chunks, heads, tiles, size, size), from the upper left
    given = [
        at.view(
            lambda a, below=below: jnp.stack(
                [tile(a, i, i - below) for i in range(below, count)], axis=2
            ),
            system,
        )
        for below in range(count)
    ]
    part = lambda x, first, tiles: at.view(lambda a: a[:, :, first : first + tiles], x)
    operand = lambda x: at.may_store("tile_operand", x)
    product = lambda x, y, start=None: at.einsum(
        "nhtij,nhtjk->nhtik", operand(x), operand(y), start
    )
    found = [at.solve_unit_lower(given[0], at.carry(jnp.eye(size)))]
    for below in range(1, count):
        left = count - below
        front = part(found[0], below, left)
        if below == 1:
            made = product(product(front, given[1]), part(found[0], 0, left))
        else:
            # each product goes on in the accumulator of those before
            total = None
            for m in range(below):
                tiles = part(given[below - m], m, left), part(found[m], 0, left)
                total = product(*tiles, total)
            made = product(front, total)
        found.append(at.negate(made))
    ends = np.cumsum([0, *range(count, 0, -1)])
    places = [
        [ends[i - j] + j if j <= i else -1 for j in range(count)] for i in range(count)
    ]

    def whole(a):
        tiles = jnp.pad(a, ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0)))
        tiles = tiles[:, :, np.array(places)].swapaxes(3, 4)
        shape = *a.shape[:2], count * size, count * size
        return tiles.reshape(shape)[..., :length, :length]

    return at.view(whole, at.join(found, axis=2))
