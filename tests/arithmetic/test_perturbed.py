"""Offsets at stores: free ones for derivatives, random ones of a rounding's size."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lyapunov.arithmetic import Exact, Perturbed, Sampled, perturbed
from lyapunov.formats import BF16, FP16, FP32, state_format_named
from lyapunov.recurrences.mamba1 import selective_scan

from ..helpers import assert_within, gamma


SEQ, INNER, STATES = 7, 3, 2
SCAN_SITES = ("state", "state_read", "read_out")


@pytest.fixture
def inputs(rng):
    dt = np.exp(rng.normal(size=(SEQ, INNER)) - 2)
    u, D = rng.normal(size=(SEQ, INNER)), rng.normal(size=INNER)
    B, C = rng.normal(size=(2, SEQ, STATES))
    A = -np.exp(rng.normal(size=(STATES, INNER)))
    return tuple(map(jnp.asarray, (dt, u, B, C, A, D, np.zeros((STATES, INNER)))))


def scan_by_hand(inputs, offsets):
    """The recurrence in NumPy loops, with the offsets where they belong."""
    dt, u, B, C, A, D, h = (np.asarray(x) for x in inputs)
    out = np.zeros((SEQ, INNER))
    for t in range(SEQ):
        h = np.exp(dt[t] * A) * h + (dt[t] * u[t]) * B[t][:, None]
        read = h + offsets["state_read"][t]
        h = h + offsets["state"][t]
        out[t] = C[t] @ read + offsets["read_out"][t] + D * u[t]
    return out, h


def shapes():
    state = (SEQ, STATES, INNER)
    return {"state": state, "state_read": state, "read_out": (SEQ, INNER)}


@pytest.mark.parametrize("at_once", [2**26, 2 * INNER * STATES])
def test_gauges_inside_a_scan_sum_the_adjoints_by_hand(
    inputs, rng, at_once, monkeypatch
):
    """Assert sum |adjoint| size and its squares of every site, tokens in blocks too.

    The scan is linear in its offsets, so that adjoints are differences.
    """
    monkeypatch.setattr(perturbed, "STATES_AT_ONCE", at_once)
    weight = rng.normal(size=(SEQ, INNER))
    own = {site: i + 1.0 for i, site in enumerate(SCAN_SITES)}
    sizes = lambda site, x: (own[site] * jnp.ones_like(x),)

    def read(gauges):
        at = Perturbed({}, gauges=gauges, sizes=sizes)
        y, _ = selective_scan(at, *inputs)
        assert set(at.repeats) == set(SCAN_SITES)
        return jnp.sum(y * weight)

    sums = jax.grad(read)({site: jnp.zeros((1, 2)) for site in SCAN_SITES})
    plain = {site: np.zeros(shape) for site, shape in shapes().items()}
    base = np.sum(scan_by_hand(inputs, plain)[0] * weight)
    for site, shape in shapes().items():
        adjoint = np.zeros(shape)
        for place in np.ndindex(shape):
            moved = {k: v.copy() for k, v in plain.items()}
            moved[site][place] = 1.0
            there = np.sum(scan_by_hand(inputs, moved)[0] * weight)
            adjoint[place] = (there - base) * own[site]
        size = np.sum(np.abs(weight)) * 100 * own[site]
        each = size * gamma(300, 2.0**-53)
        worst, square = sums[site][0]
        assert_within(worst, np.abs(adjoint).sum(), adjoint.size * each, site)
        limit = adjoint.size * each * (2 * np.abs(adjoint).max() + each)
        assert_within(square, np.sum(adjoint**2), limit, site)
        assert worst > 1e3 * adjoint.size * each


def test_without_offsets_inside_the_scan_is_exact_arithmetic(inputs):
    """Assert it of a search that moves only the sites outside."""
    y, _ = selective_scan(Perturbed({"conv": jnp.zeros(())}), *inputs)
    expected, _ = selective_scan(Exact(), *inputs)
    assert_within(y, expected, np.abs(expected).max() * gamma(50, 2.0**-53))


def test_a_tensor_stored_twice_is_known_as_one():
    """Assert `repeats` names the earlier store, and only of that tensor."""
    zero = jnp.zeros(())
    at = Perturbed({"first": zero, "second": zero, "third": zero})
    x = at.store("first", jnp.arange(3.0))
    at.store("second", x)
    at.store("third", at.add(x, 1.0))
    assert at.repeats == {"first": (), "second": ("first",), "third": ()}


@pytest.mark.parametrize("rows", [2, 4, 6])
def test_a_tensor_stored_again_in_blocks_of_rows_is_known_as_one(rows):
    """Assert it of what goes into the blocks and of what comes out of them, and that
    nothing is drawn again; a block's rows are no longer the tensor itself."""

    def body(at, state, x):
        return state, at.store("third", at.add(at.store("second", x), 1.0))

    gauge = jnp.zeros((0, 2))
    at = Perturbed({}, gauges=dict.fromkeys(("first", "second", "third", "4th"), gauge))
    _, y = at.in_row_blocks(body, None, at.store("first", jnp.arange(6.0)), rows)
    at.store("4th", y)
    assert at.repeats == {
        "first": (), "second": ("first",), "third": (), "4th": ("third",)
    }  # fmt: skip

    again = lambda at, state, x: (state, at.store("second", x))
    sites: Any = dict.fromkeys(("first", "second", "third"), BF16.numbers())
    at = Sampled(sites, jax.random.key(0))
    x = at.store("first", jnp.linspace(1.0, 2.0, 6))
    _, y = at.in_row_blocks(again, None, x, rows)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(at.store("third", y), x)


# ---- random offsets


@pytest.mark.parametrize("fmt", [BF16, FP16, FP32])
def test_draws_have_a_roundings_size(fmt, rng):
    """Assert the largest, mean and variance of offsets against those of a rounding."""
    count = 200_000
    x = jnp.asarray(rng.uniform(1, 2, count))
    at = Sampled({"site": fmt.numbers()}, jax.random.key(0))
    offset = np.asarray(at.store("site", x) - x) / fmt.unit_roundoff
    # b is u for every number from 1 to 2, but for fp64's own 2^-53 in x + offset
    own = 2.0**-52 / fmt.unit_roundoff
    assert np.abs(offset).max() <= 1 + own
    assert np.abs(offset).max() >= 0.999
    # five standard errors: uniform variance 1/3, of its square 4/45
    assert abs(offset.mean()) <= 5 * (1 / 3 / count) ** 0.5
    assert abs(np.mean(offset**2) - 1 / 3) <= 5 * (4 / 45 / count) ** 0.5 + 2 * own


def test_nothing_is_drawn_where_nothing_is_rounded(rng):
    """Assert it of numbers of the format, zeros, and a second store of a tensor."""
    bf16, fp32 = BF16.numbers(), FP32.numbers()
    sites: dict[str, Any] = {
        "a": bf16,
        "b": bf16,
        "wide": fp32,
        "narrow": FP16.numbers(),
    }
    at = Sampled(sites, jax.random.key(0))
    held = jnp.asarray(rng.normal(size=50).astype(ml_dtypes.bfloat16).astype(float))
    np.testing.assert_array_equal(at.store("a", held), held)
    np.testing.assert_array_equal(at.store("a", jnp.zeros(5)), jnp.zeros(5))
    x = at.store("a", jnp.asarray(rng.normal(size=50)))
    np.testing.assert_array_equal(at.store("b", x), x)
    np.testing.assert_array_equal(at.store("wide", x), x)
    # bf16 has a larger range than fp16, and fewer bits: neither holds the other
    assert np.any(at.store("narrow", x * 1e-4) != x * 1e-4)
    fresh = Sampled(sites, jax.random.key(0))
    y = fresh.store("wide", jnp.asarray(rng.normal(size=50)))
    assert np.any(fresh.store("a", y) != y)


def test_the_same_key_draws_the_same_and_the_sign_turns_it(inputs):
    """Assert opposite offsets of one key, and others of another."""
    sites: dict[str, Any] = {"state": BF16.numbers()}

    def run(key, sign=1.0):
        return np.asarray(selective_scan(Sampled(sites, key, sign), *inputs)[0])

    exact = np.asarray(selective_scan(Exact(), *inputs)[0])
    key = jax.random.key(3)
    np.testing.assert_array_equal(run(key), run(key))
    size = np.abs(run(key) - exact).max()
    # the scan is linear in offsets whose sizes are the state's, which barely move
    assert_within(run(key) - exact, exact - run(key, -1.0), size * 2 * 2.0**-8)
    assert np.abs(run(jax.random.key(4)) - run(key)).max() > size / 10


def test_each_token_of_a_scan_draws_anew(inputs):
    """Assert that no two tokens of a constant state share their offsets."""
    _, _, B, C, A, D, state = inputs
    ones = jnp.ones((SEQ, INNER))
    slow = (1e-9 * ones, ones, 0 * B, jnp.ones_like(C), A, 0 * D, state + 1 / 3)
    y, _ = selective_scan(
        Sampled({"state_read": BF16.numbers()}, jax.random.key(0)), *slow
    )
    assert len(np.unique(np.asarray(y)[:, 0])) == SEQ


def test_a_stochastic_state_is_rounded_as_it_says(rng):
    """Assert neighbours only, and a mean within its standard error."""
    numbers = state_format_named("bf16-stochastic").numbers()
    x = jnp.full((200, 100), 1 + 2.0**-9)
    at = Sampled({"state": numbers}, jax.random.key(0))
    stored = np.asarray(at.store("state", x))
    assert set(np.unique(stored)) == {1.0, 1 + 2.0**-7}
    assert abs(np.mean(stored == 1.0) - 3 / 4) <= 5 * (3 / 16 / x.size) ** 0.5


def test_an_inner_format_rounds_every_operation_once(rng):
    """Assert one offset for a sum, and none at the store behind it."""
    numbers = FP32.numbers()
    at = Sampled({"site": numbers}, jax.random.key(0), inner=numbers)
    x = jnp.asarray(rng.uniform(0.5, 0.75, 1000))
    total = at.add(x, x)
    assert np.any(total != 2 * x)
    assert np.abs(total - 2 * x).max() <= 2.0**-24
    np.testing.assert_array_equal(at.store("site", total), total)
