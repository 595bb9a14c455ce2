"""The scan of Mamba-2 chunk by chunk, as matrix products (arXiv 2405.21060, section 6).

Within a chunk every pair of tokens is weighed by C_l . B_s exp(sum of dt A between
them) dt_s; across chunks a state is passed. The sites are where mamba_ssm's Triton
kernels round (`ssd_chunk_state.py`, `ssd_state_passing.py`, `ssd_chunk_scan.py` of
mamba_ssm 2.3.2): B times its scale, the state handed to a chunk, and the weights of
pairs; in fp32 models also x, B and C as tensor cores read them. transformers' torch
code computes the same in fp32 and stores none of them.

vLLM passes them on likewise but stores the state in front of a chunk in its cache's
format before it is handed (`chunk_cached`); its ReplaySSM keeps the last tokens of a
decode in rings (`selective_state_update_replayssm_output_only.py` of vLLM 0.33.0): a
chunk of as many tokens, whose state goes into the cache when they are full.

Where what overflowed goes differs, too. mamba_ssm passes states in a loop over chunks
(`_state_passing_fwd_kernel`), which no later chunk enters; transformers multiplies all
of them by a matrix of decays in which later ones have an exact 0, and x by dt first
(`mamba2_chunk_scan` of its 5.23 and 5.24): 0 times inf makes NaN of every token.
Within a chunk both sum masked pairs times x, as is done here.
"""

import jax.numpy as jnp
import numpy as np

from .._errors import UsageError
from ..arithmetic import AbstractArithmetic


def chunked_scan(
    at: AbstractArithmetic, dt, x, B, C, A, D, state, chunk: int, in_front=None
):
    """The whole sequence: (y, state after it), y = C h + D x.

    **Arguments:**

    - `dt`: (seq, heads), after softplus and limits. `A`: (heads), negative.
    - `x`: (seq, d_inner), head-major. `D`: (d_inner).
    - `B`, `C`: (seq, groups, d_state).
    - `state`: (d_state, d_inner), before the first token.
    - `chunk`: tokens a chunk; the last one of a call is filled up with dt = 0, which
      changes nothing: its decays are 1 and its drives 0.
    - `in_front`: (heads), no larger than the sum of dt A over another text's tokens in
      front of the first one in its chunk, through which running sums go (SGLang); None:
      there are none. Differences of sums do not depend on it, their roundings do. The
      state before the first token is zero then.

    A sequence that comes in several calls (`at.form.calls`) is one scan over the chunks
    of all of them, since the state that a call leaves is where the next one starts. A
    bound of it is one of the calls: within a call it is the rule of its chunks, and
    between two calls, as between two chunks, the state goes on with its error.
    """
    seq, heads = dt.shape
    whole = in_front is not None
    cut, joined = chunks(seq, chunk, at.form.calls, at.form.grid, whole=whole)
    pieces = [at.view(cut, piece) for piece in (dt, at.view(_heads(heads), x), B, C)]
    start = at.view(lambda a: _heads(heads)(a).transpose(1, 2, 0), at.carry(state))
    count = pieces[0].shape[0]
    last = jnp.arange(count) == count - 1
    begun = None
    if in_front is not None:
        begun = jnp.zeros((count, heads)).at[0].set(in_front)
    after, y = at.scan(
        lambda at, state, inputs: _one_chunk(at, state, inputs, A),
        start,
        (*pieces, last, begun),
    )
    y = at.view(joined, y)
    if at.form.chunks_at_once:
        # a state that was no number once is none at the end, whatever it fades by
        y = at.reached(y, after)
    y = at.view(lambda a: a.reshape(x.shape), y)
    y = at.add(y, at.multiply(x, D))
    return y, at.view(lambda a: a.transpose(2, 0, 1).reshape(state.shape), after)


def _one_chunk(at, state, inputs, A):
    """One chunk: (state after it, C h).

    dt (tokens, heads), x (tokens, heads, head_dim), B and C (tokens, groups, d_state),
    state (heads, head_dim, d_state). Whether the chunk is the last one comes last but
    one, and then (heads) what running sums begin with, or None.
    """
    dt, x, B, C, last, begun = inputs
    tokens, heads = dt.shape
    shared = heads // B.shape[1]
    repeat = lambda a: jnp.repeat(a, shared, axis=-2)
    decays = at.multiply(dt, A)
    if begun is not None:
        decays = at.add(decays, jnp.zeros((tokens, heads)).at[0].set(begun))
    elapsed = at.cumsum(decays)
    read_x = at.store("x_operand", x)
    read_C = at.store("C_operand", C)

    # from each token to the end of the chunk; nothing has passed at a token itself,
    # which every execution gets exactly
    left = at.add(elapsed[-1:], at.negate(elapsed))
    left = at.fading(at.mask(left, jnp.arange(tokens)[:, None] < tokens - 1))
    scale = at.view(lambda a: a[..., None], at.multiply(left, dt))
    driven = at.store("B_scaled", at.multiply(at.view(repeat, B), scale))
    made = at.einsum("shn,shp->hpn", driven, read_x)
    if at.form.chunks_at_once:
        drive = at.multiply(read_x, at.view(lambda a: a[..., None], dt))
        made = at.reached(made, at.view(_tokens_last, drive))
    kept = at.view(lambda a: a[:, None, None], at.fading(elapsed[-1]))
    cached = at.store("chunk_cached", state)
    before = state
    if at.form.last_again:
        ends = jnp.where(last, jnp.ones(state.shape), 0.0)
        before = at.add(at.mask(state, 1.0 - ends), at.mask(cached, ends))
    after = at.add(at.multiply(before, kept), made)

    # from token s to token l
    apart = at.add(
        at.view(lambda a: a[:, None], elapsed),
        at.negate(at.view(_as_source, elapsed)),
    )
    causal = jnp.tril(jnp.ones((tokens, tokens)))[:, :, None]
    earlier = jnp.tril(jnp.ones((tokens, tokens)), -1)[:, :, None]
    apart = at.fading(at.mask(apart, earlier))
    pairs = at.einsum("lgn,sgn->lsg", read_C, at.store("B_operand", B))
    pairs = at.view(repeat_last(shared), pairs)
    weight = at.multiply(at.multiply(pairs, apart), at.view(_as_source, dt))
    weight = at.store("CB_decayed", at.mask(weight, causal))

    handed = at.store("chunk_state", cached)
    since = at.view(lambda a: a[..., None], at.fading(elapsed))
    read = at.einsum("lhn,hpn->lhp", at.view(repeat, read_C), handed)
    read = at.multiply(read, since)
    # the accumulator begins with what came from before the chunk
    y = at.einsum("lsh,shp->lhp", weight, read_x, read)
    if not at.stores("state"):
        return after, y
    # a ring that is full: the last token reads the state that goes into the cache
    full = at.einsum("hn,hpn->hp", at.view(repeat, read_C[-1:])[0], after)
    y = at.join([y[:-1], at.view(lambda a: a[None], full)])
    return _in_rows(at, after, lambda state: at.store("state", state)), y


def _in_rows(at, state, store):
    """A state (heads, head_dim, d_state) through a store of (d_state, channels)."""
    flat = lambda a: a.transpose(2, 0, 1).reshape(a.shape[2], -1)
    stored = store(at.view(flat, state))
    back = lambda a: a.reshape(a.shape[0], *state.shape[:2]).transpose(1, 2, 0)
    return at.carry(at.view(back, stored))


def repeat_last(times: int):
    """Repeat the entries of the last axis."""
    return lambda a: jnp.repeat(a, times, axis=-1)


def _tokens_last(a):
    """(tokens, heads, head_dim) -> (heads, head_dim, 1 for all states, tokens)."""
    return a.transpose(1, 2, 0)[:, :, None]


def _as_source(a):
    return a[None]


def _heads(heads: int):
    return lambda a: a.reshape(*a.shape[:-1], heads, -1)


def chunks(
    seq: int,
    chunk: int,
    calls: tuple[int, ...],
    grid: int | None = None,
    *,
    whole: bool = False,
):
    """What cuts (seq, ...) into (chunks, tokens, ...), zeros behind, and what joins
    them again. A chunk begins with a call, and ends with it or after `chunk` tokens.

    **Arguments:**

    - `grid`: tokens of the text in front of the first one, where chunks end at
      multiples of `chunk` tokens from the text's start; None: from the call's start.
    - `whole`: whether a chunk of a short text is filled up, too.
    """
    within = grid is not None and grid % chunk
    if len(calls) < 2 and not within:
        count = -(-seq // chunk)
        behind = (0, count * chunk - seq)

        def cut(a):
            filled = jnp.pad(a, (behind, *((0, 0),) * (a.ndim - 1)))
            return filled.reshape(count, chunk, *a.shape[1:])

        return cut, lambda a: a.reshape(-1, *a.shape[2:])[:seq]
    calls = calls or (seq,)
    if sum(calls) != seq:
        raise UsageError(
            f"{seq} tokens are not what calls of {', '.join(map(str, calls))} hold",
            hint="a text that goes through in blocks comes in one call",
        )
    width, ends = chunk if whole else min(chunk, max(calls)), np.cumsum(calls)
    own = [
        np.arange(first, last)
        for tokens, end in zip(calls, ends, strict=True)
        for first, last in _borders(end - tokens, end, chunk, grid)
    ]
    # token `seq`, which there is not, is the zero behind a call
    places = np.full((len(own), width), seq)
    for row, tokens in zip(places, own, strict=True):
        row[: len(tokens)] = tokens
    there = np.flatnonzero(places < seq)
    return (
        lambda a: jnp.take(a, places, axis=0, mode="fill", fill_value=0),
        lambda a: a.reshape(-1, *a.shape[2:])[there],
    )


def _borders(begin: int, end: int, chunk: int, grid: int | None):
    """First token and the one behind the last of each chunk of a call."""
    first = begin
    while first < end:
        passed = first - begin if grid is None else first + grid
        last = min(first + chunk - passed % chunk, end)
        yield first, last
        first = last
