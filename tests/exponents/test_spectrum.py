"""Spectra: the three methods against each other, dense products and known systems."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from .tolerance import tolerance


def mamba1(seed=0, tokens=60, d_inner=3, d_state=2):
    """A Mamba-1 recurrence, its state and its inputs."""
    from lyapunov.recurrences import Mamba1Inputs, Mamba1Recurrence

    rng = np.random.default_rng(seed)
    A = -jnp.exp(jnp.asarray(rng.normal(size=(d_inner, d_state))))
    inputs = Mamba1Inputs(
        jnp.asarray(rng.exponential(0.3, size=(tokens, d_inner))),
        jnp.asarray(rng.normal(size=(tokens, d_inner))),
        jnp.asarray(rng.normal(size=(tokens, d_state))),
    )
    return Mamba1Recurrence(A), jnp.zeros((d_inner, d_state)), inputs


def diagonal(log_decay):
    """A diagonal recurrence with these log decays (tokens, d)."""
    from lyapunov.recurrences import DecayAndDrive, DiagonalRecurrence

    log_decay = jnp.asarray(log_decay, jnp.float64)
    inputs = DecayAndDrive(log_decay, jnp.ones_like(log_decay))
    return DiagonalRecurrence(), jnp.zeros(log_decay.shape[1]), inputs


def exact_means(recurrence, inputs):
    """Means of dt A in 50 digits, sorted from the largest."""
    dt, A = np.asarray(inputs.dt), np.asarray(recurrence.A)
    with mpmath.workdps(50):
        sums = [mpmath.fsum(map(mpmath.mpf, column)) for column in dt.T]
        values = [
            s * mpmath.mpf(a) / len(dt)
            for s, row in zip(sums, A, strict=True)
            for a in row
        ]
        return np.array(sorted(map(float, values), reverse=True))


def test_closed_form_is_the_mean_log_decay():
    """Assert that the default on Mamba-1 is the mean of dt A, computed in 50 digits."""
    from lyapunov.exponents import lyapunov_spectrum

    recurrence, state, inputs = mamba1()
    result = lyapunov_spectrum(recurrence, state, inputs)
    assert result.method == "ClosedForm()"
    wanted = exact_means(recurrence, inputs)
    error = tolerance(len(inputs.dt) + 2, np.abs(wanted).max())
    np.testing.assert_allclose(result.exponents, wanted, rtol=0, atol=error)


@pytest.mark.parametrize("block", [1, 7, 60, 1000])
def test_qr_of_step_jacobians_is_the_closed_form_on_mamba1(block):
    """Assert that QR gives the full spectrum of the closed form, for any block."""
    from lyapunov.exponents import QR, lyapunov_spectrum

    recurrence, state, inputs = mamba1()
    closed = lyapunov_spectrum(recurrence, state, inputs).exponents
    result = lyapunov_spectrum(recurrence, state, inputs, method=QR(block=block))
    # a token costs exp, a product, a norm over d entries and a log
    error = tolerance(8 + state.size, max(1, float(np.abs(closed).max())))
    np.testing.assert_allclose(result.exponents, closed, rtol=0, atol=error)
    assert result.notes == ()


def test_tangent_growth_is_the_growth_of_that_vector():
    """Assert that it equals log(|P v| / |v|) / T for the same v, P in 50 digits."""
    from lyapunov.exponents import TangentGrowth, lyapunov_spectrum

    recurrence, state, inputs = mamba1(3)
    v = np.random.default_rng(4).normal(size=state.size)
    method = TangentGrowth(jnp.asarray(v))
    result = lyapunov_spectrum(recurrence, state, inputs, method=method)
    dt, A = np.asarray(inputs.dt), np.asarray(recurrence.A)
    with mpmath.workdps(50):
        logs = [mpmath.fsum(dt[:, i]) * A[i, n] for i, n in np.ndindex(A.shape)]
        after = mpmath.sqrt(
            mpmath.fsum(
                (mpmath.exp(g) * mpmath.mpf(x)) ** 2
                for g, x in zip(logs, v, strict=True)
            )
        )
        before = mpmath.sqrt(mpmath.fsum(mpmath.mpf(x) ** 2 for x in v))
        wanted = float(mpmath.log(after / before) / len(dt))
    assert result.exponents.shape == (1,)
    error = tolerance(8 + state.size)
    assert float(result.exponents[0]) == pytest.approx(wanted, abs=error)


@pytest.mark.parametrize("tokens", [1, 10, 200])
def test_tangent_growth_misses_the_maximum_by_at_most_ln_d_over_2T(tokens):
    """Assert the bound from both sides, and that equal decays attain neither side."""
    from lyapunov.exponents import TangentGrowth, lyapunov_spectrum

    d = 5
    rng = np.random.default_rng(tokens)
    for log_decay in (-rng.exponential(size=(tokens, d)), -np.eye(tokens, d)):
        system = diagonal(log_decay)
        top = float(lyapunov_spectrum(*system).exponents[0])
        grown = lyapunov_spectrum(*system, method=TangentGrowth())
        missed = top - float(grown.exponents[0])
        assert -tolerance(20) <= missed <= np.log(d) / (2 * tokens) + tolerance(20)


def test_tangent_growth_attains_the_bound_where_one_direction_survives():
    """Assert that with all but one decay at e^-80 the miss is ln(d) / 2T itself."""
    from lyapunov.exponents import TangentGrowth, lyapunov_spectrum

    log_decay = np.full((10, 4), -80.0)
    log_decay[:, 2] = -0.5
    grown = lyapunov_spectrum(*diagonal(log_decay), method=TangentGrowth())
    wanted = -0.5 - np.log(4) / 20
    assert float(grown.exponents[0]) == pytest.approx(wanted, abs=tolerance(20))


def test_leading_k_of_a_diagonal_system_are_the_largest_not_the_first():
    """Assert that k = 2 of a = (.2, .5, .9) finds .9 and .5, up to the start's bias."""
    from lyapunov.exponents import QR, lyapunov_spectrum

    tokens = 400
    system = diagonal(np.tile(np.log([0.2, 0.5, 0.9]), (tokens, 1)))
    for seed in range(3):
        key = jax.random.key(seed)
        result = lyapunov_spectrum(*system, k=2, method=QR(), key=key)
        frame, _ = np.linalg.qr(np.asarray(jax.random.normal(key, (3, 2))))
        # the vectors' overlap with the leading directions is all that is lost
        first = np.log(abs(frame[2, 0]))
        both = np.log(abs(np.linalg.det(frame[1:])))
        wanted = np.log([0.9, 0.5]) + np.array([first, both - first]) / tokens
        error = tolerance(20)  # of the mean over tokens
        np.testing.assert_allclose(result.exponents, wanted, rtol=0, atol=error)
        assert "1/T" in result.notes[0]


def test_zero_decays_give_minus_infinity_and_no_nan():
    """Assert that a decay of 0 makes its exponent -inf and leaves the others alone."""
    from lyapunov.exponents import QR, ClosedForm, TangentGrowth, lyapunov_spectrum

    log_decay = np.full((20, 6), -0.25) * np.arange(1, 7)
    log_decay[7, 2] = -np.inf
    wanted = np.array([-0.25, -0.5, -1.0, -1.25, -1.5, -np.inf])
    system = diagonal(log_decay)
    for method in (ClosedForm(), QR(), QR(block=6)):
        got = lyapunov_spectrum(*system, method=method).exponents
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance(40))
    small = diagonal(log_decay[:, 1:4])
    np.testing.assert_allclose(
        lyapunov_spectrum(*small, method=QR()).exponents,
        [-0.5, -1.0, -np.inf],
        atol=tolerance(40),
    )
    dead = diagonal(np.full((5, 2), -np.inf))
    for method in (ClosedForm(), QR(), TangentGrowth()):
        assert np.isneginf(lyapunov_spectrum(*dead, method=method).exponents).all()


def test_products_beyond_the_range_of_fp64_keep_their_exponents():
    """Assert that log decays of -300 a token over 100 tokens are added, not lost."""
    from lyapunov.exponents import QR, lyapunov_spectrum

    system = diagonal(np.tile([-300.0, -200.0, 0.0], (100, 1)))
    for method in (QR(), None):
        got = lyapunov_spectrum(*system, method=method).exponents
        np.testing.assert_allclose(got, [0, -200, -300], atol=tolerance(10, 300))


def test_qr_of_a_dense_driven_system_is_qr_of_the_dense_product():
    """Assert that exponents of random matrices are those of the 120-digit product."""
    from lyapunov.exponents import QR, lyapunov_spectrum

    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(30, 6, 6))
    result = lyapunov_spectrum(
        lambda x, M: M @ x, jnp.ones(6), jnp.asarray(matrices), method=QR()
    )
    with mpmath.workdps(120):
        product = mpmath.eye(6)
        for matrix in matrices:
            product = mpmath.matrix(matrix.tolist()) * product
        _, triangle = mpmath.qr(product)
        logs = [mpmath.log(abs(triangle[j, j])) / 30 for j in range(6)]
    wanted = np.sort(np.array([float(x) for x in logs]))[::-1]
    # condition numbers of random 6 x 6 matrices enter; 1e3 is generous
    np.testing.assert_allclose(result.exponents, wanted, atol=1e3 * tolerance(36))


def test_sum_of_exponents_is_the_mean_log_determinant():
    """Assert that on the Henon map the exponents add up to log 0.3."""
    from lyapunov.exponents import QR, lyapunov_spectrum

    def henon(x, _):
        return jnp.array([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])

    result = lyapunov_spectrum(henon, jnp.array([0.1, 0.1]), 20_000, method=QR())
    assert float(result.exponents.sum()) == pytest.approx(np.log(0.3), abs=1e-12)
    # the exponent's own scatter over 20,000 steps is about 0.003
    assert float(result.exponents[0]) == pytest.approx(0.4192, abs=0.012)


def test_joint_state_has_the_exponents_of_the_ssm_and_minus_infinities():
    """Assert that QR of the joint Jacobians finds dt A means, and -inf for a window."""
    from lyapunov.arithmetic import Weight
    from lyapunov.exponents import QR, lyapunov_spectrum
    from lyapunov.recurrences import Mamba1JointRecurrence, StateAndWindow

    rng = np.random.default_rng(5)
    d_inner, d_state, d_conv, rank, tokens = 2, 2, 3, 1, 40

    def draw(*shape):
        return jnp.asarray(0.5 * rng.normal(size=shape))

    recurrence = Mamba1JointRecurrence(
        conv_weight=draw(d_inner, d_conv),
        conv_bias=draw(d_inner),
        x_proj=Weight(draw(rank + 2 * d_state, d_inner)),
        dt_proj=Weight(draw(d_inner, rank)),
        dt_bias=draw(d_inner) - 2,
        A=-jnp.exp(draw(d_inner, d_state)),
    )
    start = StateAndWindow(jnp.zeros((d_inner, d_state)), draw(d_conv - 1, d_inner))
    xs = draw(tokens, d_inner)
    state, dt = start, []
    for x in xs:
        dt.append(recurrence.inputs(state.window, x).dt)
        state = recurrence.step(state, x)
    wanted = np.mean(dt, axis=0)[:, None] * np.asarray(recurrence.A)
    got = lyapunov_spectrum(recurrence, start, xs, method=QR()).exponents
    window = (d_conv - 1) * d_inner
    assert np.isneginf(got[-window:]).all()
    ordered = np.sort(wanted.ravel())[::-1]
    np.testing.assert_allclose(got[:-window], ordered, rtol=0, atol=tolerance(40))


def test_history_ends_in_the_exponents_and_starts_at_the_first_tokens():
    """Assert that each point is the spectrum of the tokens up to it."""
    from lyapunov.exponents import QR, ClosedForm, lyapunov_spectrum

    log_decay = -np.random.default_rng(0).exponential(size=(150, 3))
    for method in (ClosedForm(), QR()):
        result = lyapunov_spectrum(*diagonal(log_decay), method=method)
        # one sum in two orders
        last = result.history[-1]
        np.testing.assert_allclose(last, result.exponents, rtol=tolerance(300))
        order = np.argsort(-log_decay.mean(axis=0))
        for token, row in zip(result.history_tokens, result.history, strict=True):
            wanted = log_decay[: int(token)].mean(axis=0)[order]
            np.testing.assert_allclose(row, wanted, atol=tolerance(200))
        assert int(result.history_tokens[-1]) == 150
        assert len(result.history) <= 64


def test_batches_are_vmap():
    """Assert that vmap over inputs gives each sequence's own spectrum."""
    from lyapunov.exponents import QR, lyapunov_spectrum
    from lyapunov.recurrences import DecayAndDrive, DiagonalRecurrence

    log_decay = jnp.asarray(-np.random.default_rng(0).exponential(size=(4, 20, 3)))

    def spectrum(one):
        inputs = DecayAndDrive(one, jnp.zeros_like(one))
        return lyapunov_spectrum(
            DiagonalRecurrence(), jnp.zeros(3), inputs, method=QR()
        )

    batched = jax.vmap(spectrum)(log_decay)
    for got, one in zip(batched.exponents, log_decay, strict=True):
        np.testing.assert_allclose(got, spectrum(one).exponents, atol=tolerance(60))
    assert "nats per token" in repr(batched)


def test_result_is_readable_and_plain():
    """Assert that repr shows numbers and unit, and to_dict plain JSON types."""
    import json

    from lyapunov.exponents import lyapunov_spectrum

    result = lyapunov_spectrum(*diagonal([[-0.5, -np.inf], [-0.5, -1.0]]))
    assert repr(result).startswith("-0.5, -inf nats per token (ClosedForm(), 2 tokens")
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["exponents"] == [-0.5, None]
    assert document["exponents_flag"] == [None, "-inf"]
    assert document["n_tokens"] == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": jnp.zeros(2, jnp.complex64)}, "real numbers"),
        ({"k": 3}, "k is 3"),
        ({"inputs": 0}, "no tokens"),
        ({"method": "closed"}, "use QR"),
        ({"method": "tangent", "k": 2}, "gives 1 exponent"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_words(change, words):
    """Assert that each misuse names what was given or what to do."""
    from lyapunov.exponents import ClosedForm, TangentGrowth, lyapunov_spectrum

    methods = {"closed": ClosedForm(), "tangent": TangentGrowth()}
    settings = {"state": jnp.zeros(2), "inputs": 5, "k": None} | change
    method = methods.get(settings.pop("method", ""))
    state, inputs = settings.pop("state"), settings.pop("inputs")
    with pytest.raises(ValueError, match=words):
        lyapunov_spectrum(lambda x, _: x / 2, state, inputs, method=method, **settings)
