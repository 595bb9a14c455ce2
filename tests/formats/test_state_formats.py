"""Formats of a cached state: scale, stochastic rounding, the most that they move."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lyapunov._errors import UsageError
from lyapunov.formats import (
    FORMATS,
    SMALLEST_SCALE,
    STATE_FORMATS,
    Format,
    StateFormat,
    round_state,
    round_stochastically,
    state_error_bound,
    state_format_named,
    state_scale,
)

from .exact import round_exactly


NARROW = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}
NAMES = [name for name in STATE_FORMATS if name != "fp32"]


def states(rng, spread=12, shape=(16, 8)) -> np.ndarray:
    """Of very different magnitudes, so that subnormals and zeros occur; in fp32."""
    x = rng.normal(size=shape) * 2.0 ** rng.integers(-spread, 6, shape)
    x[:, -1] = 0.0
    return x.astype(np.float32).astype(np.float64)


def test_every_name_is_a_format_and_no_other():
    """Assert names, variants, and the error that lists them."""
    assert len(STATE_FORMATS) == 21
    for name, fmt in STATE_FORMATS.items():
        assert fmt.name == name
        if not name.startswith("int"):
            assert fmt.unit_roundoff == FORMATS[name.partition("-")[0]].unit_roundoff
        assert isinstance(fmt, StateFormat) == ("-" in name)
        if isinstance(fmt, StateFormat):
            assert fmt.scaled == ("-scaled" in name)
            assert fmt.stochastic == ("-stochastic" in name)
    for wrong in ("fp64", "bf16-stochastic-scaled", "int8", "fp32-scaled"):
        with pytest.raises(UsageError) as caught:
            state_format_named(wrong)
        assert "fp8_e4m3" in caught.value.hint


@pytest.mark.parametrize("name", NARROW)
def test_without_a_scale_it_is_the_cast_of_ml_dtypes(rng, name):
    """Assert bit equality, and a key that changes nothing to nearest."""
    x = states(rng)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float32).astype(NARROW[name]).astype(np.float64)
    numbers = state_format_named(name).numbers()
    for key in (None, jax.random.key(0)):
        np.testing.assert_array_equal(round_state(x, numbers, key), expected)


@pytest.mark.parametrize("name", NARROW)
def test_a_scaled_state_is_the_cast_of_what_is_left(rng, name):
    """Assert that each channel is cast after division by the smallest power that fits.

    Nothing overflows, whatever the magnitude, and twice the scale would be coarser.
    """
    fmt = FORMATS[name]
    x = states(rng) * 2.0 ** np.arange(-40, 40, 10)
    scale = np.asarray(state_scale(np.abs(x).max(axis=0), fmt.numbers()))
    numbers = state_format_named(f"{name}-scaled").numbers()
    got = np.asarray(round_state(x, numbers))
    for c in range(x.shape[1]):
        largest = Fraction(float(np.abs(x[:, c]).max()))
        s = Fraction(float(scale[c]))
        if largest:
            assert largest / s <= Fraction(fmt.largest)
            smallest = s == Fraction(SMALLEST_SCALE)
            assert smallest or Fraction(fmt.largest) < 2 * largest / s
        for value, read in zip(x[:, c], got[:, c], strict=True):
            exact = round_exactly(Fraction(float(value)) / s, fmt)
            assert exact is not None
            assert Fraction(float(read)) == exact * s


@pytest.mark.parametrize("name", ["bf16-stochastic", "fp8_e4m3-stochastic"])
def test_stochastic_rounding_goes_to_a_neighbour_by_its_share(name):
    """Assert both neighbours, and the share of each within 6 standard errors."""
    fmt = state_format_named(name)
    numbers = FORMATS[name.partition("-")[0]].numbers()
    u = fmt.unit_roundoff
    tiny = fmt.smallest
    draws = 40_000
    uniform = np.random.default_rng(1).uniform(size=draws)
    for low, spacing, share in [
        (1.0, 2 * u, 0.25),
        (-1.0, 2 * u, 0.25),
        (2.0 - 2 * u, 2 * u, 0.5),
        (0.0, tiny, 0.125),
        (3 * tiny, tiny, 0.75),
    ]:
        sign = -1.0 if low < 0 else 1.0
        x = sign * (abs(low) + share * spacing)
        got = np.asarray(round_stochastically(jnp.full(draws, x), numbers, uniform))
        up = got == sign * (abs(low) + spacing)
        assert (up | (got == low)).all(), (low, share)
        assert abs(up.mean() - share) < 6 * np.sqrt(share * (1 - share) / draws)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.lists(st.floats(-400, 400, width=32), min_size=4, max_size=4),
    st.integers(-30, 0),
    st.integers(0, 5),
)
def test_a_store_moves_no_state_beyond_its_bound(name, values, shift, seed):
    """Assert it for any magnitudes up to the given ones, and one spacing by chance."""
    numbers = state_format_named(name).numbers()
    x = np.ldexp(np.array(values), shift)[:, None]
    x[np.abs(x) < 2.0**-1000] = 0.0
    for part in (1.0, 0.37):
        bound = np.asarray(state_error_bound(np.abs(x), numbers))
        got = np.asarray(round_state(x * part, numbers, jax.random.key(seed)))
        assert (np.abs(got - x * part) <= bound).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_is_not_far_from_what_happens(rng, name):
    """Assert that in normal numbers some store moves a state by most of its bound."""
    numbers = state_format_named(name).numbers()
    x = rng.uniform(1.0, 2.0, (64, 64))
    bound = np.asarray(state_error_bound(x, numbers))
    moved = np.abs(np.asarray(round_state(x, numbers, jax.random.key(0))) - x)
    assert 0.95 <= (moved / bound).max() <= 1.0


@pytest.mark.parametrize("name", [n for n in NAMES if "scaled" not in n])
def test_what_may_overflow_has_no_finite_bound(name):
    """Assert inf beyond the largest, and that e4m3 gives NaN there."""
    fmt = state_format_named(name)
    x = jnp.full((2, 2), 2.0 * min(fmt.largest, 1e38))
    bound = state_error_bound(x * 2, fmt.numbers())
    if fmt.largest < 1e30:
        assert np.isinf(np.asarray(bound)).all()
        got = np.asarray(round_state(x, fmt.numbers(), jax.random.key(0)))
        assert np.isnan(got).all() if "e4m3" in name else np.isinf(got).all()


def test_what_is_not_finite_stays_so_under_a_scale():
    """Assert that inf and NaN are not scaled into numbers."""
    x = jnp.array([[1.0, jnp.inf], [jnp.nan, 2.0]])
    for name in ("fp8_e5m2-scaled", "fp8_e4m3-scaled-stochastic"):
        got = np.asarray(
            round_state(x, state_format_named(name).numbers(), jax.random.key(0))
        )
        assert not np.isfinite(got[1, 0])
        assert not np.isfinite(got[0, 1])


def test_a_state_format_is_a_format():
    """Assert that its plain numbers are those of the format that it is based on."""
    fmt = state_format_named("fp8_e4m3-scaled")
    assert isinstance(fmt, Format)
    plain = FORMATS["fp8_e4m3"]
    assert (fmt.largest, fmt.smallest, fmt.is_reduced) == (448.0, plain.smallest, True)
