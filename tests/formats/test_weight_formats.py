"""Formats of quantised weights against torch, ml_dtypes, closed forms and bounds."""

import ml_dtypes
import numpy as np
import pytest

from lyapunov.formats import E2M1_LARGEST, NF4, dequantised, needs_largest, row_period
from lyapunov.formats._weight_table import WEIGHT_FORMAT_TABLE
from lyapunov.formats._weights import FP4_CODES


SHAPES = [(5, 64), (130, 300), (3, 40), (1, 1), (256, 128)]
U32 = 2.0**-24


def drawn(shape, scale=0.02, seed=0):
    """Weights with a row of zeros and an outlier, fp32."""
    w = np.random.default_rng(seed).normal(size=shape) * scale
    if shape[0] > 2:
        w[1] = 0.0
        w[2, 0] = 40 * scale
    return w.astype(np.float32)


def blocks_of(w, rows, columns):
    """Slices of a matrix that share a scale, one by one."""
    n, k = w.shape
    for i in range(0, n, rows or n):
        for j in range(0, k, columns or k):
            yield np.s_[i : i + (rows or n), j : j + (columns or k)]


FP8 = [name for name in WEIGHT_FORMAT_TABLE if name.startswith("fp8")]
INTEGERS = [name for name in WEIGHT_FORMAT_TABLE if name.startswith(("int4-", "int8-"))]
ASYMMETRIC = [name for name in WEIGHT_FORMAT_TABLE if "_asym" in name]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FP8)
def test_fp8_is_torchs_cast_under_a_scale(name, shape):
    """Bit for bit, block by block."""
    torch = pytest.importorskip("torch")
    w = drawn(shape)
    dtype = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[
        name.partition("-")[0]
    ]
    _, rows, columns, _ = WEIGHT_FORMAT_TABLE[name]
    expected = np.zeros(shape)
    for place in blocks_of(w, rows, columns):
        part = torch.tensor(w[place])
        scale = part.abs().max() / torch.finfo(dtype).max
        if scale > 0:
            codes = (part / scale).to(dtype)
            expected[place] = codes.double().numpy() * scale.double().item()
    np.testing.assert_array_equal(dequantised(w, name), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_torchs_fake_quantisation(name, shape):
    """Half a step apart at most, and torch's choice where that is no tie."""
    torch = pytest.importorskip("torch")
    bits = int(name[3])
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    w = drawn(shape)
    found = dequantised(w, name)
    _, rows, columns, _ = WEIGHT_FORMAT_TABLE[name]
    for place in blocks_of(w, rows, columns):
        part = w[place]
        scale = np.float32(np.abs(part).max() / np.float32((high - low) / 2))
        if scale == 0:
            assert not found[place].any()
            continue
        theirs = torch.fake_quantize_per_tensor_affine(
            torch.tensor(part), float(scale), 0, low, high
        )
        codes, expected = found[place] / float(scale), theirs.numpy() / float(scale)
        quotient = part.astype(np.float64) / float(scale)
        # torch multiplies by 1/s: another fp32 rounding of a quotient below 128
        tie = np.abs(np.abs(quotient - np.trunc(quotient)) - 0.5) < 2**8 * 2 * U32
        assert np.all((np.abs(codes - np.rint(expected)) < 1e-4) | tie)
        assert np.abs(codes).max() <= -low
        # the outermost quotient is half a step beyond the largest code
        assert np.abs(codes - quotient).max() <= 0.5 + 2**8 * U32


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ASYMMETRIC)
def test_zero_points_take_a_code_that_is_0(name, shape):
    """Each weight by the nearest step between its block's ends, which both have a code
    of their own but for half a step that the rounded zero point takes."""
    bits = int(name[3])
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    w = drawn(shape) + np.float32(0.01)
    w[0] = np.abs(w[0])  # a block whose least is above 0
    found = dequantised(w, name)
    _, rows, columns, _ = WEIGHT_FORMAT_TABLE[name]
    for place in blocks_of(w, rows, columns):
        part, got = w[place].astype(np.float64), found[place]
        least, most = min(part.min(), 0.0), max(part.max(), 0.0)
        step = (most - least) / (high - low)
        codes = got / step
        assert np.all(np.abs(codes - np.rint(codes)) < 2**bits * 8 * U32)
        assert np.ptp(codes) <= high - low + 1e-3
        # half a step, and half a one where the zero point was rounded
        assert np.abs(got - part).max() <= step * (1 + 2**bits * 8 * U32)
        inside = (part > least + step) & (part < most - step)
        off = np.abs(got - part)[inside]
        assert np.all(off <= step * (0.5 + 2**bits * 8 * U32))
    assert not dequantised(0 * w, name).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_mxfp8_is_ml_dtypes_under_a_power_of_two(shape):
    w = drawn(shape)
    expected = np.zeros(shape)
    for place in blocks_of(w, 1, 32):
        size = np.abs(w[place]).max()
        if size:
            scale = np.exp2(np.floor(np.log2(size.astype(np.float64))) - 8)
            clipped = np.clip(w[place] / scale, -448, 448).astype(np.float32)
            codes = clipped.astype(ml_dtypes.float8_e4m3fn)
            expected[place] = codes.astype(np.float64) * scale
    np.testing.assert_array_equal(dequantised(w, "mxfp8"), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_are_what_compressed_tensors_stores(bits):
    """Codes and zero points of its own packing (committed), of scales in fp32."""
    from tests.checkpoints.quantised.made_by_libraries import array, kept

    case = kept()["compressed_tensors"][f"int{bits}-group-asymmetric"]
    found = dequantised(array(case["given"]), f"int{bits}_asym-group32")
    np.testing.assert_array_equal(found.astype(np.float32), array(case["read"]))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4_bits_are_what_bitsandbytes_stores(kind):
    """Weights that the library has rounded are as they are, and so are the codes that
    it takes for others (committed, since it is not installed here)."""
    from tests.checkpoints.quantised.made_by_libraries import array, kept

    case = kept()["bitsandbytes"][kind]
    theirs = array(case["read"])
    table = {"nf4": NF4, "fp4": FP4_CODES}[kind]
    np.testing.assert_array_equal(array(case["stored"]["m.weight.quant_map"]), table)
    np.testing.assert_array_equal(dequantised(theirs, kind).astype(np.float32), theirs)
    given = array(case["given"])
    np.testing.assert_array_equal(dequantised(given, kind).astype(np.float32), theirs)


def test_nf4_is_the_nearest_of_16_values():
    """Of the 16 of the QLoRA paper's file format, 64 weights in a row of storage."""
    w = drawn((6, 40))
    found = dequantised(w, "nf4")
    flat, out = w.ravel().astype(np.float64), found.ravel()
    for start in range(0, flat.size, 64):
        part, got = flat[start : start + 64], out[start : start + 64]
        size = np.abs(part).max()
        if not size:
            assert not got.any()
            continue
        distance = np.abs(part[:, None] - NF4.astype(np.float64) * size)
        # fp32 rounds the quotient: another value as near as its last digit tells
        assert np.all(np.abs(got - part) <= distance.min(axis=1) + 2 * U32 * size)
        assert np.all(np.isin(got, NF4.astype(np.float64) * size))
    assert NF4[7] == 0
    assert np.all(np.diff(NF4) > 0)
    # quantiles of a normal distribution as the paper makes them
    from scipy.stats import norm

    offset = 0.9677083
    upper = norm.ppf(np.linspace(offset, 0.5, 9))[:-1]
    lower = norm.ppf(np.linspace(offset, 0.5, 8))[:-1]
    quantiles = np.sort(np.concatenate([upper, [0.0], -lower])) / upper.max()
    np.testing.assert_allclose(NF4, quantiles, atol=1e-6)


def e2m1(x):
    """ml_dtypes' own cast to 4 bits, which has no values beyond 6."""
    return x.astype(ml_dtypes.float4_e2m1fn).astype(np.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_nvfp4_is_ml_dtypes_under_two_scales(shape):
    w = drawn(shape)
    over = np.float32(np.abs(w).max()) / np.float32(6 * 448)
    expected = np.zeros(shape)
    for place in blocks_of(w, 1, 16):
        size = np.float32(np.abs(w[place]).max() / np.float32(6)) / over
        scale = np.minimum(size, 448).astype(ml_dtypes.float8_e4m3fn)
        single = scale.astype(np.float32) * over
        if single > 0:
            codes = e2m1(np.clip(w[place] / single, -6, 6))
            expected[place] = codes * scale.astype(np.float64) * np.float64(over)
    np.testing.assert_array_equal(dequantised(w, "nvfp4"), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_mxfp4_is_ml_dtypes_under_a_power_of_two(shape):
    w = drawn(shape)
    expected = np.zeros(shape)
    for place in blocks_of(w, 1, 32):
        size = np.abs(w[place]).max()
        if size:
            # e8m0 holds nothing but powers of 2
            scale = np.exp2(np.floor(np.log2(size.astype(np.float64))) - 2)
            stored = scale.astype(ml_dtypes.float8_e8m0fnu).astype(np.float64)
            assert stored == scale
            expected[place] = e2m1(np.clip(w[place] / scale, -6, 6)) * scale
    np.testing.assert_array_equal(dequantised(w, "mxfp4"), expected)


def test_e2m1_ties_go_to_even_codes():
    ties = np.array([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0]], np.float32)
    signs = np.concatenate([ties, -ties], axis=1)
    # a block whose largest is 6 has scale 1
    found = dequantised(signs, "mxfp4")
    np.testing.assert_array_equal(found[0, :8], [0, 1, 1, 2, 2, 4, 4, 6])
    np.testing.assert_array_equal(found[0, 8:], -found[0, :8])
    assert E2M1_LARGEST == 6.0


@pytest.mark.parametrize("std", [1.0, 0.02, 0.001, 1e-6])
@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("fp8_e4m3-tensor", 2.6e-2),
        ("fp8_e4m3-row", 2.6e-2),
        ("fp8_e4m3-block128", 2.6e-2),
        ("int8-row", 6.5e-3),
        ("nf4", 9.2e-2),
        ("nvfp4", 9.5e-2),
        ("mxfp4", 1.18e-1),
        ("fp4", 1.22e-1),
        ("int4-group128", 1.11e-1),
        ("int4_asym-group128", 1.01e-1),
        ("int8_asym-row", 6.5e-3),
    ],
)
def test_small_weights_move_no_more_than_large_ones(name, share, std):
    """Without a scale weights of 0.001 moved by 56 % in fp8_e4m3, not by 2.6 %.

    Shares of normal weights. fp8: errors uniform over a spacing of 2^-3 in a binade
    where significands lie log-uniformly, 2^-3 / sqrt(12) sqrt(3 / (8 ln 2)) = 2.66e-2.
    int8: a spacing of 2 max / 255 with a largest of 256 near 2.9 sigma. The others are
    figures of libraries that write such files.
    """
    w = np.random.default_rng(1).normal(size=(256, 256)).astype(np.float32)
    w = w * np.float32(std)
    moved = np.linalg.norm(dequantised(w, name) - w) / np.linalg.norm(w)
    assert moved == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize("name", WEIGHT_FORMAT_TABLE)
def test_rows_of_a_tall_matrix_are_those_of_the_whole(name):
    """As an embedding is read: from a multiple of the period on."""
    w = drawn((260, 40))
    whole, period = dequantised(w, name), row_period(name, 40)
    largest = np.abs(w).max() if needs_largest(name) else None
    for start in range(0, 260, period):
        part = dequantised(w[start : start + period], name, largest)
        np.testing.assert_array_equal(part, whole[start : start + period])


@pytest.mark.parametrize("name", WEIGHT_FORMAT_TABLE)
def test_each_matrix_of_a_stack_has_its_own_scales(name):
    stack = np.stack([drawn((4, 70), 1.0), drawn((4, 70), 1e-3, 1)])
    found = dequantised(stack, name)
    for one, other in zip(stack, found, strict=True):
        np.testing.assert_array_equal(dequantised(one, name), other)


@pytest.mark.parametrize("name", WEIGHT_FORMAT_TABLE)
def test_zeros_stay_zeros_and_nothing_is_lost_at_the_ends(name):
    """Assert finite values from the smallest to nearly the largest fp32."""
    assert not dequantised(np.zeros((3, 40), np.float32), name).any()
    for size in (1e-44, 1e-38, 1e36):
        w = drawn((6, 40), size)
        assert np.all(np.isfinite(dequantised(w, name))), size


@pytest.mark.parametrize(
    "name", [n for n in WEIGHT_FORMAT_TABLE if n not in (*INTEGERS, *ASYMMETRIC)]
)
def test_what_was_read_is_written_again_as_it_is(name):
    """Codes under the same scales are fixed points, where the largest code is kept: an
    integer's lies half a step below the largest weight."""
    w = drawn((8, 128))
    once = dequantised(w, name)
    again = dequantised(once, name)
    np.testing.assert_allclose(again, once, rtol=2.0**-20, atol=0)
