"""A text in several calls: the state goes from one call of Mamba-2 to the next with its
error, and chunks begin with the calls.

The oracle is NumPy's chunk (`oracles.kernels.mamba2`) in fp32, called for the chunks of
one call after another; exact are the paper's steps in fp64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov._errors import UsageError
from lyapunov.arithmetic import BoundedArithmetic, Exact, Form
from lyapunov.formats import BF16
from lyapunov.implementations.transformers.mamba1 import TORCH
from lyapunov.sublayers.ssd import chunked_scan, chunks
from oracles.kernels.mamba1 import cast
from oracles.kernels.mamba2 import Shape, Ssd


CALLS, CHUNK = (5, 7, 1, 10), 4
SEQ = sum(CALLS)
HEADS, SIZE, STATES, GROUPS = 4, 2, 3, 2
ENDS = np.cumsum(CALLS)


@pytest.mark.parametrize("calls", [(), (6,), (5, 1), CALLS, (3, 3, 3, 2), (9, 9)])
@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_chunks_begin_with_calls(calls, chunk):
    """Assert the tokens of each chunk, zeros behind them, and the way back."""
    seq = sum(calls) or 11
    tokens = jnp.arange(1, seq + 1)
    cut, joined = chunks(seq, chunk, calls)
    parts = np.asarray(cut(tokens))
    np.testing.assert_array_equal(joined(parts), tokens)
    began = []
    for row in parts:
        own = row[row > 0]
        assert 0 < len(own) <= chunk
        assert np.all(row[len(own) :] == 0)
        np.testing.assert_array_equal(own, own[0] + np.arange(len(own)))
        began.append(own[0] - 1)
    starts = np.cumsum([0, *calls[:-1]])
    expected = [
        first
        for start, n in zip(starts, calls or (seq,), strict=True)
        for first in range(start, start + n, chunk)
    ]
    assert began == expected


def test_calls_of_other_tokens_are_refused():
    with pytest.raises(UsageError, match="5 tokens are not what calls of 2, 2"):
        chunks(5, 4, (2, 2))


@pytest.fixture(scope="module")
def given():
    """dt, x, B, C, A and D of random fp32 numbers; decays from none to nearly all."""
    rng = np.random.default_rng(0)
    A_log = rng.uniform(-7, 1, HEADS).astype(np.float32)
    return {
        "dt": rng.exponential(0.3, (SEQ, HEADS)).astype(np.float32),
        "x": rng.normal(size=(SEQ, HEADS, SIZE)).astype(np.float32),
        "B": rng.normal(size=(SEQ, GROUPS, STATES)).astype(np.float32),
        "C": rng.normal(size=(SEQ, GROUPS, STATES)).astype(np.float32),
        "A_log": A_log,
        "A": -np.exp(A_log),
        "D": np.repeat(rng.normal(size=HEADS), SIZE).astype(np.float32),
    }


def in_fp32(given, handed=lambda state: state):
    """NumPy's y and last state, call by call; `handed` is done to what is handed on."""
    weights = {
        "A_log": given["A_log"],
        "D": given["D"],
        "out_proj.weight": np.zeros((1, HEADS * SIZE), np.float32),
        "conv1d.weight": np.zeros((HEADS * SIZE + 2 * GROUPS * STATES, 2), np.float32),
    }
    layer = Ssd(weights, "fp32", Shape(GROUPS, CHUNK), tf32=False)
    state = np.zeros((HEADS, SIZE, STATES), np.float32)
    out = []
    for start, end in zip(ENDS - CALLS, ENDS, strict=True):
        state = handed(state) if start else state
        for first in range(start, end, CHUNK):
            own = slice(first, min(first + CHUNK, end))
            B, C = (layer.of_heads(given[name][own]) for name in "BC")
            state, y = layer.chunk(state, given["dt"][own], given["x"][own], B, C)
            out.append(y)
    return np.concatenate(out), state


def in_fp64(given):
    """The paper's recurrence, token by token."""
    wide = {name: array.astype(np.float64) for name, array in given.items()}
    h, out = np.zeros((HEADS, SIZE, STATES)), []
    B, C = (np.repeat(wide[name], HEADS // GROUPS, axis=1) for name in "BC")
    for t in range(SEQ):
        fade = np.exp(wide["dt"][t] * wide["A"])[:, None, None]
        drive = wide["dt"][t][:, None, None] * wide["x"][t][:, :, None]
        h = fade * h + drive * B[t][:, None]
        read = (h * C[t][:, None]).sum(-1)
        out.append(read + wide["x"][t] * wide["D"].reshape(HEADS, SIZE))
    return np.array(out), h


def scanned(at, given, span=slice(None), start=None):
    """y and the state behind it, of an interpreter."""
    dt, x, B, C = (
        jnp.asarray(given[name][span], jnp.float64) for name in ("dt", "x", "B", "C")
    )
    x = x.reshape(len(x), -1)
    A, D = (jnp.asarray(given[name], jnp.float64) for name in "AD")
    if start is None:
        start = jnp.zeros((STATES, HEADS * SIZE))
    return chunked_scan(at, dt, x, B, C, A, D, start, CHUNK)


def bounding(calls=(), sites=()):
    tokens = max(calls) if calls else 1
    return BoundedArithmetic(
        {site: BF16.numbers() for site in sites},
        TORCH.model(),
        scan_depth=tokens,
        centred=True,
        form=Form(chunked=True, calls=calls),
    )


@pytest.fixture(scope="module")
def as_one(given):
    """The bound of all calls as one scan: y, and the state behind."""
    with jax.enable_x64(True):
        return jax.jit(lambda: scanned(bounding(CALLS), given))()


def ratio(measured, bounded):
    y = measured[0].reshape(SEQ, -1)
    state = measured[1].transpose(2, 0, 1).reshape(STATES, -1)
    return [
        np.max(np.abs(a - b.value) / np.asarray(b.error), axis=-1)
        for a, b in zip((y, state), bounded, strict=True)
    ]


def test_the_bound_of_all_calls_holds(given, as_one):
    """Assert it one-sided, of outputs and of the state, around what the steps give."""
    y, state = in_fp64(given)
    # fp64's own errors are 2^-29 of fp32's, which the bound is of
    for one in ratio((y, state), as_one):
        assert np.max(one) < 2.0**-20
    for one in ratio(in_fp32(given), as_one):
        assert 0 < np.max(one) <= 1
    # some hundred roundings a token at their worst, of which few add up
    assert max(map(np.max, ratio(in_fp32(given), as_one))) > 2.0**-8


@pytest.mark.parametrize(
    "wrong",
    [np.zeros_like, lambda state: cast(state, "bf16"), lambda state: state[::-1]],
    ids=["lost", "rounded", "of another head"],
)
def test_a_state_that_is_not_handed_on_as_it_was_breaks_it(given, as_one, wrong):
    """Assert violations from the second call on, and none in the first."""
    of_y, _ = ratio(in_fp32(given, wrong), as_one)
    assert np.max(of_y[: CALLS[0]]) <= 1
    assert of_y[CALLS[0]] > 1


def test_a_rounded_cache_is_handed_on_with_its_error(given):
    """Assert the bound call by call, each from the rounded state of the one before."""

    def chained():
        parts, start = [], None
        for first, end in zip(ENDS - CALLS, ENDS, strict=True):
            if start is not None:
                start = bounding(sites=["state"]).store("state", start)
            at = bounding((end - first,))
            y, start = scanned(at, given, slice(first, end), start)
            parts.append(y)
        return (
            Exact().join([p.value for p in parts]),
            Exact().join([p.error for p in parts]),
            start,
        )

    with jax.enable_x64(True):
        value, error, state = jax.jit(chained)()
    bounded = type(state)(value, error), state
    rounded = in_fp32(given, lambda state: cast(state, "bf16"))
    for one in ratio(rounded, bounded):
        assert 0 < np.max(one) <= 1
    # rounding is followed, not allowed for: a state that is not rounded is too far off
    assert np.max(ratio(in_fp32(given), bounded)[0]) > 1
