"""The delta rule over a sequence: what both forms compute, and bounds of their errors.

References are NumPy's, token by token; kernels that round or err are NumPy's, too.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import BoundedArithmetic, Exact, Rounded
from lyapunov.arithmetic._bounded_values import RoundingModel, lift
from lyapunov.arithmetic._delta import DeltaChunk
from lyapunov.arithmetic.rules.delta import by_algorithm
from lyapunov.arithmetic.rules.delta_chunk import chunk_by_tokens, summing
from lyapunov.formats import FORMATS, round_to, state_format_named
from lyapunov.implementations.fla.networks import chunk_sites
from lyapunov.implementations.transformers.mamba1 import TORCH
from lyapunov.sublayers.delta_scan import (
    Tokens,
    chunked_delta,
    recurrent_delta,
)


TOKENS, HEADS, KEYS, VALUES = 75, 2, 16, 8
WIDTH = 32
UNIT = 2.0**-53


@pytest.fixture(autouse=True)
def wide():
    """fp64, as in a check."""
    with jax.enable_x64(True):
        yield


def drawn(gate, correlated=0.0, scale=1.0, by_key=False, seed=0):
    """Tokens whose gates are `gate` in the middle, keys and values held in bf16."""
    rng = np.random.default_rng(seed)
    k = rng.normal(size=(TOKENS, HEADS, KEYS)) * (1 - correlated)
    k = k + correlated * rng.normal(size=KEYS)
    q = rng.normal(size=k.shape)
    rate = scale / (1 + np.exp(-rng.normal(size=(TOKENS, HEADS))))
    gates = gate * np.exp(rng.normal(size=k.shape if by_key else rate.shape))
    held = lambda x: round_to(jnp.asarray(x), FORMATS["bf16"].numbers())
    of_length_1 = lambda x: held(x / np.linalg.norm(x, axis=-1, keepdims=True))
    v = held(rng.normal(size=(TOKENS, HEADS, VALUES)))
    return Tokens(of_length_1(q), of_length_1(k), v, jnp.asarray(rate), -gates)


def start(seed=5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(HEADS, VALUES, KEYS)))


def by_numpy(tokens, state, damage=lambda t, state: state):
    """What is read and the state at the end; `damage` changes it on the way."""
    q, k, v, rate, gate = (np.asarray(x) for x in tokens)
    out, state = np.zeros_like(v), np.array(state)
    for t in range(len(q)):
        state = damage(t, state)
        for h in range(HEADS):
            kept = np.exp(gate[t, h]) * state[h]  # one a head, or one a key
            write = rate[t, h] * (v[t, h] - kept @ k[t, h])
            state[h] = kept + np.outer(write, k[t, h])
            out[t, h] = state[h] @ q[t, h]
    return out, state


FORMS = {
    "tokens": (recurrent_delta, {}),
    "tokens, a bf16 state": (recurrent_delta, {"state": "bf16"}),
    "tokens, an int16 state": (recurrent_delta, {"state": "int16-scaled"}),
    "chunks": (functools.partial(chunked_delta, chunk=WIDTH), {}),
    "chunks, inverted": (
        functools.partial(chunked_delta, chunk=WIDTH, inverted=True),
        {},
    ),
    "chunks, all stored": (
        functools.partial(chunked_delta, chunk=WIDTH),
        {**chunk_sites("gated_delta", FORMATS["bf16"])},
    ),
}
RATIOS = {
    "tokens": 1e3,
    "tokens, a bf16 state": 20,
    "tokens, an int16 state": 20,
    "chunks": 1e4,
    "chunks, inverted": 1e4,
    "chunks, all stored": 20,
}
"""Most that a bound of the state is above its error where it fades."""
CASES = {
    "fading": {"gate": 0.05},
    "no gate": {"gate": 0.0},
    "alike": {"gate": 0.05, "correlated": 0.7},
    "reflecting": {"gate": 0.1, "scale": 2.0},
    "by key": {"gate": 0.1, "by_key": True},
}


def numbers(sites) -> dict[str, Any]:
    named = lambda one: state_format_named(one) if isinstance(one, str) else one
    return {name: named(fmt).numbers() for name, fmt in sites.items()}


@functools.cache
def programs(form, centred=True):
    flow, sites = FORMS[form]

    def bound(tokens, state):
        at = BoundedArithmetic(
            numbers(sites), TORCH.model(), scan_depth=WIDTH, centred=centred
        )
        return flow(at, tokens, state)

    emulate = lambda tokens, state: flow(Rounded(numbers(sites)), tokens, state)
    return jax.jit(emulate), jax.jit(bound)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["tokens", "chunks"])
def test_both_forms_are_the_recurrence(form, case):
    """Assert it within what fp64 loses of sums of so many terms."""
    tokens, state = drawn(**CASES[case]), start()
    y, after = jax.jit(functools.partial(FORMS[form][0], Exact()))(tokens, state)
    wanted, end = by_numpy(tokens, state)
    most = 4 * KEYS * TOKENS * UNIT * np.abs(end).max()
    np.testing.assert_allclose(y, wanted, rtol=0, atol=most)
    np.testing.assert_allclose(after, end, rtol=0, atol=most)


QUICK = {
    "tokens": "by key",
    "tokens, a bf16 state": "by key",
    "tokens, an int16 state": "fading",
    "chunks": "fading",
    "chunks, inverted": "fading",
    "chunks, all stored": "by key",
}


@pytest.mark.parametrize(
    ("form", "case"),
    [
        pytest.param(
            form, case, marks=[] if case == QUICK[form] else [pytest.mark.slow]
        )
        for form in FORMS
        for case in CASES
    ],
)
def test_nothing_rounded_leaves_its_bound(form, case):
    """Assert it entry by entry and column by column, and that both say something."""
    tokens, state = drawn(**CASES[case]), start()
    emulate, bound = programs(form)
    wanted, end = by_numpy(tokens, state)
    (y, after), (by, bafter) = emulate(tokens, state), bound(tokens, state)
    for measured, known, bounded in ((y, wanted, by), (after, end, bafter)):
        off = np.abs(np.asarray(measured) - bounded.value)
        assert (off <= bounded.error).all()
        limit = bounded.error + np.abs(bounded.value - known)
        assert (np.abs(measured - known) <= limit).all()
        assert np.isfinite(limit).all()
    columns = np.linalg.norm(after - bafter.value, axis=-1)
    assert (columns <= bafter.norm).all()
    limit = bafter.norm + np.linalg.norm(bafter.value - end, axis=-1)
    ratio = np.linalg.norm(limit) / np.linalg.norm(after - end)

    assert ratio < RATIOS[form] * (1 if case in ("fading", QUICK[form]) else 10)


def lost(t, state):
    """The state handed over at the second chunk is not there."""
    return np.zeros_like(state) if t == WIDTH else state


def stale(t, state):
    """One column of one head is of another token."""
    if t == 40:
        state = state.copy()
        state[1, 3] = np.roll(state[1, 3], 1)
    return state


@pytest.mark.parametrize("damage", [lost, stale])
@pytest.mark.parametrize("form", ["tokens, a bf16 state", "chunks, all stored"])
def test_a_kernel_that_errs_leaves_the_bound(form, damage):
    """Assert that faults of a state are seen in what is read."""
    tokens, state = drawn(**CASES[QUICK[form]]), start()
    by, _ = programs(form)[1](tokens, state)
    y, _ = by_numpy(tokens, state, damage)
    assert (np.abs(y - by.value) > by.error).any()


def newton(system, rounds):
    """(1 + system)^-1 by Newton-Schulz, operands in bf16 as a shipped kernel had it."""
    held = lambda x: np.asarray(round_to(jnp.asarray(x), FORMATS["bf16"].numbers()))
    eye = np.eye(len(system))
    x = eye - system
    for _ in range(rounds):
        x = held(x) @ (2 * eye - held(eye + system) @ held(x))
    return x


def substituted(system):
    """The same in fp32, row by row."""
    rows = np.eye(len(system), dtype=np.float32)
    for i in range(len(system)):
        rows[i] = rows[i] - np.float32(system[i, :i]) @ rows[:i]
    return rows


@pytest.mark.parametrize("width", [pytest.param(16, marks=pytest.mark.slow), 64])
def test_a_stored_inverse_by_too_few_rounds_is_told(width):
    """Assert it of keys that are alike, and that substitution in fp32 is not blamed."""
    rng = np.random.default_rng(3)
    keys = 0.3 * rng.normal(size=(width, KEYS)) + rng.normal(size=KEYS)
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    system = np.tril(keys @ keys.T, -1)
    bf16 = FORMATS["bf16"].numbers()

    @jax.jit
    def bounded(held):
        at = BoundedArithmetic(
            {"inverse": bf16}, TORCH.model(), anchors={"inverse": held}
        )
        at.store("inverse", at.solve_unit_lower(jnp.asarray(system), jnp.eye(width)))
        return at.records["inverse"]

    def inside(inverse):
        held = round_to(jnp.asarray(inverse), bf16)
        bound = bounded(held)
        assert np.median(bound.error) < 2.0**-8  # of entries up to 1
        return bool((np.abs(held - bound.value) <= bound.error).all())

    assert inside(substituted(system))
    assert not inside(newton(system, 3))


def test_operands_stored_twice_lose_the_product():
    """Assert that each store may lose its whole unit, of what queries read of a state
    and of what keys keep of a write, and that no more is counted."""
    unit, smallest = 2.0**-3, 2.0**-16  # of which a half is lost, too
    sites = ("q_operand", "q_decayed", "k_operand", "k_decayed")
    named = numbers(dict.fromkeys(sites, FORMATS["fp8_e5m2"]))
    assert float(named["q_operand"].unit) == unit
    at = BoundedArithmetic(named, RoundingModel.none())
    one, none = jnp.ones((1, 1, 1)), jnp.zeros((1, 1, 1))

    @jax.jit
    def bound(state, key):
        exact = {"rate": one[0], "log_gate": none[0], "key": key, "value": one}
        exact |= {"query": one, "system": none, "pairs": key, "decay": one[0, 0]}
        seen = {"u": one, "w": key, "reads": one, "keys": key}
        chunk = {name: lift(x) for name, x in (exact | seen).items()}
        chunk = DeltaChunk(**chunk, reach=None, left=None)
        return chunk_by_tokens(at, at.columns(state), chunk, inverted=False)

    read, kept = bound(one, none)[1], bound(none, one)[0]
    for found in (read.error.item(), kept.error.item()):
        assert (1 + unit) ** 2 - 1 <= found < np.expm1(2 * unit) + smallest


@pytest.mark.parametrize("rule", [chunk_by_tokens, by_algorithm])
def test_a_sum_over_tokens_goes_on_in_the_accumulator_of_that_over_keys(rule):
    """Assert that what is read of the state in front loses units of both sums, though
    no token writes: Kimi's kernel has it so (fla 0.6.0, `chunk_gla_fwd_kernel_o`)."""
    unit = 2.0**-8
    none = RoundingModel.none()
    at = BoundedArithmetic({}, none._replace(accumulator_unit=jnp.asarray(unit)))
    of_keys, of_tokens = (float(summing(at, terms)) for terms in (1, 2))
    assert of_keys >= unit
    one, zero = jnp.ones((1, 1, 1)), jnp.zeros((1, 1, 1))
    exact = {"rate": zero[0], "log_gate": zero[0], "key": one, "value": zero}
    exact |= {"query": one, "system": zero, "pairs": zero, "decay": one[0, 0]}
    seen = {"u": zero, "w": zero, "reads": one, "keys": one}
    chunk = {name: lift(x) for name, x in (exact | seen).items()}
    read = rule(at, at.columns(one), DeltaChunk(**chunk, reach=None, left=None))[1]
    most = (1 + of_keys) * (1 + of_tokens) - 1
    assert of_keys + of_tokens <= read.error.item() <= 1.01 * most
