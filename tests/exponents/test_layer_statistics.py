"""What the report says of one sublayer, against definitions written out in full."""

import math
import time
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ..helpers import not_none
from .tolerance import tolerance


DTYPES = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp32": np.float32,
}


def layer(seed=0, batch=2, seq=60, d_inner=5, d_state=3, spread=2.0):
    """dt (batch, seq, d_inner) over many scales and a negative A."""
    rng = np.random.default_rng(seed)
    dt = np.exp(rng.normal(-2, spread, (batch, seq, d_inner)))
    return dt, -np.exp(rng.normal(size=(d_inner, d_state)))


def row(dt, A, **options):
    from lyapunov.exponents import Decays, layer_exponents, with_time_steps

    return with_time_steps(layer_exponents(4, "mamba1", Decays(dt, A), **options), dt)


def test_exponents_are_means_of_dt_A_over_all_tokens():
    """Assert that max and min are the exact rationals' means, first token included."""
    dt, A = layer()
    found = row(dt, A)
    means = [
        sum(map(Fraction, dt[:, :, i].ravel().tolist()))
        * Fraction(float(A[i, n]))
        / 120
        for i, n in np.ndindex(A.shape)
    ]
    largest, smallest = float(max(means)), float(min(means))
    assert found.max == pytest.approx(largest, rel=tolerance(122))
    assert found.min == pytest.approx(smallest, rel=tolerance(122))
    assert (found.layer, found.kind, found.n_minus_inf) == (4, "mamba1", 0)


def test_memory_is_minus_one_over_the_exponent():
    """Assert the quantiles over channels and states, and the flag beyond the sample."""
    dt, A = layer(1)
    exponents = dt.mean(axis=(0, 1))[:, None] * A
    found = not_none(row(dt, A).memory_tokens)
    wanted = np.quantile(-1 / exponents, [0.5, 0.9, 1])
    assert [found.p50, found.p90, found.max] == pytest.approx(wanted, rel=1e-14)
    assert found.exceeds_sample == (wanted[2] > 60)
    slow = not_none(row(np.full((1, 10, 2), 1e-3), -np.ones((2, 2))).memory_tokens)
    assert slow.exceeds_sample
    assert slow.max == pytest.approx(1000)


def test_exponent_zero_has_null_memory():
    """Assert that a channel whose dt underflowed gives null and the flag, not inf."""
    dt = np.ones((1, 30, 3))
    dt[:, :, 1] = 0
    found = row(dt, -np.ones((3, 1)))
    assert found.max == 0
    assert not_none(found.memory_tokens).max is None
    assert not_none(found.memory_tokens).exceeds_sample
    assert found.decay_max == 1
    assert not_none(found.decay_is_one)["bf16"] == pytest.approx(1 / 3)


def test_infinite_rates_are_counted_and_leave_min_finite():
    """Assert that -inf is counted, and that min is over the finite."""
    found = row(np.ones((1, 30, 2)), np.array([[-1.0, -np.inf], [-2.0, -3.0]]))
    assert (found.max, found.min, found.n_minus_inf) == (-1, -3, 1)
    assert not_none(found.quantiles)[0] == -np.inf
    assert not_none(found.memory_tokens).p50 is not None
    assert not any(map(math.isnan, not_none(found.quantiles)))


def test_nan_in_dt_shows_as_nan():
    """Assert that a NaN is not lost in a maximum."""
    dt, A = layer()
    dt[0, 3, 2] = np.nan
    assert math.isnan(not_none(row(dt, A).max))


@pytest.mark.parametrize("name", list(DTYPES))
def test_decays_counted_as_one_and_zero_are_those_that_round_there(name):
    """Assert the shares against rounding every decay with ml_dtypes and numpy."""
    dt, A = layer(2, batch=1, seq=400, d_inner=6, d_state=4, spread=6.0)
    a = np.exp(dt[0, :, :, None] * A)
    # casts from fp64 to these go through fp32 and round twice; move off its ties
    near = np.abs(a.astype(np.float32).astype(np.float64) - a)
    rounded = a.astype(DTYPES[name]).astype(np.float64)
    found = row(dt, A, formats=[name])
    unsure = np.count_nonzero((near > 0) & _on_tie(a, name)) / a.size
    assert abs(not_none(found.decay_is_one)[name] - np.mean(rounded == 1)) <= unsure
    assert abs(not_none(found.decay_is_zero)[name] - np.mean(rounded == 0)) <= unsure
    assert 0 < not_none(found.decay_is_one)[name] < 1


def _on_tie(a, name):
    """Decays whose fp32 rounding lies on the tie below 1 or above 0."""
    from lyapunov.formats import FORMATS

    f = FORMATS[name]
    wide = a.astype(np.float32).astype(np.float64)
    return (wide == 1 - f.unit_roundoff / 2) | (wide == f.smallest / 2)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 1e3), min_size=1, max_size=12),
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=4),
)
def test_shares_count_every_threshold_exactly(dt, rates):
    """Assert that sorting and searching counts what comparing each decay counts."""
    from lyapunov.exponents._decays import Decays, rounds_to_zero_from
    from lyapunov.formats import BF16, FP16

    dt, rates = np.array(dt)[None, :, None], np.array([rates])
    ones, zeros = Decays(dt, -rates).shares_rounded([BF16, FP16])
    for f in (BF16, FP16):
        ones_at = f.decay_rounds_to_one_below() / rates
        zeros_at = rounds_to_zero_from(f) / rates
        assert ones[f.name] == pytest.approx(np.mean(dt[0] <= ones_at))
        assert zeros[f.name] == pytest.approx(np.mean(dt[0] >= zeros_at))


def test_decay_range_is_over_all_tokens():
    """Assert decay_min and decay_max against forming every decay."""
    dt, A = layer(3)
    a = np.exp(dt[..., None] * A)
    found = row(dt, A)
    assert found.decay_min == pytest.approx(a.min(), rel=1e-14)
    assert found.decay_max == pytest.approx(a.max(), rel=1e-14)
    assert (found.dt_min, found.dt_max) == (dt.min(), dt.max())
    assert found.dt_mean == pytest.approx(dt.mean(), rel=tolerance(dt.size))


def test_histogram_counts_decays_between_its_edges():
    """Assert the shares against numpy's histogram of every decay."""
    dt, A = layer(4)
    a = np.exp(dt[..., None] * A)
    found = not_none(row(dt, A).decay_histogram)
    edges, share = np.array(found["edges"]), np.array(found["share"])
    assert len(edges) == len(share) + 1
    assert (edges[0], edges[-1]) == (0, 1)
    assert np.all(np.diff(edges) > 0)
    counts, _ = np.histogram(a, edges)
    np.testing.assert_allclose(share, counts / a.size, atol=1e-12)


def test_histogram_of_a_large_layer_is_a_fair_sample():
    """Assert that sampling stays near the full histogram and meets every channel."""
    rng = np.random.default_rng(0)
    dt = np.exp(rng.normal(-2, 2, (1, 256, 128))) * np.exp(rng.normal(size=128))
    A = -np.arange(1, 17.0) * np.exp(rng.normal(size=(128, 1)))
    found = not_none(row(dt, A).decay_histogram)
    counts, _ = np.histogram(np.exp(dt[..., None] * A), found["edges"])
    # dt is shared by 16 states: about 12,000 independent draws
    assert np.abs(np.array(found["share"]) - counts / counts.sum()).max() < 4 / 110


def test_finite_time_exponents_are_windows_of_the_sequence():
    """Assert ends and values of at most 64 windows, the last one shorter."""
    dt, A = layer(5, seq=150)
    found = not_none(row(dt, A).finite_time)
    ends = found["token"]
    assert ends == [*range(3, 151, 3)]
    for start, end, value in zip([0, *ends], ends, found["max"], strict=False):
        window = dt[:, start:end].mean(axis=(0, 1))[:, None] * A
        assert value == pytest.approx(window.max(), rel=tolerance(20))
    assert len(not_none(row(*layer(5, seq=1)).finite_time)["token"]) == 1
    assert not_none(row(*layer(5, seq=1000)).finite_time)["token"][-1] == 1000


def test_stderr_from_eight_sequences_up_is_that_of_their_means():
    """Assert the standard deviation of sequence means over sqrt(batch)."""
    dt, A = layer(6, batch=9)
    exponents = dt.mean(axis=(0, 1))[:, None] * A
    i, n = np.unravel_index(exponents.argmax(), A.shape)
    means = dt[:, :, i].mean(axis=1) * A[i, n]
    found = row(dt, A)
    assert found.stderr == pytest.approx(means.std(ddof=1) / 3, rel=1e-12)
    assert "9 sequence means" in not_none(found.stderr_method)


def test_stderr_of_one_sequence_is_that_of_its_slowest_cosines():
    """Assert it against their power, written out in NumPy."""
    dt, A = layer(7, batch=1, seq=450)
    exponents = dt.mean(axis=(0, 1))[:, None] * A
    i, n = np.unravel_index(exponents.argmax(), A.shape)
    x = dt[0, :, i] * A[i, n]
    at = (np.arange(450) + 0.5) / 450
    cosines = np.cos(np.pi * np.outer(np.arange(1, 41), at))
    power = 2 * (cosines @ (x - x.mean())) ** 2 / 450
    low, high = power[:12].mean(), power[12:].mean()
    variance = low + 2.5 * max(low - high, 0)
    found = row(dt, A)
    assert found.stderr == pytest.approx(np.sqrt(variance / 450), rel=1e-9)
    assert "12 slowest cosines along 450 tokens" in not_none(found.stderr_method)


def test_stderr_is_null_under_eighty_tokens_and_says_so():
    """Assert null for 79 tokens, and a value where batch makes up for it."""
    found = row(*layer(8, batch=1, seq=79))
    assert found.stderr is None
    assert "fewer than 80" in not_none(found.stderr_method)
    assert row(*layer(8, batch=2, seq=79)).stderr is not None


def test_stderr_covers_other_text_of_the_same_kind():
    """Assert coverage of one standard error on an AR(1) log decay, of those given."""
    from lyapunov.exponents._error_bars import stderr_of_mean

    rng = np.random.default_rng(0)
    given = covered = 0
    for _ in range(300):
        x = np.empty(900)
        x[0] = rng.normal() / math.sqrt(1 - 0.5**2)
        for t in range(1, 900):
            x[t] = 0.5 * x[t - 1] + rng.normal()
        stderr, _ = stderr_of_mean(x[None])
        if stderr is not None:
            given += 1
            covered += abs(x.mean()) <= stderr
    # 3 % are withheld by chance; by Student's t with 12 degrees of freedom 66 %, a
    # little more as the slow part's rise is added; the scatter of 300 draws is 2.7 %
    assert given >= 0.94 * 300
    assert 0.58 <= covered / given <= 0.79


def test_a_head_with_one_rate_is_a_layer_too():
    """Assert that A of one number a head is accepted, as in Mamba-2."""
    dt, A = layer(9)
    found = row(dt, A[:, 0])
    assert found.max == row(dt, A[:, :1]).max


def test_log_decays_are_taken_as_they_are():
    """Assert every field against dt and A that make the same ones, and exact means."""
    from lyapunov.exponents import layer_exponents

    # powers of two: dt A is a number of fp64
    rng = np.random.default_rng(11)
    dt = np.exp(rng.normal(-2, 2, (2, 90, 5)))
    logs = dt[..., None] * -(2.0 ** rng.integers(-2, 3, (5, 3)))
    logs[0, 4, 2, 1] = -np.inf
    found = layer_exponents(4, "mamba3", logs, multiplicity=7)
    means = logs.reshape(-1, 15).mean(axis=0)
    finite = means[np.isfinite(means)]
    assert found.max == pytest.approx(finite.max(), rel=tolerance(182))
    assert found.min == pytest.approx(finite.min(), rel=tolerance(182))
    assert (found.n_minus_inf, found.multiplicity) == (7, 7)
    assert (found.decay_min, found.decay_max) == (0, np.exp(logs.max()))
    assert (found.dt_min, found.suspicions) == (None, [])
    A = logs[1, 0] / dt[1, 0][:, None]
    dt[0, 4, 2], logs[0, 4, 2] = 0.0, 0.0
    one, other = layer_exponents(4, "mamba3", logs), row(dt, A)
    for name in ("max", "min", "decay_min", "decay_max", "quantiles"):
        wanted = getattr(other, name)
        assert getattr(one, name) == pytest.approx(wanted, rel=tolerance(200)), name
    assert one.decay_is_one == other.decay_is_one
    assert one.decay_is_zero == other.decay_is_zero
    assert not_none(one.finite_time)["max"] == pytest.approx(
        not_none(other.finite_time)["max"], rel=tolerance(20)
    )


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        (np.full((1, 3, 2), 1e-9), "a decay above 1"),
        (np.zeros((3, 2)), "batch, seq, states"),
        (np.zeros((1, 0, 2)), "none of them 0"),
    ],
)
def test_log_decays_that_are_none_are_refused(logs, words):
    """Assert that the error says what was given, or what to give."""
    from lyapunov.exponents import layer_exponents

    with pytest.raises(ValueError, match=words):
        layer_exponents(0, "mamba3", logs)


@pytest.mark.parametrize(
    ("dt", "A", "words"),
    [
        (np.ones((1, 3, 2)), -np.ones((3, 2)), "A has shape"),
        (np.ones((1, 3, 2)), -np.ones((2, 2, 2)), "A has shape"),
        (np.ones((1, 3, 2)), np.ones((2, 2)), "no decay"),
        (-np.ones((1, 3, 2)), -np.ones((2, 2)), "no decay"),
    ],
)
def test_what_makes_no_decays_is_refused(dt, A, words):
    """Assert it of shapes that do not fit and of signs."""
    with pytest.raises(ValueError, match=words):
        row(dt, A)


def test_dt_of_the_wrong_shape_is_refused():
    """Assert that the error says what to give."""
    with pytest.raises(ValueError, match="batch, seq, d_inner"):
        row(np.ones((3, 2)), -np.ones((2, 2)))


def test_gathered_exponents_name_the_layer_of_the_largest():
    """Assert max, min, counts and the error bar of the largest over layers."""
    from lyapunov.exponents import gather_exponents
    from lyapunov.results._check import LayerExponents

    rows = [
        LayerExponents(0, "mamba1", max=-0.5, min=-7.0, stderr=0.1, n_minus_inf=2),
        LayerExponents(1, "attention", reason="nothing recurs"),
        LayerExponents(2, "mamba1", max=-0.1, min=-9.0, stderr=0.2, stderr_method="so"),
    ]
    found = gather_exponents(rows, 77)
    assert (found.max, found.max_layer, found.min) == (-0.1, 2, -9.0)
    assert (found.stderr, found.stderr_method) == (0.2, "so")
    assert (found.n_minus_inf, found.n_tokens, len(found.layers)) == (2, 77, 3)


def test_gathered_nan_counts_as_largest_and_nothing_gives_nulls():
    """Assert that a NaN layer is the one named, and that no recurrence gives null."""
    from lyapunov.exponents import gather_exponents
    from lyapunov.results._check import LayerExponents

    rows = [
        LayerExponents(0, "mamba1", max=-0.5, min=-7.0),
        LayerExponents(1, "mamba1", max=math.nan),
        LayerExponents(2, "mamba1", max=-0.4, min=-1.0),
    ]
    found = gather_exponents(rows, 1)
    assert found.max is not None
    assert math.isnan(found.max)
    assert found.max_layer == 1
    none = gather_exponents([LayerExponents(0, "mlp", reason="nothing recurs")], 1)
    assert (none.max, none.min, none.max_layer) == (None, None, None)


def test_counting_is_cheaper_than_forming_the_decays():
    """Assert that a layer's shares take less time than exponentiating its decays."""
    from lyapunov.exponents._decays import Decays
    from lyapunov.formats import BF16, FP8_E4M3, FP16

    rng = np.random.default_rng(0)
    dt = np.exp(rng.normal(-3, 2, (1, 512, 256)))
    A = -np.arange(1, 17.0) * np.ones((256, 1))

    def best(function):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    counted = best(lambda: Decays(dt, A).shares_rounded([BF16, FP16, FP8_E4M3]))
    formed = best(lambda: np.exp(dt[..., None] * A))
    assert counted < formed, (counted, formed)
