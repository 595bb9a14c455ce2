"""Ways to compute Lyapunov exponents, as objects.

A method is given a system whose state is flat and returns the exponents with their
history. All of them accumulate logarithms: products of thousands of decays leave
the range of fp64, their logarithms do not.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


MOST_POINTS = 64
SMALL = 4
"""Columns up to which Gram-Schmidt, unrolled, is faster than LAPACK's QR."""

Growth = tuple[Float[Array, " k"], Float[Array, "points k"], Int[Array, " points"]]


class System(eqx.Module):
    """A driven system with a flat state, and the tokens that drive it."""

    step: Callable
    """(flat state, input) -> flat state."""
    state: Float[Array, " d"]
    inputs: Any
    """Stacked along the first axis; None for an autonomous system."""
    recurrence: Any
    """The recurrence whose step this is; None for a plain function."""
    n_tokens: int = eqx.field(static=True)


class AbstractMethod(eqx.Module):
    """How to compute the k largest exponents of a `System`."""

    @abc.abstractmethod
    def growth(self, system: System, k: int, key: PRNGKeyArray) -> Growth:
        """Exponents, their history, and the tokens after which the history stands."""

    @abc.abstractmethod
    def notes(self, system: System, k: int) -> tuple[str, ...]:
        """What a reader of the result must know, in words."""

    @abc.abstractmethod
    def count(self, system: System) -> int:
        """How many exponents come by default."""


class ClosedForm(AbstractMethod):
    r"""Means of the log decays: exact, for diagonal recurrences.

    $\lambda_i = \frac1T \sum_t \log a_{t,i}$, the product of diagonal Jacobians
    being diagonal. No trajectory is computed.
    """

    def growth(self, system, k, key):
        """Sums over windows of tokens, added up."""
        del key
        log_decay = jax.vmap(system.recurrence.log_decay)(system.inputs)
        log_decay = log_decay.reshape(system.n_tokens, -1)
        width = -(-system.n_tokens // MOST_POINTS)
        full = system.n_tokens // width
        sums = log_decay[: full * width].reshape(full, width, -1).sum(axis=1)
        if full * width < system.n_tokens:
            rest = log_decay[full * width :].sum(axis=0)
            sums = jnp.concatenate([sums, rest[None]])
        history = jnp.cumsum(sums, axis=0)
        tokens = jnp.minimum(jnp.arange(1, len(sums) + 1) * width, system.n_tokens)
        return _largest(history / tokens[:, None].astype(history.dtype), tokens, k)

    def notes(self, system, k):
        """None: exact."""
        return ()

    def count(self, system):
        """All."""
        return system.state.size


class QR(AbstractMethod):
    """Benettin's method: carry k orthonormal tangent vectors, orthonormalise again.

    With all k = d vectors the start is the identity, which is exact on a diagonal
    recurrence. With k < d it is random: columns of the identity would never turn
    towards the leading directions of a diagonal system and give the exponents of the
    first k coordinates. Turning takes a few tokens, a bias of order 1/T.

    A vector that a step sends to within rounding of the span of those before it has
    exponent -inf: the step is singular in fp64. (Not at the first step from a random
    start, where the vectors have not yet turned.)

    **Arguments:**

    - `block`: steps between orthonormalisations. More is faster, and loses the small
      exponents once vectors align to rounding within a block.

    ??? cite "Benettin et al. (1980), Meccanica 15, 9-20 and 21-30"
    """

    block: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        if self.block < 1:
            raise ValueError(f"block is {self.block}; give 1 or more")

    def growth(self, system, k, key):
        """A scan over blocks of steps, the last one shorter."""
        d = system.state.size
        dtype = system.state.dtype
        if k == d:
            frame = jnp.eye(d, dtype=dtype)
        else:
            frame, _ = jnp.linalg.qr(jax.random.normal(key, (d, k), dtype))
        block = min(self.block, system.n_tokens)
        blocks, rest = divmod(system.n_tokens, block)
        points = blocks + (rest > 0)
        width = -(-points // MOST_POINTS)
        history = jnp.zeros((-(-points // width), k), dtype)

        def push(carry, u):
            state, frame = carry
            state, tangent = jax.linearize(lambda x: system.step(x, u), state)
            return (state, jax.vmap(tangent, 1, 1)(frame)), None

        def advance(carry, numbered, length):
            state, frame, total, history = carry
            number, inputs = numbered
            if length == 1:
                first = jax.tree.map(lambda x: x[0], inputs)
                (state, frame), _ = push((state, frame), first)
            else:
                (state, frame), _ = jax.lax.scan(push, (state, frame), inputs, length)
            check = jnp.logical_or(number > 0, k == d)
            frame, log_growth = _orthonormalise(frame, check)
            total = total + log_growth
            return (state, frame, total, history.at[number // width].set(total)), None

        carry = (system.state, frame, jnp.zeros(k, dtype), history)
        head = jax.tree.map(
            lambda x: x[: blocks * block].reshape(blocks, block, *x.shape[1:]),
            system.inputs,
        )
        carry, _ = jax.lax.scan(
            lambda c, x: advance(c, x, block), carry, (jnp.arange(blocks), head)
        )
        if rest:
            tail = jax.tree.map(lambda x: x[blocks * block :], system.inputs)
            carry, _ = advance(carry, (jnp.asarray(blocks), tail), rest)
        ends = jnp.arange(1, len(history) + 1) * (width * block)
        tokens = jnp.minimum(ends, system.n_tokens)
        return _largest(carry[3] / tokens[:, None].astype(dtype), tokens, k)

    def notes(self, system, k):
        """The bias of a random start."""
        if k == system.state.size:
            return ()
        return (
            "random start: a bias of order 1/T until the vectors have turned towards "
            "the leading directions",
        )

    def count(self, system):
        """All."""
        return system.state.size


class TangentGrowth(AbstractMethod):
    r"""Growth of one tangent vector: $\frac1T \log(|P v| / |v|)$, P the product.

    An estimate of the largest exponent from below on a diagonal recurrence: with all
    entries of v alike, the default, it misses by at most $\ln(d) / (2T)$; where v has
    next to no component along the leading direction, by more.

    **Arguments:**

    - `v`: of the state's size, flat; not 0.
    """

    v: Float[Array, " d"] | None = None

    def growth(self, system, k, key):
        """One pass of Jacobian-vector products, normalised at every step."""
        del key
        if k != 1:
            raise ValueError(f"TangentGrowth gives 1 exponent, not {k}; use QR()")
        d = system.state.size
        dtype = system.state.dtype
        v = jnp.full(d, 1.0, dtype) if self.v is None else jnp.asarray(self.v, dtype)
        if v.shape != (d,):
            raise ValueError(f"v has shape {v.shape} and the state has {d} entries")
        width = -(-system.n_tokens // MOST_POINTS)
        history = jnp.zeros((-(-system.n_tokens // width), 1), dtype)

        def advance(carry, numbered):
            state, v, total, history = carry
            number, u = numbered
            state, v = jax.jvp(lambda x: system.step(x, u), (state,), (v,))
            v, size = _normalise(v)
            total = total + jnp.log(size)
            return (state, v, total, history.at[number // width, 0].set(total)), None

        carry = (system.state, _normalise(v)[0], jnp.zeros((), dtype), history)
        numbered = (jnp.arange(system.n_tokens), system.inputs)
        carry, _ = jax.lax.scan(advance, carry, numbered)
        ends = jnp.arange(1, len(history) + 1) * width
        tokens = jnp.minimum(ends, system.n_tokens)
        return _largest(carry[3] / tokens[:, None].astype(dtype), tokens, k)

    def notes(self, system, k):
        """What one vector can miss."""
        return ("growth of one vector: it may miss the largest exponent by O(1/T)",)

    def count(self, system):
        """One."""
        return 1


def _largest(history: Float[Array, "points d"], tokens, k: int) -> Growth:
    """The k largest at the end, in order, and their history."""
    order = jnp.argsort(history[-1], descending=True)[:k]
    return history[-1, order], history[:, order], tokens


def _normalise(v):
    """v / |v| and |v| without overflow or underflow on the way; 0 stays 0."""
    scale = jnp.max(jnp.abs(v))
    safe = jnp.where(scale > 0, scale, 1)
    v = v / safe
    size = jnp.linalg.norm(v)
    return v / jnp.where(size > 0, size, 1), size * scale


def _orthonormalise(frame, check):
    """An orthonormal frame of the same spans, and the logs of the growth.

    Where `check` holds, growth within rounding of 0 relative to the vector is 0.
    """
    d, k = frame.shape
    # each vector scaled by itself: the squares of tiny ones would vanish
    scale = jnp.max(jnp.abs(frame), axis=0)
    frame = frame / jnp.where(scale > 0, scale, 1)[None, :]
    if k <= SMALL:
        frame, growth, size = _gram_schmidt(frame)
    else:
        size = jnp.linalg.norm(frame, axis=0)
        frame, triangle = jnp.linalg.qr(frame)
        growth = jnp.abs(jnp.diagonal(triangle))
    singular = check & (growth <= 8 * d * jnp.finfo(frame.dtype).eps * size)
    return frame, jnp.log(jnp.where(singular, 0, growth)) + jnp.log(scale)


def _gram_schmidt(frame):
    """Twice, unrolled: as orthonormal as Householder for a handful of vectors."""
    done, growth, sizes = [], [], []
    for column in range(frame.shape[1]):
        v = frame[:, column]
        sizes.append(jnp.linalg.norm(v))
        size = sizes[-1]
        factor = jnp.ones_like(size)
        for _ in range(2):
            for q in done:
                v = v - jnp.dot(q, v) * q
            size = jnp.linalg.norm(v)
            v = v / jnp.where(size > 0, size, 1)
            factor = factor * size
        done.append(v)
        growth.append(factor)
    return jnp.stack(done, axis=1), jnp.stack(growth), jnp.stack(sizes)
