"""Rounding to a format: against ml_dtypes bit for bit, and in exact rationals."""

import math
from fractions import Fraction

import flint
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, example, given, settings, strategies as st

from lyapunov.formats import (
    FORMATS,
    format_named,
    round_to,
    rounding_error_bound,
    unit_in_first_place,
)

from ..helpers import not_none
from .exact import exponent, round_exactly


NARROW = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}
BELOW_FP64 = [name for name in FORMATS if name != "fp64"]
NUMBERS = {name: fmt.numbers() for name, fmt in FORMATS.items()}
rounded = jax.jit(round_to)
error_bound = jax.jit(rounding_error_bound)
first_place = jax.jit(unit_in_first_place)


def same_bits(left, right) -> np.ndarray:
    """Equal as fp64 bit patterns, any NaN being as good as any other."""
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    both_nan = np.isnan(left) & np.isnan(right)
    return both_nan | (left.view(np.int64) == right.view(np.int64))


def assert_like_ml_dtypes(name: str, x: np.ndarray) -> None:
    assert x.dtype == np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(NARROW[name]).astype(np.float64)
        wide = x.astype(np.float64)
    # the subnormal inputs are fp64 normals: nothing is flushed on the way
    got = np.asarray(rounded(wide, NUMBERS[name]))
    wrong = ~same_bits(got, wanted)
    assert not wrong.any(), (
        f"{wrong.sum()} of {x.size}, the first {x[wrong][0]!r} to {got[wrong][0]!r} "
        f"for {wanted[wrong][0]!r}"
    )


def every_value(name: str) -> np.ndarray:
    kind = np.dtype(NARROW[name])
    bits = np.arange(2 ** (8 * kind.itemsize), dtype=np.uint32)
    with np.errstate(invalid="ignore"):
        return bits.astype(f"u{kind.itemsize}").view(kind).astype(np.float32)


@pytest.mark.parametrize("name", NARROW)
def test_every_value_of_a_format_is_its_own_rounding(name):
    """Assert that all bit patterns, NaN, inf and both zeros included, are kept."""
    assert_like_ml_dtypes(name, every_value(name))


@pytest.mark.parametrize("name", NARROW)
def test_ties_and_their_neighbours_round_as_in_ml_dtypes(name):
    """Assert it at every midpoint between two values and one fp32 ulp to each side."""
    finite = every_value(name)
    finite = np.unique(finite[np.isfinite(finite)])
    middle = finite[:-1] + (finite[1:] - finite[:-1]) / np.float32(2)
    assert middle.dtype == np.float32
    around = [np.nextafter(middle, np.float32(s * np.inf)) for s in (-1, 1)]
    beside = [np.nextafter(finite, np.float32(s * np.inf)) for s in (-1, 1)]
    assert_like_ml_dtypes(name, np.concatenate([middle, *around, *beside]))


@pytest.mark.parametrize("name", NARROW)
def test_edges_of_overflow_and_underflow(name):
    """Assert both sides of the overflow threshold and of half the least subnormal."""
    fmt = FORMATS[name]
    spacing = 2.0 ** (math.frexp(fmt.largest)[1] - fmt.significand_bits)
    edges = [fmt.largest, fmt.largest + spacing / 2, fmt.largest + spacing]
    edges += [fmt.smallest / 2, fmt.smallest, fmt.smallest_normal, 1.5 * fmt.smallest]
    with np.errstate(over="ignore"):
        x = np.array([*edges, 0.0, np.inf, np.nan, 3e38, 1e-45], np.float32)
        x = np.concatenate(
            [x, *(np.nextafter(x, np.float32(s)) for s in (-1e39, 1e39))]
        )
    assert_like_ml_dtypes(name, np.concatenate([x, -x]))


@pytest.mark.parametrize("name", NARROW)
@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32), min_size=16, max_size=16))
def test_any_fp32_rounds_as_in_ml_dtypes(name, values):
    """Assert it for whatever hypothesis thinks of."""
    assert_like_ml_dtypes(name, np.array(values, np.float32))


def test_fp32_is_the_hardwares_own_cast(rng):
    """Assert that fp64 -> fp32 equals NumPy's cast, subnormals and overflow too."""
    bits = rng.integers(0, 2**63, 50_000, dtype=np.int64)
    near = ((bits % 340) - 190 + 1023 << 52) | (bits & (2**52 - 1))
    x = np.concatenate([bits.view(np.float64), near.view(np.float64)])
    middle = np.float64(np.float32(1) + np.float32(2.0**-23)) - 2.0**-24
    x = np.concatenate([x, [middle, np.nextafter(middle, 2), 2.0**-150, 3 * 2.0**-150]])
    x = np.concatenate([x, -x])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wanted = x.astype(np.float32).astype(np.float64)
    assert same_bits(rounded(x, NUMBERS["fp32"]), wanted).all()


def test_fp64_is_left_alone(rng):
    """Assert that the widest format changes nothing, NaN and inf included."""
    x = rng.integers(0, 2**63, 1000, dtype=np.int64).view(np.float64)
    x = np.concatenate([x, -x, [0.0, -0.0, np.inf, -np.inf, np.nan]])
    assert same_bits(rounded(x, NUMBERS["fp64"]), x).all()


@pytest.mark.parametrize("name", BELOW_FP64)
@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-160, 140))
@example(464.0, 0)
@example(-65520.0, 0)
@example(1.0 + 2.0**-11, 0)
def test_fp64_input_rounds_once(name, x, shift):
    """Assert nearest, ties to even, in exact rationals: no rounding by way of fp32."""
    fmt = FORMATS[name]
    for value in (x, math.ldexp(math.frexp(x)[0], shift)):
        if abs(value) < 2.0**-1022:
            continue  # fp64's own subnormals: XLA on CPU flushes them
        got = float(rounded(value, NUMBERS[name]))
        wanted = round_exactly(Fraction(value), fmt)
        if wanted is None:
            expected = math.copysign(fmt.overflow, value)
        else:
            expected = math.copysign(float(wanted), value)
        assert same_bits(got, expected), (value, got, expected)


@pytest.mark.parametrize("name", BELOW_FP64)
@settings(max_examples=200, deadline=None)
@given(
    st.floats(0.5, 1, exclude_max=True),
    st.integers(-160, 140),
    st.floats(0, 1),
)
def test_error_bound_covers_every_smaller_value(name, fraction, shift, part):
    """Assert |round(v) - v| <= bound(m) for |v| <= m, in exact rationals."""
    fmt = FORMATS[name]
    m = math.ldexp(fraction, shift)
    bound = float(error_bound(m, NUMBERS[name]))
    if m > fmt.largest:
        assert bound == math.inf
        return
    for v in (m, m * part):
        exact = Fraction(v)
        assert abs(not_none(round_exactly(exact, fmt)) - exact) <= Fraction(bound), (
            v,
            bound,
        )


@pytest.mark.parametrize("name", BELOW_FP64)
def test_error_bound_is_attained_at_ties(name):
    """Assert equality at midpoints, normal and subnormal: no smaller bound holds."""
    fmt = FORMATS[name]
    u = fmt.unit_roundoff
    ties = [1 + u, 2 * (1 + 3 * u), fmt.smallest / 2, 2.5 * fmt.smallest]
    ties += [fmt.smallest_normal * (1 + u), fmt.smallest_normal - fmt.smallest / 2]
    for tie in ties:
        exact = Fraction(tie)
        moved = abs(not_none(round_exactly(exact, fmt)) - exact)
        assert Fraction(float(error_bound(tie, NUMBERS[name]))) == moved
        got = abs(Fraction(float(rounded(tie, NUMBERS[name]))) - exact)
        assert got == moved


@pytest.mark.parametrize("name", FORMATS)
def test_error_bound_of_what_is_not_finite_is_infinite(name):
    """Assert that neither inf nor NaN is given a finite rounding error."""
    assert float(error_bound(np.inf, NUMBERS[name])) == np.inf
    assert not np.isfinite(float(error_bound(np.nan, NUMBERS[name])))


@settings(max_examples=300, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(1.0)
@example(-1.0 + 2.0**-53)
@example(2.0**-1022)
def test_unit_in_first_place_is_the_power_of_two_below(x):
    """Assert ufp(x) = 2^floor(log2 |x|) exactly, and 0 at 0."""
    assume(x == 0 or abs(x) >= 2.0**-1022)
    got = float(first_place(x))
    assert got == (0.0 if x == 0 else float(Fraction(2) ** exponent(Fraction(x))))


@pytest.mark.parametrize("name", FORMATS)
def test_decay_that_rounds_to_one_is_decided_at_the_neighbouring_floats(name):
    """Assert that e^-d rounds to 1 just below the limit and not just above it."""
    fmt = FORMATS[name]
    d = fmt.decay_rounds_to_one_below()
    with flint.ctx.workprec(256):
        tie = 1 - flint.arb(fmt.unit_roundoff) / 2
        assert (-flint.arb(math.nextafter(d, 0))).exp() > tie
        assert (-flint.arb(math.nextafter(d, math.inf))).exp() < tie
    if name != "fp64":
        middle = 1 - fmt.unit_roundoff / 2
        assert float(rounded(middle, NUMBERS[name])) == 1
        below = float(rounded(math.nextafter(middle, 0), NUMBERS[name]))
        assert below == 1 - fmt.unit_roundoff


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_of_a_format_agree_with_numpy(name):
    """Assert unit, smallest, largest against finfo, tf32 against its definition."""
    fmt = FORMATS[name]
    kinds = {"fp64": np.float64, "fp32": np.float32, **NARROW}
    if name == "tf32":
        assert fmt.unit_roundoff == 2.0**-11
        assert fmt.largest == (2 - 2.0**-10) * 2.0**127
        return
    info = ml_dtypes.finfo(kinds[name])
    assert fmt.unit_roundoff == float(info.eps) / 2
    assert fmt.smallest == float(info.smallest_subnormal)
    assert fmt.smallest_normal == float(info.smallest_normal)
    assert fmt.largest == float(info.max)


def test_an_unknown_format_lists_the_names():
    """Assert that the error says what would have been understood."""
    from lyapunov._errors import UsageError

    with pytest.raises(UsageError, match="fp7") as caught:
        format_named("fp7")
    assert "bf16" in caught.value.hint


def test_rounding_is_the_same_inside_and_outside_jit(rng):
    """Assert that XLA's fusion keeps every bit: no excess precision, no shortcuts."""
    x = rng.normal(size=4096) * 2.0 ** rng.integers(-30, 17, 4096)
    for name in NARROW:
        plain = round_to(jnp.asarray(x), NUMBERS[name])
        fused = jax.jit(lambda v, n: round_to(v * 1.0 + 0.0, n))(x, NUMBERS[name])
        assert same_bits(plain, fused).all()
