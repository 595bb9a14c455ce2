"""A state that is rounded stochastically: a variance and a tail that are theorems.

Within a layer, its inputs given, the state is carried as h_t = s_t + e_t, where
s_t = a_t h_{t-1} + b_t and e_t is the rounding error of the store. Given the past e_t
has mean zero, lies in an interval as long as the spacing at s_t, and so has a variance
of at most spacing^2 / 4. Errors enter the state linearly and the read-out
y_t = sum_n C_{t,n} s_{t,n} is made before the store, so that, up to the fp32 around it,

    y_t - (y_t without rounding) = sum_n C_{t,n} a_{t,n} sum_{j<t} (prod a) e_{j,n}

is a sum of martingale differences with weights that the inputs alone determine.

Variance: orthogonal increments give V_t = a_t^2 V_{t-1} + E[spacing_t^2] / 4. The
spacing belongs to the state that the execution came to; E[spacing^2] is at most that at
the largest magnitude that any execution can have, and at most 4 u^2 E[s^2] + smallest^2
with E[s^2] = h^2 + variance.

Tail: each increment lies in an interval of length |weight| spacing given the past, so
Hoeffding's lemma and Azuma's argument give P(|error| >= r) <= 2 exp(-r^2 / (2 W)),
W_t = a_t^2 W_{t-1} + spacing_t^2 / 4 (Hoeffding 1963; Azuma 1967; for rounding:
Connolly, Higham and Mary 2021, "Stochastic rounding and its probabilistic backward
error analysis"). The spacing is taken where the state can be while all states have kept
their own radius; stopped at the first that has not, the sums are martingales still, and
half of delta pays for that.

Nearest rounding has no mean zero: on a repeated token its errors all have one sign, and
none of this holds.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..arithmetic import SAFETY
from ..formats import (
    INTEGER_ROUNDINGS,
    SMALLEST_SCALE,
    StateNumbers,
    is_state_numbers,
    state_error_bound,
)


class ReadOutBound(NamedTuple):
    """How far a stochastic cache moves y = C h, the layer's inputs given."""

    variance: Float[Array, "seq d_inner"]
    """At least the variance of each element of y."""
    proxy: Float[Array, "seq d_inner"]
    """W: the tail of each element is at most that of a normal number so spread."""
    certain: Float[Array, "seq d_inner"]
    """No execution is further off, whatever it draws."""
    delta: float
    """Probability that some element leaves its `tail`; half of it is spent on W."""


def read_out_bound(
    dt: Float[Array, "seq d_inner"],
    u: Float[Array, "seq d_inner"],
    B: Float[Array, "seq d_state"],
    C: Float[Array, "seq d_state"],
    A: Float[Array, "d_state d_inner"],
    state: Float[Array, "d_state d_inner"],
    numbers: StateNumbers,
    *,
    delta: float = 1e-3,
    slack: float = 2.0**-18,
) -> ReadOutBound:
    """Variance, tail and certain bound of y = C h under a cache rounded stochastically.

    **Arguments:**

    - `dt`: after softplus. `A`: negative. `state`: before the first token, exact.
    - `numbers`: of the cache's format, as its `numbers()` gives them.
    - `delta`: of the tail.
    - `slack`: of one token in fp32, relative to |a h| + |b|. 2^-18 covers exponentials
      of dt A down to -32, where the decay is 1e-14. It widens `certain` and what the
      spacing is taken at; variance and tail are those of the draws alone.

    **Raises:** `ValueError` for a format that is rounded to nearest, or a delta that is
    no probability.
    """
    if not (is_state_numbers(numbers) and numbers.stochastic):
        raise ValueError("the state's format is not rounded stochastically")
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta is a probability between 0 and 1, not {delta}")
    quantile = 2.0 * math.log(4.0 * dt.shape[0] * state.size / delta)

    def token(carry, given):
        h, fp32, error, variance, proxy = carry
        dt, u, B, C = given
        a = jnp.exp(dt * A)
        b = (dt * u) * B[:, None]
        fp32 = a * fp32 + slack * (a * (jnp.abs(h) + error) + jnp.abs(b))
        h = a * h + b
        error, variance, proxy = a * error, a * a * variance, a * a * proxy
        out = (C * C) @ variance, (C * C) @ proxy, jnp.abs(C) @ (error + fp32)
        size = jnp.abs(h) + fp32
        certain = state_error_bound(size + error, numbers)
        near = jnp.minimum(error, jnp.sqrt(quantile * proxy))
        likely = state_error_bound(size + near, numbers)
        mean = jnp.minimum(certain**2, _mean_square(size**2 + variance, numbers))
        # a state that may overflow has no variance
        mean = jnp.where(jnp.isfinite(certain), mean, jnp.inf)
        after = error + certain, variance + mean / 4, proxy + likely**2 / 4
        if numbers.integer:
            # roundings of the scale are no draws
            fp32 = fp32 + INTEGER_ROUNDINGS * jnp.max(size + error, axis=0)
        return (h, fp32, *after), out

    zero = jnp.zeros_like(state)
    start = state, zero, zero, zero, zero
    _, parts = jax.lax.scan(token, start, (dt, u, B, C))
    return ReadOutBound(*(part * SAFETY for part in parts), delta=delta)


def _mean_square(square: Float[Array, "d_state channels"], numbers: StateNumbers):
    """At least E[spacing^2] of states whose squares have these means.

    The spacing is at most 2 u |s|, or the smallest times a scale; a scale is at most
    twice the channel's largest over the format's, and the largest square at most the
    sum of all. Integers have the smallest alone, under a scale that is no more than the
    largest over the format's but for its roundings.
    """
    fmt = numbers.format
    smallest = fmt.smallest**2
    if numbers.integer:
        scale = jnp.sum(square, axis=0) / fmt.largest**2
        scale = jnp.maximum(scale, SMALLEST_SCALE**2)
        return jnp.broadcast_to(scale * (1.0 + INTEGER_ROUNDINGS) ** 2, square.shape)
    if numbers.scaled:
        scale = 4.0 * jnp.sum(square, axis=0) / fmt.largest**2
        smallest = smallest * jnp.maximum(scale, SMALLEST_SCALE**2)
    return 4.0 * fmt.unit**2 * square + smallest


def projected(
    bound: ReadOutBound,
    gate: Float[Array, "seq d_inner"],
    out_proj: Float[Array, "d_model d_inner"],
) -> ReadOutBound:
    """The same for W (y gate): channels draw on their own, so variances add up.

    **Arguments:**

    - `gate`: silu(z), given. `out_proj`: W.
    """
    size, weight = jnp.abs(gate), out_proj.T
    return ReadOutBound(
        variance=(bound.variance * size**2) @ weight**2 * SAFETY,
        proxy=(bound.proxy * size**2) @ weight**2 * SAFETY,
        certain=(bound.certain * size) @ jnp.abs(weight) * SAFETY,
        delta=bound.delta,
    )


def tail(bound: ReadOutBound) -> Float[Array, "seq rows"]:
    """A radius that all elements keep with probability at least 1 - delta together.

    Azuma-Hoeffding at delta / (2 elements) for each, and never more than is certain.
    """
    quantile = 2.0 * math.log(4.0 * bound.proxy.size / bound.delta)
    return jnp.minimum(jnp.sqrt(quantile * bound.proxy) * SAFETY, bound.certain)
