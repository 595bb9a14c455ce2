"""The scan lemma: one bound for every bracketing, never exceeded, never vacuous."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import BoundedArithmetic, RoundingModel
from lyapunov.arithmetic.rules import scans
from lyapunov.implementations.mamba_ssm.mamba1 import scan_depth
from oracles import scan_orders as orders

from ..helpers import gamma


LENGTHS = [1, 2, 127, 128, 129, 2047, 2048, 2049]
FAST = [1, 128, 129, 2049]
"""One, a whole block and one token more, one token more than a whole chunk."""
CHANNELS = 4
UNIT = 2.0**-24


@partial(jax.jit, static_argnames="depth")
def _bound(a, b, unit, underflow, depth):
    model = RoundingModel.none()._replace(unit=unit, underflow=underflow)
    at = BoundedArithmetic({}, model, scan_depth=depth)

    def token(at, state, inputs):
        after = at.advance(state, *inputs)
        # the state as it is read, before any contraction
        return after, scans.finish(at, after)

    _, out = at.scan(token, at.initial_state(jnp.zeros(CHANNELS)), (a, b))
    return out.value, out.error


def bound(a, b, depth, unit=UNIT, underflow=0.0):
    return map(np.asarray, _bound(a, b, unit, underflow, depth))


def magnitudes(a, b):
    total, out = np.zeros(CHANNELS), []
    for decay, drive in zip(a, b, strict=True):
        total = decay * total + np.abs(drive)
        out.append(total)
    return np.stack(out)


def exact_states(a, b):
    """In fp80, 2^-64 an operation."""
    state, out = np.zeros(CHANNELS, np.longdouble), []
    for decay, drive in zip(a.astype(np.longdouble), b, strict=True):
        state = decay * state + drive
        out.append(state)
    return np.stack(out)


def assert_holds(h, a, b, error, what):
    # the fp80 sum's own rounding, whose terms are those of the scan of magnitudes
    own = gamma(2 * len(a) + 2, 2.0**-63) * magnitudes(a, b)
    distance = np.abs(h - exact_states(a, b)).astype(np.float64)
    over = distance > error + own
    assert not over.any(), (
        f"{what}: {over.sum()} of {over.size} states, "
        f"{np.max(distance[over] / error[over]):.3g} times over"
    )


def depth_of(order: str, seq: int) -> int:
    return {
        "sequential": seq,
        "tree": max(1, math.ceil(math.log2(seq))) if seq > 1 else 1,
        "chunked": 16 + math.ceil(seq / 16),
        "block_scan": scan_depth(seq),
    }[order]


def drives(rng, kind: str, seq: int):
    """Decays and drives in fp32, each kind hard in its own way."""
    a = np.exp(-rng.exponential(0.1, (seq, CHANNELS)))
    b = rng.normal(size=(seq, CHANNELS))
    if kind == "ones":
        a[:] = 1.0
    elif kind == "slow":
        a[:] = 1 - 2.0**-20 * rng.integers(0, 3, a.shape)
    elif kind == "zeros":
        a[rng.random(a.shape) < 0.05] = 0.0
    elif kind == "subnormal":
        a[rng.random(a.shape) < 0.1] = 2.0**-130
        b[:] *= 1e-3
    elif kind == "interrupted":
        a = np.exp(-rng.exponential(1e-3, a.shape))
        a[50::97] = np.exp(-50.0)
        b = np.abs(b)
    elif kind == "repeated":
        a[:], b[:] = np.float32(0.99), np.float32(0.1234567)
    elif kind == "cancelling":
        a[:], b[::2] = 1 - 2.0**-24, 1.0
        b[1::2] = -1.0 + 2.0**-23
    return orders.to_fp32(a), orders.to_fp32(b)


KINDS = [
    "plain",
    "ones",
    "slow",
    "zeros",
    "subnormal",
    "interrupted",
    "repeated",
    "cancelling",
]


@pytest.mark.parametrize(
    "seq",
    [s if s in FAST else pytest.param(s, marks=pytest.mark.slow) for s in LENGTHS],
)
def test_bound_holds_in_every_order(rng, seq):
    """Assert no violation in real fp32: four orders, fused or not, hard inputs."""
    kinds = KINDS if seq < 1000 else ["plain", "slow", "interrupted", "cancelling"]
    for kind in kinds:
        a, b = drives(rng, kind, seq)
        for order in ("sequential", "tree", "chunked", "block_scan"):
            _, error = bound(a, b, depth_of(order, seq))
            for name in ("fused", "unfused"):
                h = getattr(orders, order)(a, b, orders.FP32[name])
                underflow = 2.0**-149 * (2 + magnitudes(a, b).max())
                assert_holds(h, a, b, error + 2 * seq * underflow, (kind, order, name))


@pytest.mark.parametrize("seq", [129, 2049])
@pytest.mark.parametrize("kind", ["zeros", "subnormal", "interrupted"])
def test_bound_holds_where_subnormals_are_flushed(rng, seq, kind):
    """Assert it with the declared 2^-126 an operation and products that are flushed."""
    a, b = drives(rng, kind, seq)
    for order in ("sequential", "block_scan"):
        _, error = bound(a, b, depth_of(order, seq), underflow=2.0**-126)
        h = getattr(orders, order)(a, b, orders.FP32["flushed"])
        assert_holds(h, a, b, error, (kind, order))


def test_bound_holds_where_a_product_of_decays_is_flushed():
    """Assert it for two strong decays after a large state, and silence after them."""
    a = np.ones((129, CHANNELS))
    a[9:11] = 1e-20  # of one thread, which multiplies them before it sees the state
    b = np.zeros_like(a)
    b[0] = 1e4
    a, b = orders.to_fp32(a), orders.to_fp32(b)
    _, error = bound(a, b, scan_depth(129), underflow=2.0**-126)
    h = orders.block_scan(a, b, orders.FP32["flushed"])
    assert_holds(h, a, b, error, "flushed product")


def test_bound_holds_where_every_level_of_a_tree_is_flushed():
    """Assert it for terms that meet the last token at just below 2^-126 each."""
    seq = 64
    a, b = np.full((seq, CHANNELS), 2.0**-6), np.zeros((seq, CHANNELS))
    for level in range(5):
        s = seq - 1 - 2**level  # the end of the stretch that joins at this level
        b[s] = 0.99 * 2.0**-126 * 2.0 ** (6 * 2**level)
    a, b = orders.to_fp32(a), orders.to_fp32(b)
    _, error = bound(a, b, depth_of("tree", seq), underflow=2.0**-126)
    h = orders.tree(a, b, orders.FP32["flushed"])
    assert_holds(h, a, b, error, "flushed levels")


def test_exact_state_is_the_value(rng):
    """Assert that the carried value is the exact recurrence, in fp64."""
    a, b = drives(rng, "plain", 129)
    value, _ = bound(a, b, 1)
    own = gamma(3 * 129, 2.0**-53) * magnitudes(a, b)
    assert (np.abs(value - exact_states(a, b)) <= own).all()


def test_bound_is_attained_within_small_factors(rng):
    """Assert tightness on worst cases.

    One token: a product and a sum, of which the lemma counts both and one more.
    Equal signs in sequence with units of bf16, where all roundings go one way: 6
    times. The products by 1 are exact and charged (twice), the late terms go through
    few additions and are charged all (twice), u ufp(x) is less than u x (1.5 times).
    """
    one = np.full((1, CHANNELS), 1 + UNIT)
    _, error = bound(np.ones_like(one), one, 1)
    assert (error <= 3 * UNIT).all()

    bits = 8
    a = np.ones((64, CHANNELS))
    b = np.full_like(a, orders.to_bits(bits, 1.0))
    b[1:] = 2.0**-9 * 1.02  # just above half an ulp of 1: always rounded up
    b = orders.to_bits(bits, b)
    h = orders.sequential(a, b, orders.BF16)
    _, error = bound(a, b, 64, unit=2.0**-bits)
    distance = np.abs(h - exact_states(a, b)).astype(np.float64)
    assert distance[-1].max() * 6 >= error[-1].max()


def sequential_bound(a, b, unit):
    """The trap: sum over s of ((1 + u)^(2 (t - s) + 1) - 1) prod a |b_s|.

    Right for sequential order, where term s goes through t - s + 1 additions.
    """
    inflated, plain = np.zeros(CHANNELS), np.zeros(CHANNELS)
    out = []
    for decay, drive in zip(a, np.abs(b), strict=True):
        inflated = decay * (1 + unit) ** 2 * inflated + (1 + unit) * drive
        plain = decay * plain + drive
        out.append(inflated - plain)
    return np.stack(out)


def late_terms_in_a_tree():
    """Late terms dominate and a tree adds them up repeatedly: a falls, b grows."""
    rng = np.random.default_rng(3)
    a = np.exp(-rng.exponential(1.0, (512, CHANNELS)))
    b = rng.normal(size=a.shape)
    return orders.to_bits(8, a), orders.to_bits(8, b)


def test_sequential_bound_is_violated_by_a_tree_and_ours_is_not():
    """Assert the documented trap, and that our bound is not that one."""
    a, b = late_terms_in_a_tree()
    unit = 2.0**-8
    exact = exact_states(a, b)
    trap = sequential_bound(a, b, unit)
    in_sequence = orders.sequential(a, b, orders.BF16)
    in_a_tree = orders.tree(a, b, orders.BF16)
    assert (np.abs(in_sequence - exact) <= trap * (1 + 1e-9)).all()
    assert (np.abs(in_a_tree - exact) > trap).any()
    _, error = bound(a, b, 9, unit=unit)
    assert_holds(in_a_tree, a, b, error, "tree, bf16 units")
    # nor is it the trap in disguise: it is larger where a term is late
    assert (error > trap).all()


@pytest.mark.parametrize("seq", [1, 64, 512])
def test_bound_holds_for_units_of_bf16(rng, seq):
    """Assert every order with 8 bits, where gamma_n does not exist beyond n = 256."""
    for kind in ("plain", "slow", "repeated", "ones"):
        a, b = (orders.to_bits(8, x) for x in drives(rng, kind, seq))
        for order in ("sequential", "tree", "chunked", "block_scan"):
            _, error = bound(a, b, depth_of(order, seq), unit=2.0**-8)
            assert np.isfinite(error).all()
            h = getattr(orders, order)(a, b, orders.BF16)
            assert_holds(h, a, b, error, (kind, order))


def test_errors_of_decays_and_drives_are_carried(rng):
    """Assert the bound for executions whose a and b lie anywhere within their errors.

    The decays stay within [0, 1], as those of every execution do.
    """
    from lyapunov.arithmetic import Bounded

    a, b = drives(rng, "slow", 128)
    e_a = 1e-3 * rng.random(a.shape)
    e_b = 1e-2 * np.abs(b)

    @jax.jit
    def run(a, e_a, b, e_b):
        at = BoundedArithmetic(
            {}, RoundingModel.none()._replace(unit=jnp.asarray(UNIT)), scan_depth=40
        )

        def token(at, state, inputs):
            a, e_a, b, e_b = inputs
            after = at.advance(state, Bounded(a, e_a), Bounded(b, e_b))
            return after, scans.finish(at, after).error

        start = at.initial_state(jnp.zeros(CHANNELS))
        return at.scan(token, start, (a, e_a, b, e_b))[1]

    error = np.asarray(run(a, e_a, b, e_b))
    exact = exact_states(a, b)
    best = 0.0
    for sign in (1, -1, None, None):
        s = sign if sign else rng.uniform(-1, 1, a.shape)
        t = np.sign(b) * s if sign else rng.uniform(-1, 1, a.shape)
        moved_a = orders.to_fp32(np.clip(a + s * e_a * 0.999, 0, 1))
        moved_b = orders.to_fp32(b + t * e_b * 0.999)
        for order in ("tree", "block_scan"):
            h = getattr(orders, order)(moved_a, moved_b, orders.FP32["fused"])
            distance = np.abs(h - exact).astype(np.float64)
            assert (distance <= error).all()
            best = max(best, (distance / error).max())
    assert best > 0.5


@pytest.mark.parametrize(
    "seq", [1, 2, 32, 127, 128, 129, 256, 257, 512, 513, 1024, 1025, 2048, 2049, 6145]
)
def test_declared_scan_depth_is_what_the_launch_needs(seq):
    """Assert the depth against counted additions, and that it wastes few.

    A full launch uses the whole depth but for the prefix of a single chunk.
    """
    zero = np.zeros((seq, 1), np.int64)
    counted = int(orders.block_scan(zero, zero, orders.counting).max())
    assert counted <= scan_depth(seq)
    threads, items = orders.launch(seq)
    if seq >= threads * items:
        assert scan_depth(seq) <= counted + 2


def test_counting_agrees_with_known_depths():
    """Assert the counter itself: T - 1 in sequence, log2 T in a tree."""
    for seq in (1, 2, 64, 100):
        zero = np.zeros((seq, 1), np.int64)
        assert orders.sequential(zero, zero, orders.counting).max() == seq - 1
        deep = orders.tree(zero, zero, orders.counting).max()
        assert deep == math.ceil(math.log2(seq))


@pytest.mark.parametrize("order", ["sequential", "tree", "chunked", "block_scan"])
def test_orders_compute_the_recurrence(rng, order):
    """Assert that without rounding every order gives the same states."""
    for seq in (1, 2, 130, 2049):
        a, b = drives(rng, "plain", seq)
        h = getattr(orders, order)(a, b, orders.exactly)
        own = gamma(4 * seq, 2.0**-53) * magnitudes(a, b)
        assert (np.abs(h - exact_states(a, b)) <= own).all()
