"""NumPy's own delta rule, a token or a chunk at a time, and operands for it.

In the operands' dtype, entry by entry and sum by sum.
"""

from typing import Any

import numpy as np

from lyapunov.arithmetic._delta import DeltaToken
from lyapunov.sublayers.delta_scan import Tokens, chunked_delta


COLUMNS = (2, 2, 3)  # heads, values, keys
BELOW = np.tril(np.ones((3, 3)), -1)
TOKEN = ((2, 3), (2, 2), (2,))
"""Key, value and rate of a delta rule."""
DELTA: dict[str, Any] = {
    "operands": (COLUMNS, (2,), *TOKEN),
    "domains": ("any", "share", "any", "any", "share"),
    "wide": True,
}
# queries, keys, values, rates, log gates, and the state in front of the chunk
CHUNK: dict[str, Any] = {
    "operands": ((3, 2, 3), (3, 2, 3), (3, 2, 2), (3, 2), (3, 2), COLUMNS),
    "domains": ("any", "any", "any", "share", "<=0", "any"),
    "wide": True,
}


def total(terms, axis):
    """A sum of one term after another."""
    return np.take(np.cumsum(terms, axis=axis, dtype=terms.dtype), -1, axis=axis)


def by_channel(case) -> dict[str, Any]:
    """The same with a gate for every key channel."""
    gates = {(2,): (2, 3), (3, 2): (3, 2, 3)}
    place = 1 if case is DELTA else 4
    operands = list(case["operands"])
    operands[place] = gates[operands[place]]
    return case | {"operands": tuple(operands)}


def unread(case) -> dict[str, Any]:
    """The same without queries, which no state depends on."""
    return {name: x if name == "wide" else x[1:] for name, x in case.items()}


def delta_step(at, state, decay, key, value, rate):
    token = DeltaToken(decay, key, value, rate)
    return at.columns(at.delta_step(at.columns(state), token))


def delta_stepped(state, decay, key, value, rate):
    kept = state * decay.reshape(2, 1, -1)
    missed = value - total(kept * key[:, None], -1)
    return kept + (rate[:, None] * missed)[..., None] * key[:, None]


def substituted(system, x):
    """(1 + system)^-1 x, row after row."""
    out = np.zeros_like(x)
    for i in range(x.shape[-2]):
        given = system[..., i, :i, None] * out[..., :i, :]
        out[..., i, :] = x[..., i, :] - given.sum(-2)
    return out


def delta_chunk(at, *given):
    """What is read, and the state at the end."""
    *tokens, state = given
    return chunked_delta(at, Tokens(*tokens), state, 3)


def delta_chunked(q, k, v, rate, gate, state):
    """In one chunk of all tokens: (read, state), heads first on the way."""
    q, k, v, rate, gate = (np.moveaxis(a, 1, 0) for a in (q, k, v, rate, gate))
    gate = gate.reshape(*gate.shape[:2], -1)
    elapsed = np.cumsum(gate, axis=1, dtype=gate.dtype)
    apart = np.exp(np.minimum(elapsed[:, :, None] - elapsed[:, None], 0))
    apart = np.where(np.tri(3)[None, :, :, None] > 0, apart, apart.dtype.type(0))
    pairs, alike = (total(x[:, :, None] * apart * k[:, None], -1) for x in (q, k))
    system = rate[..., None] * alike * BELOW.astype(q.dtype)
    u = substituted(system, rate[..., None] * v)
    w = substituted(system, rate[..., None] * k * np.exp(elapsed))
    written = u - total(w[:, :, None] * state[:, None], -1)
    before = total((q * np.exp(elapsed))[:, :, None] * state[:, None], -1)
    read = before + total(pairs[..., None] * written[:, None], 2)
    left = np.exp(np.minimum(elapsed[:, -1:] - elapsed, 0))
    added = written[..., None] * (left * k)[:, :, None]
    after = np.exp(elapsed[:, -1])[:, None] * state + total(added, 1)
    return np.moveaxis(read, 0, 1), after
