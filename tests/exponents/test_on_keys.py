"""Exponents of delta rules against QR at every token, high precision, closed forms."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import special

from lyapunov import LyapunovError
from lyapunov.exponents import (
    QR,
    ClosedForm,
    OnKeys,
    ParallelInTime,
    finite_time_exponents,
    lyapunov_spectrum,
    transient_growth,
)
from lyapunov.exponents._method import System
from lyapunov.exponents._on_keys import KNOWN
from lyapunov.recurrences import DeltaInputs, DeltaRecurrence

from ..recurrences.test_delta import HEADS, KEY_DIM, VALUE_DIM, drawn
from .tolerance import tolerance


STATE = jnp.zeros((HEADS, VALUE_DIM, KEY_DIM))


def matrices(inputs, head):
    """M of every token in NumPy: (tokens, key_dim, key_dim)."""
    log_gate, rate, key = (np.asarray(x)[:, head] for x in inputs[:3])
    gates = np.exp(log_gate.reshape(len(rate), -1)) * np.ones(key.shape)
    outer = rate[:, None, None] * key[:, :, None] * key[:, None, :]
    return (np.eye(key.shape[1]) - outer) * gates[:, None, :]


def qr_at_every_token(inputs):
    """All heads' exponents by NumPy, the largest first."""
    found = []
    for head in range(inputs.rate.shape[1]):
        every = matrices(inputs, head)
        frame, total = np.eye(every.shape[1]), np.zeros(every.shape[1])
        for M in every:
            frame, triangle = np.linalg.qr(M @ frame)
            total += np.log(np.abs(np.diag(triangle)))
        found += list(total / len(every))
    return np.sort(found)[::-1]


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_blocks_give_what_qr_at_every_token_gives(per_key, scale):
    """Assert all exponents, each once for all rows, over whole blocks and a rest."""
    inputs = drawn(1, 203, per_key=per_key, rate_scale=scale)
    found = lyapunov_spectrum(DeltaRecurrence(), STATE, inputs)
    assert found.method == "OnKeys()"
    wanted = qr_at_every_token(inputs)
    np.testing.assert_allclose(found.exponents, wanted, rtol=0, atol=tolerance(500, 10))
    assert found.multiplicity.tolist() == [VALUE_DIM] * (HEADS * KEY_DIM)


def test_the_sum_is_the_determinant_and_a_whole_write_is_minus_infinity():
    """Assert the sum to rounding, and one -inf a head after one rate of 1."""
    inputs = drawn(2, 203, rate_scale=2.0)
    found = lyapunov_spectrum(DeltaRecurrence(), STATE, inputs).exponents
    logs = [
        np.linalg.slogdet(matrices(inputs, head))[1].mean() for head in range(HEADS)
    ]
    assert float(found.sum()) == pytest.approx(sum(logs), abs=tolerance(400, 100))
    key = inputs.key.at[40].set(jnp.eye(KEY_DIM)[0])
    once = inputs._replace(rate=inputs.rate.at[40].set(1.0), key=key)
    found = lyapunov_spectrum(DeltaRecurrence(), STATE, once)
    assert np.isneginf(found.exponents).sum() == HEADS
    assert np.isfinite(found.exponents[: HEADS * (KEY_DIM - 1)]).all()
    assert any("exactly singular" in note or "-inf" in note for note in found.notes)


def test_exponents_beyond_what_rounding_shows():
    """Assert them against 500 digits: one key again and again, written away to 1e-6
    each time, and gates of channels 9 nats apart a token."""
    inputs = drawn(3, 40, per_key=True)
    same = jnp.broadcast_to(inputs.key[0], inputs.key.shape)
    gates = inputs.log_gate - 3.0 * jnp.arange(KEY_DIM)
    once = inputs._replace(
        key=same.at[:, 1].set(inputs.key[:, 1]),
        rate=jnp.ones_like(inputs.rate),
        log_gate=inputs.log_gate.at[:, 1].set(gates[:, 1]),
    )
    found = np.asarray(lyapunov_spectrum(DeltaRecurrence(), STATE, once).exponents)
    wanted = []
    with mpmath.workdps(500):
        for head in range(HEADS):
            product = mpmath.eye(KEY_DIM)
            for t in range(40):
                k = mpmath.matrix([float(x) for x in once.key[t, head]])
                gate = [mpmath.exp(float(g)) for g in once.log_gate[t, head]]
                product = (mpmath.eye(KEY_DIM) - k * k.T) * mpmath.diag(gate) * product
            triangle = mpmath.qr(product)[1]
            diagonal = [triangle[i, i] for i in range(KEY_DIM)]
            wanted += [float(mpmath.log(abs(r)) / 40) for r in diagonal]
    wanted = np.sort(wanted)[::-1]
    assert wanted[-1] < -10
    # a direction is known to 1e-7 over a block, in which 1 - |k|^2 is to 1e-10
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-7)


def test_isotropic_keys_have_the_closed_spectrum():
    """Assert sums of exponents of isotropic keys at a constant rate: a mean over
    Beta((d - p) / 2, p / 2), within four standard errors."""
    d, rate, tokens = 6, 0.3, 4000
    rng = np.random.default_rng(4)
    key = rng.normal(size=(tokens, 1, d))
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    inputs = DeltaInputs(
        log_gate=jnp.zeros((tokens, 1)),
        rate=jnp.full((tokens, 1), rate),
        key=jnp.asarray(key),
        value=jnp.zeros((tokens, 1, 1)),
    )
    state = jnp.zeros((1, 1, d))
    found = lyapunov_spectrum(DeltaRecurrence(), state, inputs)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    x, gamma = (1 + nodes) / 2, rate * (2 - rate)
    sums = []
    for p in range(1, d):
        # of p orthonormal vectors the share that lies along a key
        a, b = p / 2, (d - p) / 2
        density = x ** (a - 1) * (1 - x) ** (b - 1) / special.beta(a, b)
        sums.append(np.sum(weights / 2 * density * np.log1p(-gamma * x)) / 2)
    sums.append(np.log(1 - rate))
    wanted = np.diff(sums, prepend=0)
    # log growth of one vector a token lies between log(1 - rate) and 0
    error = 4 * abs(np.log(1 - rate)) / 2 / np.sqrt(tokens)
    np.testing.assert_allclose(found.exponents, wanted, rtol=0, atol=error)
    assert np.all(np.diff(wanted) < 0)
    assert error < abs(wanted[0])


def test_gates_beyond_the_range_of_exp_are_finite():
    """Assert exponents of -1e4 and less, where a decay is 0 in fp64."""
    inputs = drawn(5, 203)
    slow = lyapunov_spectrum(DeltaRecurrence(), STATE, inputs).exponents
    fast = inputs._replace(log_gate=inputs.log_gate - 1e4)
    found = lyapunov_spectrum(DeltaRecurrence(), STATE, fast).exponents
    np.testing.assert_allclose(found, slow - 1e4, rtol=1e-14)


def test_windows_other_methods_and_transients_know_the_structure():
    """Assert means of windows, what is refused, and norms of products by NumPy."""
    inputs = drawn(6, 48, rate_scale=2.0)
    recurrence = DeltaRecurrence()
    whole = lyapunov_spectrum(recurrence, STATE, inputs)
    windows = finite_time_exponents(recurrence, STATE, inputs, window=16)
    np.testing.assert_allclose(windows.mean, whole.exponents, rtol=0, atol=1e-14)
    chosen = lyapunov_spectrum(recurrence, STATE, inputs, method=ParallelInTime())
    np.testing.assert_array_equal(chosen.exponents, whole.exponents)
    with pytest.raises(LyapunovError, match="OnKeys needs"):
        lyapunov_spectrum(lambda x, _: x, STATE, 4, method=OnKeys())
    with pytest.raises(LyapunovError, match="ClosedForm needs"):
        lyapunov_spectrum(recurrence, STATE, inputs, method=ClosedForm())
    with pytest.raises(LyapunovError, match="distinct exponents are 8"):
        lyapunov_spectrum(recurrence, STATE, inputs, k=9)
    products = [np.eye(KEY_DIM)] * HEADS
    logs = []
    for t in range(48):
        products = [matrices(inputs, h)[t] @ products[h] for h in range(HEADS)]
        logs.append(np.log(max(np.linalg.norm(P, 2) for P in products)))
    found = transient_growth(recurrence, STATE, inputs).log_norms[0]
    np.testing.assert_allclose(found, logs, rtol=0, atol=tolerance(400, 1))


def in_600_digits(inputs):
    """Each head's exponents by QR from the identity at every token, unsorted."""
    found = []
    tokens, heads, n = inputs.key.shape
    with mpmath.workdps(600):
        for head in range(heads):
            frame, logs = mpmath.eye(n), [mpmath.mpf(0)] * n
            for gates, rate, key in zip(
                *(np.asarray(x)[:, head].tolist() for x in inputs[:3]), strict=True
            ):
                k = mpmath.matrix(key)
                D = mpmath.diag([mpmath.exp(gate) for gate in gates])
                frame, R = mpmath.qr((mpmath.eye(n) - rate * k * k.T) * D * frame)
                logs = [x + mpmath.log(abs(R[i, i])) for i, x in enumerate(logs)]
            found.append([float(x / tokens) for x in logs])
    return np.array(found)


@pytest.mark.parametrize("fall", [-30.0, -150.0, -1000.0])
def test_gates_far_apart_are_no_minus_infinity(fall):
    """Assert exponents against 600 digits, where several channels of a step are
    below rounding, and below what fp64 holds: all of them where the same channels
    fall, the last of the frame, else those that are called resolved, and the sum of
    the others."""
    n = 8
    inputs = drawn(20, 8, per_key=True, key_dim=n)
    start = jnp.zeros((HEADS, VALUE_DIM, n))
    same = jnp.where(jnp.arange(n) >= 5, fall, 0)
    fixed = inputs._replace(log_gate=inputs.log_gate + same)
    falls = np.random.default_rng(20).uniform(size=inputs.log_gate.shape) < 0.4
    falls[:, :, :3] = False
    turns = inputs._replace(log_gate=inputs.log_gate + fall * falls)
    for given in (fixed, turns):
        wanted = in_600_digits(given)
        method, system = OnKeys(), System.of(DeltaRecurrence(), start)
        carry = method.start(system, HEADS * n, jax.random.key(0))
        carry, growth = method.advance(system, carry, given, 8, 16)
        found = np.reshape(growth.sum(axis=0) / 8, wanted.shape)
        known = np.asarray(carry[1])
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found.sum(axis=1), wanted.sum(axis=1), rtol=1e-13)
        np.testing.assert_allclose(found[known], wanted[known], rtol=0, atol=KNOWN)
        assert known[:, :3].all()
        assert known.all() == (given is fixed or fall == -30)
        if given is fixed and fall < -100:  # pivots at least a thousandth of rows
            error = 1e3 * tolerance(8 * 8 * n, 1)
            np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=error)
        whole = lyapunov_spectrum(DeltaRecurrence(), start, given)
        assert whole.resolved is not None
        assert int(whole.resolved.sum()) == known.sum()
        notes = " ".join(whole.notes)
        assert ("are not resolved" in notes) == (not known.all())
        assert "-inf" not in notes


@pytest.mark.slow
def test_qr_of_the_whole_state_repeats_each_exponent():
    """Assert it on all coordinates, whose rows are alike."""
    inputs = drawn(7, 60)
    found = lyapunov_spectrum(DeltaRecurrence(), STATE, inputs).repeated
    dense = lyapunov_spectrum(DeltaRecurrence(), STATE, inputs, method=QR()).exponents
    np.testing.assert_allclose(found, dense, rtol=0, atol=1e-11)
    assert jnp.all(jnp.diff(dense) <= 0)


@pytest.mark.slow
def test_batches_by_vmap():
    """Assert each sequence's own exponents."""
    both = [drawn(seed, 40) for seed in (8, 9)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *both)
    run = lambda inputs: lyapunov_spectrum(DeltaRecurrence(), STATE, inputs).exponents
    np.testing.assert_allclose(
        jax.vmap(run)(stacked), jnp.stack([run(one) for one in both]), atol=1e-13
    )
