"""Exponents of a delta-rule sublayer on given tokens, head by head."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._errors import ArgumentError
from ..arithmetic._fp64 import in_fp64
from ..recurrences.base import AbstractKeyRecurrence
from ..recurrences.delta import DeltaInputs, DeltaRecurrence
from ..results._check import HeadExponents, LayerExponents
from ._decays import MOST_WINDOWS, Decays
from ._layer import FORMATS_COUNTED, memories, row_of
from ._on_keys import OnKeys, along_keys
from ._windows import in_blocks, windows_of


class Growth(NamedTuple):
    """How the keys' directions of each head grow along one text."""

    leading: Float[Array, "tokens heads"]
    """At every token, of the direction that grows most over the whole text."""
    total: Float[Array, "heads key_dim"]
    """Over the text: logs of the singular values of the product, the largest first, as
    far as fp64 tells them apart; of the others, of the frame behind them."""
    resolved: Bool[Array, "heads key_dim"]
    """Where it is known; of a head's others only the sum is."""
    volume: Float[Array, "tokens heads"]
    """Logs of determinants."""
    bound: Float[Array, "tokens heads"]
    """Logs of bounds of norms."""


@eqx.filter_jit
def growth_of(
    recurrence: AbstractKeyRecurrence, inputs, heads: int, key_dim: int
) -> Growth:
    """Measure growth from the directions that the product itself singles out.

    Frames that start at the identity need time to turn: a bias of order 1/T, as large
    as an exponent of 1/T. So the product is formed first, scaled, and frames start at
    its right singular vectors.
    """
    n_tokens = len(jax.tree.leaves(inputs)[0])
    block = OnKeys().block
    eye = jnp.broadcast_to(jnp.eye(key_dim), (heads, key_dim, key_dim))

    def multiply(product, inputs, length):
        push = lambda vectors, u: (recurrence.on_keys(vectors, u)[0], None)
        product = jax.lax.scan(push, product, inputs, length)[0]
        scale = jnp.max(jnp.abs(product), axis=(1, 2), keepdims=True)
        return product / jnp.where(scale > 0, scale, 1), jnp.zeros(1)

    product, _ = in_blocks(multiply, eye, inputs, n_tokens, block, n_tokens)
    # the rows of a product are those of its transpose
    frames = jnp.linalg.svd(product)[0].swapaxes(1, 2)

    def lead(v, u):
        pushed, log_scale = recurrence.on_keys(v, u)
        size = jnp.linalg.norm(pushed, axis=2, keepdims=True)
        v = jnp.where(size > 0, pushed / jnp.where(size > 0, size, 1), v)
        return v, log_scale + jnp.log(size[:, 0, 0])

    one = along_keys(recurrence)
    width = -(-n_tokens // block) * block
    start = frames, jnp.ones((heads, key_dim), bool)
    carry, total = in_blocks(one, start, inputs, n_tokens, block, width)
    return Growth(
        jax.lax.scan(lead, frames[:, :1], inputs)[1],
        total.sum(axis=0).reshape(heads, key_dim),
        carry[1],
        jax.vmap(recurrence.log_determinant)(inputs),
        jax.vmap(recurrence.log_norm_bound)(inputs),
    )


@in_fp64
def head_exponents(
    layer: int,
    kind: str,
    log_gate: Float[np.ndarray, "batch seq heads *key_dim"],
    rate: Float[np.ndarray, "batch seq heads"],
    key: Float[np.ndarray, "batch seq key_heads key_dim"],
    *,
    formats: Sequence[str] = FORMATS_COUNTED,
    multiplicity: int = 1,
) -> LayerExponents:
    r"""Find the Lyapunov exponents of a delta rule on the keys of its heads.

    The largest of a head is $\frac1T \log ||M_T \cdots M_1||$, of each sequence and
    averaged over them: what the direction that grows most over the text grows by, in
    no basis. It lies between $\frac1{T d} \sum_t \log |\det M_t|$ and
    $\frac1T \sum_t \log ||M_t||$, for every text and length.

    **Arguments:**

    - `layer`, `kind`: which sublayer, as in the report.
    - `log_gate`, `rate`, `key`: as in `recurrences.DeltaInputs`; key heads may be
      fewer, each shared by neighbouring heads.
    - `formats`: for which to count gates that round to 1 or to 0.
    - `multiplicity`: rows of the state, which share the exponents.

    **Returns:** the fields of `LayerExponents` as `layer_exponents` has them, over
    heads and directions; decays are the gates. `heads` has each head's largest
    exponent, its bracket and the sum.

    **Raises:** `ArgumentError` for other shapes, gates above 1, or none.
    """
    gates = Decays.of_logs(log_gate)
    _check_shapes(log_gate, rate, key)
    batch, seq, heads = rate.shape
    key_dim = key.shape[-1]
    key = np.repeat(key, heads // key.shape[2], axis=2)
    inputs = _by_token(log_gate, rate, key)
    found = growth_of(DeltaRecurrence(), inputs, batch * heads, key_dim)
    found = jax.tree.map(np.asarray, found)

    # (batch, heads, ...) again, and means over sequences
    apart = lambda x: x[:seq].reshape(seq, batch, heads)
    volume = apart(found.volume).mean(axis=(0, 1))
    upper = apart(found.bound).mean(axis=(0, 1))
    lower = volume / key_dim
    resolved = found.resolved.reshape(batch, heads, key_dim).all(axis=0)
    each = found.total.reshape(batch, heads, key_dim).mean(axis=0) / seq
    each = _means_of_hidden(each, resolved)
    # they are at most that, the largest is at least this; within rounding of it, a
    # token's being a product of key_dim terms, an exponent is its bound
    near = 64 * key_dim * np.finfo(np.float64).eps
    each = np.where(each >= upper[:, None] - near, upper[:, None], each)
    each[:, 0] = np.maximum(each[:, 0], lower)

    leading = apart(found.leading)
    width = -(-seq // MOST_WINDOWS)
    ends = np.minimum(np.arange(width, seq + width, width), seq)
    rates = np.asarray(windows_of(jnp.asarray(leading.mean(axis=1)), width))
    rates = rates / np.diff(ends, prepend=0)[:, None]
    row = row_of(
        layer,
        kind,
        each,
        leading[:, :, int(np.argmax(each[:, 0]))].T,
        {"token": ends.tolist(), "max": rates.max(axis=1).tolist()},
        gates,
        formats=formats,
        multiplicity=multiplicity,
    )
    left = np.abs(1 - rate * (key**2).sum(axis=-1))
    return dataclasses.replace(
        row,
        heads=HeadExponents(
            key_dim=key_dim,
            max=each[:, 0].tolist(),
            lower=lower.tolist(),
            upper=upper.tolist(),
            sum=volume.tolist(),
            memory_tokens=memories(each[:, 0]).tolist(),
            unresolved=(~resolved).sum(axis=1).tolist(),
            unwritten=(each == upper[:, None]).sum(axis=1).tolist(),
            rate_max=float(rate.max()),
            least_left=float(left.min()),
        ),
    )


def _means_of_hidden(each, resolved):
    """Exponents, of each head those that are not resolved being their common mean."""
    hidden = ~resolved & np.isfinite(each)
    count = hidden.sum(axis=1, keepdims=True)
    sums = np.where(hidden, each, 0).sum(axis=1, keepdims=True)
    return np.where(hidden, sums / np.maximum(count, 1), each)


def _check_shapes(log_gate, rate, key) -> None:
    """Refuse shapes that do not belong together."""
    fit = (
        key.ndim == 4
        and key.shape[2] > 0
        and log_gate.shape[2] % key.shape[2] == 0
        and log_gate.shape in (rate.shape, (*rate.shape, key.shape[3]))
    )
    if not fit:
        shapes = log_gate.shape, rate.shape, key.shape
        raise ArgumentError(
            "log_gate has shape {}, rate {} and key {}".format(*shapes),
            hint="give rates as (batch, seq, heads), gates as that or with key_dim "
            "behind it, keys as (batch, seq, key_heads, key_dim)",
        )


def _by_token(log_gate, rate, key) -> DeltaInputs:
    """Token by token, the heads of all sequences side by side, filled up to whole
    blocks with gates of 1 and rates of 0, which change nothing."""
    batch, seq, heads = rate.shape
    length = -(-seq // OnKeys().block) * OnKeys().block

    def stacked(x: np.ndarray) -> Array:
        rows = np.moveaxis(x, 0, 1).reshape(seq, batch * heads, *x.shape[3:])
        rest = np.zeros((length - seq, *rows.shape[1:]))
        return jnp.asarray(np.concatenate([rows, rest]))

    return DeltaInputs(
        log_gate=stacked(log_gate),
        rate=stacked(rate),
        key=stacked(key),
        value=jnp.zeros((length, batch * heads, 0)),
    )
