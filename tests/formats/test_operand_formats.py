"""What products read under scales of their rows, against torch and NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lyapunov._errors import UsageError
from lyapunov.arithmetic import Bounded
from lyapunov.arithmetic._bounded_values import RoundingModel
from lyapunov.arithmetic.bounded import BoundedArithmetic
from lyapunov.formats import (
    OPERAND_ROUNDINGS,
    operand_error_bound,
    operand_format_named,
    operand_format_of,
    round_operand,
)


torch = pytest.importorskip("torch")

NAMES = [
    *("fp8_e4m3-token", "fp8_e4m3-group128", "int8-token"),
    *("fp8_e4m3-static=0.01", "nvfp4=700"),
]
OF_NAMES = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def drawn(seed=0, rows=12, columns=300):
    """Rows of sizes apart, one with an outlier, one of zeros, one tiny; numbers of
    bf16, as the tensors in front of products are."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)) * np.exp2(rng.integers(-6, 4, (rows, 1)))
    x[1], x[2, 7], x[3] = 0.0, 300.0, 1e-6 * x[3]
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def e4m3(x):
    return torch.as_tensor(x).float().clamp(-448, 448).to(torch.float8_e4m3fn)


def by_kernel(x, name):
    """As the kernels of vLLM 0.33.0 do it, in torch's fp32, one way where several are
    (`csrc/quantization/w8a8`, `fp4/nvfp4_utils.cuh`); codes times scales in fp64."""
    given = torch.tensor(x, dtype=torch.float32)
    if name == "fp8_e4m3-token":
        scale = given.abs().amax(-1, keepdim=True) / 448
        scale = scale.clamp(min=1 / (448 * 512))
        return (e4m3(given / scale).double() * scale.double()).numpy()
    if name == "fp8_e4m3-group128":
        parts = [by_group(part) for part in given.split(128, dim=-1)]
        return torch.cat(parts, dim=-1).numpy()
    if name == "int8-token":
        most = given.abs().amax(-1, keepdim=True)
        inverse = torch.where(most > 0, 127 / most, 0.0)
        codes = (given * inverse).round().clamp(-128, 127)
        return (codes.double() * (most / 127).double()).numpy()
    if name.startswith("fp8_e4m3-static"):
        scale = torch.tensor(float(name.partition("=")[2]), dtype=torch.float32)
        return (e4m3(given * (1 / scale)).double() * scale.double()).numpy()
    whole = np.float32(name.partition("=")[2])
    found = np.zeros(x.shape)
    for start in range(0, x.shape[-1], 16):
        part = np.float32(x[:, start : start + 16])
        scale = np.abs(part).max(-1, keepdims=True) / np.float32(6) * whole
        scale = np.minimum(scale, 448).astype(ml_dtypes.float8_e4m3fn)
        own = scale.astype(np.float32)
        over = np.divide(part * whole, own, out=np.zeros_like(part), where=own > 0)
        codes = np.clip(over, -6, 6).astype(ml_dtypes.float4_e2m1fn)
        read = codes.astype(np.float64) * own.astype(np.float64) / np.float64(whole)
        found[:, start : start + 16] = read
    return found


def by_group(part):
    scale = (part.abs().amax(-1, keepdim=True).clamp(min=1e-10)) / 448
    return e4m3(part / scale).double() * scale.double()


def ours(x, name):
    return np.asarray(
        round_operand(jnp.asarray(x), operand_format_named(name).numbers())
    )


@OF_NAMES
def test_codes_are_those_of_the_kernels(name):
    """Assert that nothing differs by more than roundings of scales, but for values as
    far from one code as from the other, which may go either way."""
    x = drawn()
    found, theirs = ours(x, name), by_kernel(x, name)
    lost = OPERAND_ROUNDINGS * (np.abs(found) + np.abs(theirs) + np.abs(x))
    same = np.abs(found - theirs) <= lost
    tie = np.abs(np.abs(found - x) - np.abs(theirs - x)) <= lost
    assert np.all(same | tie)
    assert same.mean() > 0.99


@OF_NAMES
def test_the_error_bound_holds_and_is_attained(name):
    x = drawn(1)
    numbers = operand_format_named(name).numbers()
    error = np.abs(by_kernel(x, name) - x)
    bound = np.asarray(operand_error_bound(jnp.abs(jnp.asarray(x)), numbers))
    assert np.all(error <= bound)
    # beside an outlier all others are read as 0, which no spacing tells
    bound, error = (np.delete(one, 2, axis=0) for one in (bound, error))
    ratio = np.linalg.norm(bound) / np.linalg.norm(error)
    # uniform within half a spacing is 3 ** 0.5; a row of zeros and what is clipped less
    assert ratio < 3**0.5 * 1.3


def bounded(x, error, name, centred):
    """The rule of a store, on values known within errors."""
    unit = jnp.asarray(2.0**-24)
    model = RoundingModel.none()._replace(unit=unit)
    numbers = operand_format_named(name).numbers()
    at = BoundedArithmetic({"in_operand": numbers}, model, centred=centred)
    return at.store("in_operand", Bounded(jnp.asarray(x), jnp.asarray(error)))


@OF_NAMES
@pytest.mark.parametrize("centred", [True, False])
def test_whatever_is_near_is_read_within_the_bound(name, centred):
    """Assert it of kernels on inputs anywhere within their errors, ends as well: the
    largest of a row moves, and the scale with it."""
    x, rng = drawn(2), np.random.default_rng(3)
    for share in (0.0, 1e-6, 1e-3, 0.3):
        error = share * np.abs(x) * rng.random(x.shape)
        found = bounded(x, error, name, centred)
        assert np.all(np.isfinite(found.error))
        for _ in range(20):
            sign = rng.choice([-1.0, 0.0, 1.0, rng.random()], x.shape)
            read = by_kernel(np.float32(x + sign * error).astype(np.float64), name)
            # the input itself was rounded to fp32 here
            slack = 2.0**-23 * np.abs(x)
            again = bounded(x, error + slack, name, centred)
            assert np.all(np.abs(read - again.value) <= again.error)
            norm = np.linalg.norm(read - again.value, axis=-1)
            assert np.all(norm <= again.norm)


@OF_NAMES
def test_a_known_input_leaves_the_roundings_of_scales(name):
    """Assert that around the middle nothing else is left but at ties, and that without
    a middle the bound is that of the roundings themselves."""
    x = drawn(4)
    centred = bounded(x, np.zeros(x.shape), name, centred=True)
    few = np.asarray(centred.error) > 8 * OPERAND_ROUNDINGS * np.abs(x) + 1e-30
    assert few.mean() < 0.01
    free = bounded(x, np.zeros(x.shape), name, centred=False)
    moved = np.linalg.norm(by_kernel(x, name) - x)
    assert np.linalg.norm(free.error) < 3 * moved


# ---- mutants: kernels that are wrong


def test_a_scale_over_the_wrong_axis_is_above_the_bound():
    x = drawn(5)
    wrong = by_kernel(x.T.copy(), "int8-token").T
    found = bounded(x, np.zeros(x.shape), "int8-token", centred=True)
    assert np.mean(np.abs(wrong - found.value) > found.error) > 0.5


@pytest.mark.parametrize("largest", [240.0, 127.0])
def test_another_largest_code_is_above_the_bound(largest):
    """Assert it of e4m3's other largest, 240, and of a scale made for int8."""
    x = drawn(6)
    scale = np.abs(x).max(-1, keepdims=True) / largest
    safe = np.where(scale > 0, scale, 1.0)
    wrong = (x / safe).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale
    found = bounded(x, np.zeros(x.shape), "fp8_e4m3-token", centred=True)
    assert np.mean(np.abs(wrong - found.value) > found.error) > 0.2


# ---- names and configurations


def test_what_no_number_is_has_no_scale():
    x = drawn(7)
    x[4, 5], x[5, 6] = np.nan, np.inf
    for name in ("fp8_e4m3-token", "int8-token"):
        found = ours(x, name)
        assert np.isnan(found[[4, 5]]).all()
        assert np.isfinite(np.delete(found, [4, 5], 0)).all()
        error = np.asarray(bounded(x, np.zeros(x.shape), name, True).error)
        assert not np.isfinite(error[[4, 5]]).any()


@pytest.mark.parametrize(
    "name", ["int3", "fp8_e4m3", "nvfp4", "nvfp4=", "nvfp4=x", "nvfp4=-1", "nvfp4=inf"]
)
def test_unknown_names_and_scales_are_refused(name):
    with pytest.raises(UsageError) as caught:
        operand_format_named(name)
    assert caught.value.hint


CONFIGURED = {
    "fp8_e4m3-token": dict(num_bits=8, type="float", strategy="token", dynamic=True),
    "int8-token": dict(
        num_bits=8, type="int", strategy="token", dynamic=True, symmetric=True
    ),
    "fp8_e4m3-group128": dict(
        num_bits=8, type="float", strategy="group", group_size=128, dynamic=True
    ),
    "fp8_e4m3-static=": dict(
        num_bits=8, type="float", strategy="tensor", dynamic=False
    ),
    "nvfp4=": dict(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, dynamic=False
    ),
}


@pytest.mark.parametrize("name", CONFIGURED)
def test_configurations_name_their_format(name):
    assert operand_format_of(CONFIGURED[name]) == name
    wrong = CONFIGURED[name] | {"symmetric": False}
    with pytest.raises(UsageError, match="not covered"):
        operand_format_of(wrong)


def test_no_activations_are_none_and_others_are_refused():
    assert operand_format_of({}) is None
    with pytest.raises(UsageError, match="num_bits 6"):
        operand_format_of({"num_bits": 6, "type": "float", "dynamic": True})
