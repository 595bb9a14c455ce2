"""The middle of a Mamba-3 mixer: token by token, and chunk by chunk.

One function in exact arithmetic, two in rounded. Token by token is what mamba_ssm's
decode does (`mamba3_mimo_rotary_step.py`, `mamba3_step_fn.py` of mamba_ssm 2.3.2).
Chunk by chunk is its prefill (`angle_dt.py`, `mamba3_siso_fwd.py`, and for ranks above
1 `mamba3_mimo_fwd.py`): a token's key is weighed once, by its own gamma and by what the
next token takes of it, so that the state runs ahead by that share and the token itself
is read through C . B, which no angle changes.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from ..arithmetic import AbstractArithmetic
from ..recurrences.trapezoid import turn, update


class Token(NamedTuple):
    """What every token brings, stacked over the sequence."""

    dt: Any
    """(seq, heads), after softplus."""
    log_decay: Any
    """(seq, heads), dt A."""
    trapezoid: Any
    """(seq, heads), before the sigmoid that makes lambda of it."""
    angle: Any
    """(seq, angles), before the tanh."""
    B: Any
    """(seq, rank, heads, d_state), normalised and biased."""
    C: Any
    x: Any
    """(seq, heads, head_dim)."""


def by_rank(at: AbstractArithmetic, x, weights):
    """x for each rank: (seq, heads, head_dim) -> (seq, rank, heads, head_dim)."""
    x = at.view(lambda a: a[:, None], x)
    return x if weights is None else at.multiply(x, weights)


def token_scan(at: AbstractArithmetic, token: Token, p, start):
    """Token by token: (y, what is carried after them), y = H C + D x."""
    seq = token.x.shape[0]
    share = at.store("trapezoid", at.sigmoid(token.trapezoid))
    gamma = at.multiply(share, token.dt)
    before = at.multiply(at.add(at.negate(share), 1.0), token.dt)

    # tanh(a) = 2 sigmoid(2 a) - 1, as the decode kernel makes it
    tanh = at.sigmoid(at.multiply(token.angle, 2.0))
    tanh = at.add(at.multiply(tanh, 2.0), -1.0)
    angle = at.cumsum(_steps(at, tanh, token.dt), serial=True)
    angle = at.add(angle, start.angle)
    k, q = _turned(at, token, p, angle)

    x = token.x
    all_k = at.join([at.view(lambda a: a[None], at.carry(start.keys)), k])
    all_x = at.join([at.view(lambda a: a[None], at.carry(start.values)), x])
    all_v = by_rank(at, all_x, p.mimo_x)
    v = all_v[1:]

    def one(at, state, inputs):
        log_decay, before, last_k, last_v, gamma, k, v, q = inputs
        after = update(at, state, log_decay, (before, last_k, last_v), (gamma, k, v))
        at.observe("state", after)
        flat = at.view(lambda a: a.reshape(-1, a.shape[-1]).T, after)
        kept = at.view(lambda a: a.T.reshape(after.shape), at.store("state", flat))
        return at.carry(kept), at.einsum("rhn,hpn->rhp", q, after)

    state, y = at.scan(
        one,
        at.carry(start.state),
        (token.log_decay, before, all_k[:seq], all_v[:seq], gamma, k, v, q),
    )
    y = at.add(y, at.multiply(v, p.D[:, None]))
    return y, type(start)(angle=angle[-1], state=state, keys=k[-1], values=x[-1])


def chunked_scan(at: AbstractArithmetic, token: Token, p, start):
    """Chunk by chunk: (y, what is carried after them)."""
    seq, padding = token.x.shape[0], -token.x.shape[0] % p.chunk
    cut = _cut(p.chunk, padding)
    mimo = p.mimo_x is not None

    dt = at.store("dt_cast", token.dt)
    share = at.sigmoid(token.trapezoid)
    if mimo:
        other = at.sigmoid(at.negate(token.trapezoid))
    else:
        other = at.add(at.negate(share), 1.0)
    gamma, before = at.multiply(share, dt), at.multiply(other, dt)
    # no token takes a share of the last one
    ahead = at.view(lambda a: jnp.concatenate([a[1:], jnp.zeros_like(a[:1])]), before)
    weight = at.add(at.store("gamma_ahead", ahead), gamma)
    weight = at.store("key_weight", weight)

    last, angle = at.scan(
        _angles_of_chunk,
        at.carry(start.angle),
        at.view(cut, _steps(at, at.tanh(token.angle), token.dt)),
    )
    angle = at.view(lambda a: a.reshape(-1, *a.shape[2:])[:seq], angle)
    angle = at.store("angle_sum", angle, angle=True)
    k, q = _turned(at, token, p, angle)
    to_key = lambda a: a[:, None, :, None]
    weighed = at.store("k_weighed", at.multiply(k, at.view(to_key, weight)))
    v = at.store("v_ranked", by_rank(at, token.x, p.mimo_x))

    taken = at.view(lambda a: a[0, :, None], before)
    first = at.multiply(by_rank(at, at.carry(start.values)[None], p.mimo_x)[0], taken)
    state = at.einsum("rhp,rhn->hpn", first, start.keys)
    state, y = at.scan(
        lambda at, state, inputs: _one_chunk(at, state, inputs, mimo),
        at.add(start.state, state),
        tuple(at.view(cut, part) for part in (token.log_decay, weighed, q, v)),
    )
    y = at.view(lambda a: a.reshape(-1, *a.shape[2:])[:seq], y)
    own = (_of_the_token_by_rank if mimo else _of_the_token)(at, token, p, gamma, v)
    after = type(start)(angle=last, state=state, keys=k[-1], values=token.x[-1])
    return at.add(y, own), after


def _steps(at, tanh, dt):
    """By how much angles grow: (seq, heads, angles)."""
    tanh = at.view(lambda a: a[:, None], at.multiply(tanh, at.fixed(math.pi)))
    return at.multiply(tanh, at.view(lambda a: a[..., None], dt))


def _turned(at, token: Token, p, angle):
    """Keys and queries, turned."""
    cos, sin = (at.view(lambda a: a[:, None], one) for one in at.turns(angle, 0))
    pairwise = p.mimo_x is None
    k = at.store("k_turned", turn(at, token.B, cos, sin, pairwise=pairwise))
    q = at.store("q_turned", turn(at, token.C, cos, sin, pairwise=pairwise))
    return k, q


def _angles_of_chunk(at, angle, steps):
    """(angle after the chunk, angles in it), each less whole turns."""
    sums = at.cumsum(steps)
    return at.wrap(at.add(sums[-1], angle)), at.wrap(at.add(sums, angle))


def _of_the_token(at, token: Token, p, gamma, v):
    """(gamma C . B + D) v, rank 1: C and B before they turn, summed by a dot with 1."""
    products = at.store("CB_product", at.multiply(token.C, token.B))
    products = at.may_store("CB_operand", products)
    ones = jnp.ones(products.shape[-1:])
    pairs = at.store("CB", at.einsum("lrhn,n->lrh", products, ones))
    pairs = at.multiply(pairs, at.view(lambda a: a[:, None], gamma))
    return at.multiply(v, at.view(lambda a: a[..., None], at.add(pairs, p.D)))


def _of_the_token_by_rank(at, token: Token, p, gamma, v):
    """gamma (C . B) v + D v, rank by rank in registers of the model's format."""
    pairs = at.store("CB", at.einsum("lrhn,lshn->lrsh", token.C, token.B))
    total = None
    for s in range(v.shape[1]):
        pair = at.view(lambda a, s=s: a[:, :, s, :, None], pairs)
        own = at.view(lambda a, s=s: a[:, s][:, None], v)
        term = at.may_store("CBv", at.multiply(pair, own))
        total = term if total is None else at.add(total, term)
        total = at.may_store("CBv_sum", total)
    total = at.multiply(total, at.view(lambda a: a[:, None, :, None], gamma))
    total = at.store("CBv_weighed", total)
    return at.store("of_the_token", at.add(total, at.multiply(v, p.D[:, None])))


def _one_chunk(at, state, inputs, mimo: bool):
    """One chunk: (state after it, H C without the token's own share).

    log_decay (tokens, heads), k and q (tokens, rank, heads, d_state), v (tokens, rank,
    heads, head_dim), state (heads, head_dim, d_state).
    """
    log_decay, k, q, v = inputs
    tokens = log_decay.shape[0]
    elapsed = at.cumsum(log_decay)
    to_rank = lambda a: a[:, None, :, None]

    handed = at.store("chunk_state", state)
    before = at.einsum("lrhn,hpn->lrhp", q, handed)
    before = at.multiply(before, at.view(to_rank, at.fading(elapsed)))

    apart = at.add(
        at.view(lambda a: a[:, None], elapsed),
        at.negate(at.view(lambda a: a[None], elapsed)),
    )
    earlier = jnp.tril(jnp.ones((tokens, tokens)), -1)[:, :, None]
    apart = at.fading(at.mask(apart, earlier))
    pairs = at.einsum("lrhn,mshn->lmrsh", q, k)
    pairs = at.multiply(pairs, at.view(lambda a: a[:, :, None, None], apart))
    pairs = at.store("CB_decayed", at.mask(pairs, earlier[:, :, None, None]))
    y = at.einsum("lmrsh,mshp->lrhp", pairs, v, before)

    # a difference of two sums that may end above 0
    left = at.exp(at.add(elapsed[-1:], at.negate(elapsed)))
    left = at.view(to_rank, left)
    if mimo:
        k = at.store("k_decayed", at.multiply(k, left))
    else:
        v = at.store("v_decayed", at.multiply(v, left))
    kept = at.multiply(
        state, at.view(lambda a: a[:, None, None], at.fading(elapsed[-1]))
    )
    return at.einsum("mshp,mshn->hpn", v, k, kept), y


def _cut(chunk: int, padding: int):
    def cut(a):
        filled = jnp.pad(a, ((0, padding), *((0, 0),) * (a.ndim - 1)))
        return filled.reshape(-1, chunk, *a.shape[1:])

    return cut
