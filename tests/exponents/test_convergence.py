"""Stopping, transients, and the arithmetic of error bars."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lyapunov.exponents import (
    QR,
    BatchMeans,
    ByBlocks,
    ClosedForm,
    Converged,
    ParallelInTime,
    TangentGrowth,
    lyapunov_spectrum,
    lyapunov_spectrum_of,
)

from ..helpers import not_none
from .test_structure import two_layers
from .tolerance import tolerance


def decays(tokens=8192, d=3, seed=0):
    """Independent decays, of scatter 0.6 in their logarithms."""
    rng = np.random.default_rng(seed)
    return np.exp(-np.arange(1, d + 1) + 0.6 * rng.normal(size=(tokens, d)))


def dense(jacobians):
    """The diagonal as matrices."""
    return jnp.asarray(jacobians)[:, :, None] * jnp.eye(jacobians.shape[1])


METHODS = [(ClosedForm(), 0), (QR(block=8), 1), (ParallelInTime(), 1)]


@pytest.mark.parametrize(("method", "matrices"), METHODS)
def test_a_run_stops_when_its_bars_are_small_enough(method, matrices):
    """Assert that it stops early, that every bar is small, and that the result is that
    of so many tokens."""
    given = decays(seed=1)
    given = dense(given) if matrices else given
    rule = Converged(stderr=0.02, every=256)
    found = lyapunov_spectrum_of(given, method=method, until=rule)
    # 0.6 / sqrt(T) = 0.02 at T = 900, as windows alone say; the cosines' variance has a
    # mean of 1.45 and scatters by half of that, and the last of three columns decides
    assert found.n_tokens % 256 == 0
    assert 768 <= found.n_tokens <= 4096
    assert bool(found.converged)
    assert (np.asarray(found.stderr) <= 0.02).all()
    alone = lyapunov_spectrum_of(given[: found.n_tokens], method=method)
    atol = tolerance(3 * int(found.n_tokens), 4)
    np.testing.assert_allclose(found.exponents, alone.exponents, rtol=0, atol=atol)
    assert int(found.history_tokens[-1]) == found.n_tokens
    np.testing.assert_array_equal(np.unique(found.history_tokens), found.history_tokens)
    # one sum in two orders
    last = found.history[-1]
    np.testing.assert_allclose(last, found.exponents, rtol=tolerance(3000))


def test_a_run_that_does_not_converge_uses_all_and_says_so():
    """Assert converged False, and None without a rule."""
    rule = Converged(stderr=1e-6, every=500)
    found = lyapunov_spectrum_of(decays(1700), until=rule)
    assert found.n_tokens == 1500  # a last part of 200 is not run
    assert not bool(found.converged)
    assert json.loads(json.dumps(found.to_dict()))["converged"] is False
    assert lyapunov_spectrum_of(decays(100)).converged is None


def test_an_autonomous_map_stops_too():
    """Assert it on Henon, with the known exponent in reach and areas to log 0.3."""

    def henon(x, _):
        return jnp.array([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])

    found = lyapunov_spectrum(
        henon,
        jnp.array([0.1, 0.1]),
        200_000,
        transient=100,
        until=Converged(stderr=4e-3),
    )
    assert bool(found.converged)
    assert found.n_tokens < 100_000
    assert float(found.exponents.sum()) == pytest.approx(np.log(0.3), abs=1e-12)
    assert float(found.exponents[0]) == pytest.approx(0.4192, abs=4 * 4e-3)


def test_chunks_are_compiled_once():
    """Assert that 4 chunks and 40 trace the step as often."""
    counts = []
    for chunks in (4, 40):
        traced = []

        def step(x, a, traced=traced):
            traced.append(1)
            return a * x

        lyapunov_spectrum(
            step,
            jnp.ones(2),
            jnp.asarray(decays(64 * chunks, 2)),
            until=Converged(stderr=1e-9, every=64),
        )
        counts.append(len(traced))
    assert counts[0] == counts[1] <= 4


def test_a_stop_under_jit_and_vmap_is_each_sequences_own():
    """Assert tokens used and exponents of each as alone."""
    scatter = np.array([0.2, 1.0])[:, None, None]
    log_decay = -1 + scatter * np.random.default_rng(1).normal(size=(2, 4096, 1))
    rule = Converged(stderr=0.02, every=256)

    def run(given):
        return lyapunov_spectrum_of(given, until=rule)

    both = jax.jit(jax.vmap(run))(jnp.exp(jnp.asarray(log_decay)))
    assert int(both.used[0]) < int(both.used[1])
    for number, one in enumerate(log_decay):
        alone = run(np.exp(one))
        assert int(both.used[number]) == alone.n_tokens
        np.testing.assert_allclose(
            both.exponents[number], alone.exponents, rtol=0, atol=tolerance(5000, 2)
        )
    assert "nats per token" in repr(both)


@pytest.mark.parametrize("method", [QR(), ParallelInTime(), TangentGrowth()])
def test_a_transient_is_run_and_not_counted(method):
    """Assert the exponents of the tokens behind it, from where it led."""

    def step(x, u):
        return jnp.array([1.9 * jnp.sin(x[0] + u) + 0.3 * x[1], 0.5 * x[0]])

    inputs = jnp.asarray(np.random.default_rng(2).normal(size=300))
    start = jnp.array([0.3, -0.2])
    found = lyapunov_spectrum(step, start, inputs, method=method, transient=100)
    assert found.n_tokens == 200
    # by what all of them and the first alone grow
    whole = lyapunov_spectrum(step, start, inputs, method=method).growth.sum(axis=0)
    first = lyapunov_spectrum(step, start, inputs[:100], method=method)
    wanted = (whole - first.growth.sum(axis=0)) / 200
    np.testing.assert_allclose(
        found.exponents, wanted, rtol=0, atol=tolerance(10_000, 10)
    )


def test_a_transient_takes_away_the_bias_of_a_random_start():
    """Assert k = 1 of 3 without the O(1/T) that it has otherwise."""
    jacobians = np.tile(np.diag([0.2, 0.5, 0.9]), (200, 1, 1))
    with_it = lyapunov_spectrum_of(jacobians, k=1)
    without = lyapunov_spectrum_of(jacobians, k=1, transient=100)
    assert abs(float(with_it.exponents[0]) - np.log(0.9)) > 1e-4
    # the gap between the two leading ones over 100 tokens: (5/9)^100 = 3e-26
    assert float(without.exponents[0]) == pytest.approx(np.log(0.9), abs=tolerance(300))


def test_blocks_go_through_transients_and_chunks():
    """Assert ByBlocks in parts against the whole at once."""
    recurrence, state, inputs = two_layers(tokens=640)
    rule = Converged(stderr=1e-9, every=64)
    parts = lyapunov_spectrum(recurrence, state, inputs, until=rule)
    whole = lyapunov_spectrum(recurrence, state, inputs, method=ByBlocks())
    np.testing.assert_allclose(
        parts.exponents, whole.exponents, rtol=0, atol=1e3 * tolerance(640)
    )


def batch_means_apart(series, count):
    """Stderr of the mean from `count` batch means, in NumPy."""
    size = len(series) // count
    means = series[: size * count].reshape(count, size).mean(axis=1)
    return means.std(ddof=1) * np.sqrt(size / len(series))


@pytest.mark.parametrize("count", [2, 10, 32])
def test_stderr_and_interval_are_those_of_batch_means(count):
    """Assert both against NumPy and scipy's t, for a number of batches given."""
    given = decays(1000, 2)
    bars = lyapunov_spectrum_of(given).error_bars(BatchMeans(count, needed=0))
    series = np.log(given)[:, np.argsort(-np.log(given).mean(axis=0))]
    wanted = [batch_means_apart(column, count) for column in series.T]
    np.testing.assert_allclose(bars.stderr, wanted, rtol=1e-10)
    t = stats.t.ppf(0.995, count - 1)
    np.testing.assert_allclose(bars.half_width(0.99), t * np.array(wanted), rtol=1e-10)
    result = lyapunov_spectrum_of(given)
    ends = result.interval(0.99, BatchMeans(count, needed=0))
    np.testing.assert_allclose(ends.mean(axis=-1), result.exponents, rtol=1e-10)


def test_batches_are_longer_where_growth_is_correlated():
    """Assert 32 batches for independent growth, fewer at rho = 0.8, none for a ramp."""
    rng = np.random.default_rng(3)
    noise = rng.normal(size=8192)
    slow = np.zeros(8192)
    for t in range(1, 8192):
        slow[t] = 0.8 * slow[t - 1] + noise[t]
    ramp = np.linspace(-1, 1, 8192)
    result = lyapunov_spectrum_of(np.exp(0.1 * np.stack([noise, slow, ramp], 1) - 1))
    bars = result.error_bars(BatchMeans())
    ordered = np.argsort(-np.stack([noise, slow, ramp], 1).mean(axis=0))
    batches = dict(zip(ordered.tolist(), bars.batches.tolist(), strict=True))
    assert batches[0] == 32
    assert batches[1] in (16, 32)
    assert batches[2] == 0
    tau = dict(zip(ordered.tolist(), bars.correlation_tokens.tolist(), strict=True))
    assert 8 <= tau[0] < 12  # at least one window, of 8 tokens
    assert 6 < tau[1] < 20  # (1 + 0.8) / (1 - 0.8) = 9
    reason = not_none(bars.reasons()[int(np.flatnonzero(ordered == 2)[0])])
    assert "8192 tokens are too few" in reason


def test_no_bar_for_minus_infinity_and_none_needed_for_constants():
    """Assert NaN with the reason, and 0."""
    given = np.tile([[0.5, 0.25]], (400, 1))
    given[7, 1] = 0
    result = lyapunov_spectrum_of(given)
    bars = result.error_bars()
    assert float(bars.stderr[0]) <= tolerance(400)
    assert np.isnan(float(bars.stderr[1]))
    assert bars.reasons() == [None, "the exponent is not finite"]
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["stderr"][1] is None
    assert document["stderr_withheld"][1] == "the exponent is not finite"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"transient": 100}, "transient is 100"),
        ({"transient": -1}, "transient is -1"),
        ({"until": Converged(0.1, every=101)}, "checks every 101 tokens"),
        ({"until": Converged(0.1, every=10), "method": QR(block=4)}, "multiple of 4"),
    ],
)
def test_what_cannot_be_run_is_refused_in_words(settings, words):
    """Assert that each names what was given."""
    with pytest.raises(ValueError, match=words):
        lyapunov_spectrum_of(np.ones((100, 2, 2)), **settings)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Converged(0.0), "stderr is 0.0"),
        (lambda: Converged(0.1, every=0), "every is 0"),
        (lambda: BatchMeans(1), "batches is 1"),
        (lambda: BatchMeans(needed=-1.0), "needed is -1.0"),
        (lambda: lyapunov_spectrum_of(np.ones((9, 1))).interval(95), "level is 95"),
    ],
)
def test_settings_without_a_meaning_are_refused(make, words):
    """Assert that each names what was given."""
    with pytest.raises(ValueError, match=words):
        make()
