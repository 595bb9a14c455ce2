"""The rule of a store of 8-bit integers: never violated, reached, and no wider."""

import numpy as np
import pytest
import torch

from lyapunov._errors import UsageError
from lyapunov.bounds.hand_over import (
    beyond_int8,
    differing,
    int8_bound,
    window_of,
)

from ..serving.stand_in import quantised


FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def arrays(tensor):
    """A tensor as NumPy, bf16 included."""
    from lyapunov.serving._hooks import copied

    return copied(tensor)


def drawn(name, scale, seed=0):
    draw = torch.Generator().manual_seed(seed)
    # rows of very different sizes, as decays make them
    sizes = torch.exp(2 * torch.randn((6, 1, 16), generator=draw).clamp(-2, 2))
    return (torch.randn((6, 64, 16), generator=draw) * sizes * scale).to(FORMATS[name])


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e2])
@pytest.mark.parametrize("name", FORMATS)
def test_half_a_step_is_never_exceeded_and_reached(name, scale):
    """Assert every element within, and the largest near its bound: tight in fp32, where
    nothing but the half step is left."""
    state = drawn(name, scale)
    left, taken = arrays(state), arrays(quantised(state))
    assert not beyond_int8(left, taken).any()
    apart = np.abs(left.astype(float) - taken.astype(float))
    ratio = np.max(apart / int8_bound(left))
    assert ratio > {"fp32": 0.999, "fp16": 0.9, "bf16": 0.6}[name]
    step = np.abs(left.astype(float)).max(-2, keepdims=True) / 127
    share = np.max(int8_bound(left) / step)
    # half a step, the format's rounding of up to 127.5, and of the scale
    unit = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}[name]
    if scale == 1.0:
        assert share <= 0.5 + 128.5 * unit + 1e-3


WRONG = {
    "integers of 7 bits": lambda s: _steps(s, 63, -2),
    "scales over states": lambda s: _steps(s, 127, -1),
    "one scale a head": lambda s: _steps(s, 127, (-2, -1)),
    "cut off": lambda s: _steps(s, 127, -2, torch.trunc),
    "a row late": lambda s: quantised(s).roll(1, -1),
}


def _steps(state, ends, axis, rounded=torch.round):
    scale = state.abs().amax(axis, keepdim=True) / ends
    return rounded(state / scale) * scale


@pytest.mark.parametrize("name", WRONG)
def test_another_store_is_caught(name):
    """Assert that a store that rounds by other rules exceeds the bound somewhere."""
    state = drawn("fp32", 1.0)
    assert beyond_int8(arrays(state), arrays(WRONG[name](state))).any()


def test_what_no_rule_explains():
    """Assert NaN, a subnormal scale, and formats that states are not kept in."""
    state = drawn("fp32", 1.0)
    taken = quantised(state)
    taken[0, 0, 0] = torch.nan
    assert beyond_int8(arrays(state), arrays(taken)).sum() == 1
    tiny = drawn("fp16", 3e-7)
    assert not beyond_int8(arrays(tiny), arrays(quantised_or_zero(tiny))).any()
    with pytest.raises(UsageError, match="int32"):
        int8_bound(np.zeros((2, 2), np.int32))


def quantised_or_zero(state):
    """As SGLang's, whatever a scale of 0 gives taken as 0."""
    wide = state.float()
    amax = wide.abs().amax(-2, keepdim=True).clamp(min=1e-8)
    scale = (amax / 127).to(state.dtype).float()
    q = torch.round(wide / scale).clamp(-127, 127)
    return torch.nan_to_num(q * scale).to(state.dtype)


def test_copies_are_bits():
    """Assert signs of zero and NaN by their bits, other formats by their numbers."""
    one = np.array([0.0, 1.0, np.nan], np.float32)
    assert differing(one, one.copy()).sum() == 0
    assert differing(one, np.array([-0.0, 1.0, np.nan], np.float32)).tolist() == [
        True, False, False,
    ]  # fmt: skip
    assert differing(one, one.astype(np.float16)).sum() == 0
    third = np.array([1 / 3])
    assert differing(third.astype(np.float32), third.astype(np.float16)).all()


def test_windows_are_the_last_inputs():
    """Assert zeros in front of the text, what is unknown behind a prefix, formats."""
    inputs = np.arange(12.0).reshape(6, 2) + 1 / 3
    inputs = inputs.astype(np.float32).astype(float)
    rows, lost = window_of(inputs, 2, 3, "fp32", begins=True)
    assert (lost, rows.tolist()) == (0, [[0, 0], *inputs[:2].tolist()])
    rows, lost = window_of(inputs, 2, 3, "fp32", begins=False)
    assert (lost, rows.tolist()) == (1, inputs[:2].tolist())
    rows, lost = window_of(inputs, 5, 3, "fp16", begins=True)
    assert (lost, rows.dtype) == (0, np.float16)
    assert rows.tolist() == inputs[2:5].astype(np.float16).tolist()
    with pytest.raises(UsageError, match="'int8' is not held"):
        window_of(inputs, 5, 3, "int8", begins=True)
