"""Stochastic rounding of a cached state: unbiased, and its variance and tail hold."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import Rounded
from lyapunov.bounds.stochastic import projected, read_out_bound, tail
from lyapunov.formats import FP64, state_format_named
from lyapunov.recurrences.mamba1 import selective_scan


SEEDS = 2000
SEQ, STATES, CHANNELS = 24, 3, 4
CACHES = [
    "bf16-stochastic",
    "fp8_e4m3-scaled-stochastic",
    "fp8_e5m2-stochastic",
    "int8-scaled-stochastic",
]


def layer(rng, *, repeated=False):
    """Inputs of a recurrence whose memory is longer than the sequence."""
    tokens = 1 if repeated else SEQ
    dt = rng.uniform(0.01, 0.3, (tokens, CHANNELS))
    u = rng.normal(size=(tokens, CHANNELS))
    B, C = rng.normal(size=(2, tokens, STATES))
    if repeated:
        dt, u, B, C = (np.repeat(x, SEQ, axis=0) for x in (dt, u, B, C))
    A = -rng.uniform(0.1, 3.0, (STATES, CHANNELS))
    state = rng.normal(size=(STATES, CHANNELS))
    return tuple(jnp.asarray(x) for x in (dt, u, B, C, A, state))


def runs(inputs, fmt, seeds=SEEDS, key=0):
    """y of many executions, (seeds, seq, channels), fp64 between the stores."""
    dt, u, B, C, A, state = inputs

    def one(key):
        wide = FP64.numbers()
        at = Rounded({"state": fmt.numbers()}, wide, key=key)
        return selective_scan(at, dt, u, B, C, A, jnp.zeros(CHANNELS), state)[0]

    keys = jax.random.split(jax.random.key(key), seeds)
    return np.asarray(jax.jit(jax.vmap(one))(keys))


def exactly(inputs):
    """y without rounding, written out in NumPy."""
    dt, u, B, C, A, h = (np.asarray(x) for x in inputs)
    out = []
    for t in range(len(dt)):
        h = np.exp(dt[t] * A) * h + (dt[t] * u[t]) * B[t][:, None]
        out.append(C[t] @ h)
    return np.stack(out)


def numbers_of(fmt) -> Any:
    return fmt.numbers()


@pytest.mark.parametrize("cache", CACHES)
def test_the_mean_is_the_state_without_rounding(rng, cache):
    """Assert |mean error| <= 6 of its standard errors at each of seq x d_inner."""
    inputs, fmt = layer(rng), state_format_named(cache)
    bound = read_out_bound(*inputs, numbers=numbers_of(fmt))
    mean = runs(inputs, fmt).mean(axis=0) - exactly(inputs)
    # 96 normal means beyond 6 sigma: 2e-7; fp32 between the stores besides
    allowed = 6 * np.sqrt(np.asarray(bound.variance) / SEEDS) + 2.0**-18
    assert (np.abs(mean) <= allowed).all()


@pytest.mark.parametrize("cache", CACHES)
def test_variance_is_bounded_and_not_by_far(rng, cache):
    """Assert measured <= bound at each element, and within 8 times in the mean.

    A uniform fraction f gives f (1 - f) = 1/6 of spacing^2 instead of 1/4, and the
    spacing is taken at the largest magnitude, up to twice too wide: 1.5 to 6.
    """
    inputs, fmt = layer(rng), state_format_named(cache)
    bound = np.asarray(read_out_bound(*inputs, numbers=numbers_of(fmt)).variance)
    measured = runs(inputs, fmt).var(axis=0)
    assert measured[0].max() <= 2.0**-40  # nothing was stored before the first
    # a sample variance of 2000 is within 1 + 6 sqrt(2 / 2000)
    assert (measured[1:] <= bound[1:] * 1.2).all()
    ratio = bound[1:].mean() / measured[1:].mean()
    assert 1.0 < ratio < 8.0, ratio


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("delta", [0.5, 0.01])
def test_the_tail_covers_at_least_as_often_as_it_says(rng, cache, delta):
    """Assert coverage of all elements together; and that a quarter of it would fail."""
    inputs, fmt = layer(rng), state_format_named(cache)
    bound = read_out_bound(*inputs, numbers=numbers_of(fmt), delta=delta)
    radius = np.asarray(tail(bound)) + 2.0**-18
    off = np.abs(runs(inputs, fmt, key=1) - exactly(inputs))
    assert (off <= np.asarray(bound.certain) + 2.0**-18).all()
    missed = (off > radius).any(axis=(1, 2)).mean()
    assert missed <= delta
    assert (off > radius / 4).any(axis=(1, 2)).mean() > delta


def test_the_output_projection_adds_variances(rng):
    """Assert the same for W (y gate): bounded, and less than elementwise sums."""
    inputs, fmt = layer(rng), state_format_named("bf16-stochastic")
    gate = rng.normal(size=(SEQ, CHANNELS))
    W = rng.normal(size=(5, CHANNELS))
    bound = read_out_bound(*inputs, numbers=numbers_of(fmt), delta=0.05)
    bound = projected(bound, gate, W)
    off = (runs(inputs, fmt) - exactly(inputs)) * gate @ W.T
    assert (off[:, 1:].var(axis=0) <= np.asarray(bound.variance)[1:] * 1.2).all()
    assert (np.abs(off) <= np.asarray(bound.certain) + 2.0**-16).all()
    missed = (np.abs(off) > np.asarray(tail(bound)) + 2.0**-16).any(axis=(1, 2))
    assert missed.mean() <= 0.05
    assert (np.asarray(tail(bound)) < np.asarray(bound.certain))[1:].any()


def test_nearest_rounding_breaks_it_on_a_repeated_token():
    """Assert the bias: dt u B below half a unit never moves a state held to nearest.

    h rises from 1 by 1.5 / 512 a token without rounding. To nearest in bf16 it stays
    at 1, beyond what the theorem for the same format allows; stochastically it rises.
    """
    seq, step = 512, 1.5 * 2.0**-9
    one = jnp.ones((seq, 1))
    inputs = (one, one * step, one, one, jnp.full((1, 1), -1e-12), jnp.ones((1, 1)))
    stochastic = state_format_named("bf16-stochastic")
    bound = read_out_bound(*inputs, numbers=numbers_of(stochastic), delta=1e-3)
    radius = np.asarray(tail(bound))[-1]
    exact = 1.0 + seq * step

    def last(cache, key):
        at = Rounded({"state": numbers_of(state_format_named(cache))}, key=key)
        dt, u, B, C, A, state = inputs
        return selective_scan(at, dt, u, B, C, A, jnp.zeros(1), state)[0][-1, 0]

    nearest = float(last("bf16", None))
    drawn = np.asarray(
        jax.vmap(lambda k: last("bf16-stochastic", k))(
            jax.random.split(jax.random.key(3), 200)
        )
    )
    assert nearest == 1.0 + step
    assert abs(nearest - exact) > radius
    assert (np.abs(drawn - exact) <= radius).all()
    assert abs(drawn.mean() - exact) < 6 * drawn.std() / np.sqrt(200) + 2.0**-10


def test_what_it_does_not_hold_for_is_refused(rng):
    """Assert that nearest rounding and a delta of 0 are errors, not numbers."""
    inputs = layer(rng)
    for cache in ("bf16", "fp8_e4m3-scaled"):
        with pytest.raises(ValueError, match="not rounded stochastically"):
            read_out_bound(*inputs, numbers=numbers_of(state_format_named(cache)))
    numbers = numbers_of(state_format_named(CACHES[0]))
    for delta in (0.0, 1.0):
        with pytest.raises(ValueError, match="probability"):
            read_out_bound(*inputs, numbers=numbers, delta=delta)


def test_overflow_has_no_finite_certain_bound(rng):
    """Assert inf where an e4m3 state without a scale may pass 448."""
    dt, u, B, C, A, state = layer(rng)
    fmt = state_format_named("fp8_e4m3-stochastic")
    bound = read_out_bound(dt, u, B, C, A, state * 1e4, numbers_of(fmt))
    assert not np.isfinite(np.asarray(bound.certain)[-1]).any()
    assert not np.isfinite(np.asarray(bound.variance)[-1]).any()
