"""States in int8 and int16 under a scale a channel: rounding, and the most it moves.

Each implementation below is one that the declaration admits: the scale, its inverse and
the products with either are rounded to fp32, in whatever form they are written.
"""

from fractions import Fraction
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov import formats as state_formats
from lyapunov._errors import UsageError
from lyapunov.arithmetic import Bounded, BoundedArithmetic, Exact, RoundingModel
from lyapunov.formats import (
    FP32,
    FP64,
    STATE_FORMATS,
    FormatNumbers,
    StateFormat,
    is_state_numbers,
    state_format_named,
)

from ..helpers import not_none
from .exact import round_exactly


round_state = eqx.filter_jit(state_formats.round_state)
state_error_bound = eqx.filter_jit(state_formats.state_error_bound)
is_held = eqx.filter_jit(state_formats.is_held)

LARGEST = {"int8": 127, "int16": 32767}
NAMES = [name for name in STATE_FORMATS if name.startswith("int")]
f4 = np.float32


def numbers_of(name):
    form = state_format_named(name)
    assert isinstance(form, StateFormat)
    return form.numbers()


def flashinfer(x, largest, rounded=np.rint, over: int | None = 0):
    """Encoded by largest / amax, decoded by its inverse, every operation in fp32."""
    most = np.max(np.abs(x), axis=over, keepdims=True)
    encode = f4(largest) / most
    steps = np.clip(rounded(x * encode), -largest, largest)
    return steps * (f4(1) / encode)


def divided(x, largest, rounded=np.rint, over=0):
    """By a scale amax / largest, and multiplied by it again."""
    scale = np.max(np.abs(x), axis=over, keepdims=True) / f4(largest)
    return np.clip(rounded(x / scale), -largest, largest) * scale


def towards_zero(x):
    return np.trunc(x)


@eqx.filter_jit
def store(x: Bounded, numbers, centred: bool) -> Bounded:
    """A state's store without any rounding around it."""
    at = BoundedArithmetic({"state": numbers}, RoundingModel.none(), centred=centred)
    return at.store("state", x)


def channels(rng, rows=64, columns=48):
    """Channels of very different sizes, ties among their states; fp32."""
    x = rng.normal(size=(rows, columns)) * 2.0 ** rng.integers(-60, 60, columns)
    x[0] = np.max(np.abs(x), axis=0) * 1.01
    for largest in LARGEST.values():
        half = rng.integers(-largest, largest, columns) + 0.5
        x[largest % 7 + 1] = x[0] * half / largest
    return x.astype(f4)


def test_they_exist_under_a_scale_alone():
    """Assert the four names, and that neither has an exponent."""
    variants = ("-scaled", "-scaled-stochastic")
    assert [base + v for base in LARGEST for v in variants] == NAMES
    for name in NAMES:
        form = state_format_named(name)
        assert isinstance(form, StateFormat)
        assert form.integer
        assert form.scaled
        assert form.stochastic == ("stochastic" in name)
        assert form.step == 1 / LARGEST[name.partition("-")[0]]
        assert form.unit_roundoff == form.smallest_normal == 0
    for wrong in ("int8", "int16-stochastic", "int4-scaled"):
        with pytest.raises(UsageError) as caught:
            state_format_named(wrong)
        assert "int8 or int16 with -scaled" in caught.value.hint


@pytest.mark.wrong_types
def test_what_is_no_format_is_refused():
    """Assert that nothing falls back to the rule of plain formats."""
    assert is_state_numbers(numbers_of("int8-scaled"))
    assert not is_state_numbers(FP32.numbers())
    wrongs: Any = "int8", None, FP32
    for wrong in wrongs:
        with pytest.raises(TypeError, match="not the numbers of a format"):
            is_state_numbers(wrong)


def test_every_int8_is_the_one_of_exact_rationals():
    """Assert all 255 integers and what lies a quarter, half and a bit more beside."""
    steps = [
        Fraction(q) + part
        for q in range(-127, 127)
        for part in (0, Fraction(1, 4), Fraction(1, 2), Fraction(33, 64))
    ]
    for most in (Fraction(1), Fraction(3, 7), Fraction(12345, 2**20)):
        top = not_none(round_exactly(most, FP32))
        inverse = not_none(round_exactly(127 / top, FP32))
        scale = not_none(round_exactly(1 / inverse, FP32))
        x = [round_exactly(s * top / 127, FP32) for s in steps] + [top]
        got = round_state(np.array(x, float)[:, None], numbers_of("int8-scaled"))
        for state, read in zip(x, np.asarray(got)[:, 0], strict=True):
            product = not_none(round_exactly(not_none(state) * inverse, FP32))
            integer = round(product)  # ties to even
            assert Fraction(float(read)) == round_exactly(integer * scale, FP32)


def test_every_int16_is_numpys():
    """Assert all 65,535 integers, and all numbers halfway, bit for bit."""
    half = np.arange(-65534, 65535)
    for most in (1.0, 0.3, 7e-6):
        x = (half / 65534 * most).astype(f4)[:, None]
        expected = flashinfer(x, 32767)
        got = np.asarray(round_state(x.astype(float), numbers_of("int16-scaled")))
        np.testing.assert_array_equal(got, expected.astype(float))


def test_drawn_integers_are_the_neighbours_by_their_share():
    """Assert both neighbours, and the share of the upper within 6 standard errors."""
    draws = 20_000
    for name, largest in LARGEST.items():
        numbers = numbers_of(f"{name}-scaled-stochastic")
        for low, share in ((0, 0.125), (5, 0.5), (-6, 0.75), (largest - 1, 0.25)):
            x = np.full((draws + 1, 1), low + share)
            x[-1] = largest  # the scale is 1
            got = np.asarray(round_state(x, numbers, jax.random.key(low)))[:-1]
            up = got == low + 1
            assert (up | (got == low)).all()
            assert abs(up.mean() - share) < 6 * np.sqrt(share * (1 - share) / draws)


@pytest.mark.parametrize("name", NAMES)
def test_no_implementation_moves_a_state_beyond_the_bound(rng, name):
    """Assert it of each, also where magnitudes are known from above alone; and reached.

    Steps cut off, or a scale that all channels share, are beyond it.
    """
    base = name.partition("-")[0]
    drawn = "stochastic" in name
    largest, numbers = LARGEST[base], numbers_of(name)
    x = channels(rng)
    bound = np.asarray(state_error_bound(np.abs(x).astype(float), numbers))
    wider = np.asarray(state_error_bound(np.abs(x) * 1.5, numbers))
    assert (bound <= wider).all()
    uniform = rng.random(x.shape).astype(f4)
    nearby = (lambda s: np.floor(s + uniform)) if drawn else np.rint
    own = np.asarray(round_state(x.astype(float), numbers, jax.random.key(1)))
    for read in (flashinfer(x, largest, nearby), divided(x, largest, nearby), own):
        moved = np.abs(read.astype(float) - x)
        assert (moved <= bound).all()
        assert (moved / bound).max() > 0.95
    wrong = [flashinfer(x, largest, nearby, over=None)]
    if not drawn:
        wrong.append(flashinfer(x, largest, towards_zero))
        wrong.append(divided(x, largest // 2))
    for read in wrong:
        assert (np.abs(read.astype(float) - x) > bound).any()


def test_channels_of_nothing_and_of_nearly_nothing():
    """Assert zeros from zeros, a bound for what is next to fp32's end, none beyond."""
    numbers = numbers_of("int16-scaled")
    x = np.array([[0.0, 2.0**-120, 1.0, np.inf, np.nan], [0.0, 1e-45, 0.5, 1.0, 1.0]])
    bound = np.asarray(state_error_bound(np.abs(x), numbers))
    got = np.asarray(round_state(x, numbers))
    assert (got[:, 0] == 0).all()
    assert (np.abs(got - x)[:, :3] <= bound[:, :3]).all()
    assert np.isnan(got[:, 3:]).all()
    assert not np.isfinite(bound[:, 3:]).any()
    assert np.isfinite(bound[:, :3]).all()
    assert (bound[:, 1] >= np.abs(x[:, 1])).all()  # the inverse of its scale is inf


def test_a_channel_without_a_scale_has_no_bound_in_any_format():
    """Assert it where one state may be anything: the others' scale is unknown too."""
    for name, form in STATE_FORMATS.items():
        if not (isinstance(form, StateFormat) and form.scaled):
            continue
        for unknown in (np.inf, np.nan):
            size = jnp.array([[1.0, 1.0], [unknown, 1.0]])
            bound = np.asarray(state_error_bound(size, form.numbers()))
            assert not np.isfinite(bound[:, 0]).any(), name
            assert np.isfinite(bound[:, 1]).all(), name
            error = jnp.array([[0.0, 0.0], [unknown, 0.0]])
            stored = store(Bounded(jnp.ones((2, 2)), error), form.numbers(), True)
            assert not np.isfinite(stored.error[:, 0]).any(), name
            assert np.isfinite(stored.error[:, 1]).all(), name


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_store_of_uncertain_states_is_within_its_bound(rng, name, centred):
    """Assert it for states anywhere within their errors, some of them on ties."""
    largest, numbers = LARGEST[name.partition("-")[0]], numbers_of(name)
    x = channels(rng, 16, 32).astype(float)
    drawn = "stochastic" in name
    for share in (0.0, 1e-7, 1e-3, 0.7):
        e = share * np.abs(x)
        stored = store(Bounded(jnp.asarray(x), jnp.asarray(e)), numbers, centred)
        value, error = np.asarray(stored.value), np.asarray(stored.error)
        for signs in (rng.uniform(-1, 1, x.shape), np.sign(x), -np.sign(x)):
            moved = x + signs * e
            uniform = rng.random(x.shape)
            nearby = (lambda s, r=uniform: np.floor(s + r)) if drawn else np.rint
            for way in (flashinfer, divided):
                # of fp64 states: what fp32 makes of them first is not the store's
                read = way(moved, largest, nearby)
                assert (np.abs(read - value) <= error).all(), (share, way)
        if centred and not drawn and share in (0.0, 1e-7):
            # most states are far from a tie: one integer, and the scale's last bits
            step = np.max(np.abs(x), axis=0) / largest
            assert np.median(error / step) < (0.05 if "int16" in name else 0.001)


def test_what_a_format_holds_is_not_stored_again(rng):
    """Assert the largest of a channel and its integers, and nothing in between."""
    for name in ("int8-scaled", "int16-scaled"):
        numbers = numbers_of(name)
        x = channels(rng, 16, 32).astype(float)
        stored = round_state(x, numbers)
        assert np.asarray(is_held(stored, numbers)).all()
        held = np.asarray(is_held(x, numbers))
        assert held[0].all()
        assert held[1:].mean() < 0.2
    wide = FP64.numbers()
    assert isinstance(wide, FormatNumbers)
    assert np.asarray(is_held(x, wide)).all()


def test_updates_below_half_a_step_of_a_channels_largest_are_counted(rng):
    """Assert the share against NumPy, beside that of a format with an exponent."""
    h, b = rng.normal(size=(2, 40, 8))
    b *= 10.0 ** rng.uniform(-5, 0, b.shape)
    b[0] = 0.0
    at = Exact(
        state_units=(2.0**-8, 0.0),
        state_smallest=(2.0**-126, 0.0),
        state_steps=(0.0, 1 / 127),
    )
    after = np.asarray(at.advance(jnp.asarray(h), 0.9, jnp.asarray(b)))
    places = 2.0 ** np.floor(np.log2(np.abs(after)))
    most = np.max(np.abs(after), axis=0)
    expected = [
        np.mean((b != 0) & (np.abs(b) <= places * 2.0**-8)),
        np.mean((b != 0) & (np.abs(b) <= most / 254)),
    ]
    # a mean of zeros and ones in fp32
    np.testing.assert_allclose(at.observed["stagnation"], expected, rtol=2.0**-22)
    assert expected[0] < expected[1]
