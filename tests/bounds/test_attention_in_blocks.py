"""Attention in blocks of queries: NumPy's values and adjoints, and linear memory.

A query's row needs no other row, so that blocks change no number but in the last bits
of fp64's sums, which may run in another order.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov._devices import in_batch, over_batch
from lyapunov.arithmetic import (
    BoundedArithmetic,
    Exact,
    Perturbed,
    Rounded,
    Sampled,
    Weight,
)
from lyapunov.bounds._pull_back import pulled_back
from lyapunov.bounds.passes import _by_token, _lengths, _share
from lyapunov.formats import BF16, FP16, rounding_error_bound
from lyapunov.implementations import mamba_ssm_prefill
from lyapunov.sublayers import attention
from lyapunov.sublayers.attention import (
    AttentionParameters,
    attend,
    attended,
    rows_at_once,
)
from lyapunov.sublayers.norm import Norm

from ..helpers import assert_within, gamma


U64 = 2.0**-53
SEQ, HEADS, KV_HEADS, HEAD_DIM, PAST = 11, 4, 2, 6, 3
KEYS = PAST + SEQ
SCALE = HEAD_DIM**-0.5
ROWS = (1, 3, SEQ)
SITES = {"scores": BF16, "attention": BF16}
MODEL = mamba_ssm_prefill("bf16").constants


def numbers(sites=SITES) -> dict[str, Any]:
    return {site: form.numbers() for site, form in sites.items()}


def drawn(seed=0, heads=HEADS, kv_heads=KV_HEADS):
    """Queries, keys and values that bf16 holds, so that errors are the block's own."""
    rng = np.random.default_rng(seed)
    shapes = (SEQ, heads, HEAD_DIM), (KEYS, kv_heads, HEAD_DIM)
    normal = [rng.normal(size=shape) for shape in (*shapes, shapes[1])]
    held = [np.asarray(jnp.asarray(a, jnp.bfloat16)).astype(float) for a in normal]
    return tuple(held)


def read(at, given, rows, past=PAST):
    """As `attend` calls it."""
    q, k, v = given

    def inside(at, state, queries):
        q, places = queries
        return state, attended(at, q, k, v, places + past, SCALE)

    queries = q, jnp.arange(q.shape[0])
    return at.in_row_blocks(inside, None, queries, rows, pairs=True)[1]


def by_row(q, k, v, past=PAST):
    """NumPy, a head and a query at a time, no mask: what is read, scores, weights.

    In long double, scores and weights (heads, seq, keys), 0 for keys behind the query.
    """
    q, k, v = (a.astype(np.longdouble) for a in (q, k, v))
    seq, heads, _ = q.shape
    out = np.zeros(q.shape, np.longdouble)
    scores = np.zeros((heads, seq, len(k)), np.longdouble)
    weights = np.zeros_like(scores)
    for h in range(heads):
        own = h * k.shape[1] // heads
        for i in range(seq):
            stop = past + i + 1
            scores[h, i, :stop] = k[:stop, own] @ q[i, h] * np.longdouble(SCALE)
            e = np.exp(scores[h, i, :stop] - scores[h, i, :stop].max())
            weights[h, i, :stop] = e / e.sum()
            out[i, h] = weights[h, i, :stop] @ v[:stop, own]
    return out, scores, weights


def fp64_may_lose(q, k, v):
    """What sums in fp64 may put between them and long double, by row and head."""
    most = SCALE * np.abs(q).sum(-1).max() * np.abs(k).max()
    scores = gamma(HEAD_DIM + 2, U64) * most + 2 * U64 * 2 * most
    share = np.expm1(2 * scores) + gamma(KEYS + 4, U64)
    return (share + gamma(KEYS, U64)) * np.abs(v).max()


@pytest.mark.parametrize(
    ("rows", "kv_heads"), [(1, 2), (3, 2), (SEQ, 2), (3, 1), (5, 4), (SEQ, 4)]
)
def test_blocks_have_numpys_values(rows, kv_heads):
    q, k, v = drawn(kv_heads=kv_heads)
    found = jax.jit(lambda *given: read(Exact(), given, rows))(q, k, v)
    expected = by_row(q, k, v)[0]
    assert_within(found, expected.astype(float), fp64_may_lose(q, k, v), "read")


@pytest.mark.parametrize("mutant", ["a place late", "each block its own first"])
def test_a_wrong_mask_is_caught(mutant):
    """Assert that places shifted, or counted from each block's start, are told."""
    q, k, v = drawn()
    wrong = {
        "a place late": lambda places: places + 1,
        "each block its own first": lambda places: places % 3,
    }[mutant]

    def inside(at, state, queries):
        q, places = queries
        return state, attended(at, q, k, v, wrong(places) + PAST, SCALE)

    queries = jnp.asarray(q), jnp.arange(SEQ)
    _, found = Exact().in_row_blocks(inside, None, queries, 3, pairs=True)
    with pytest.raises(AssertionError):
        assert_within(found, by_row(q, k, v)[0], fp64_may_lose(q, k, v))


def test_a_cache_goes_on_where_it_ended(monkeypatch):
    """Assert that a text in two calls, each in blocks, reads what it does in one."""
    rng = np.random.default_rng(1)
    weight = lambda *s: Weight(jnp.asarray(rng.normal(size=s) / s[-1] ** 0.5))
    wide, narrow = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    p = AttentionParameters(
        norm=Norm(None, None, 1e-5, False),
        q_proj=weight(wide, 8), k_proj=weight(narrow, 8), v_proj=weight(narrow, 8),
        q_bias=None, k_bias=None, v_bias=None, q_norm=None, k_norm=None,
        o_proj=weight(8, wide), o_bias=None, heads=HEADS, kv_heads=KV_HEADS,
        rotary=4, theta=100.0, scale=SCALE,
    )  # fmt: skip
    x = jnp.asarray(rng.normal(size=(SEQ, 8)))
    # a program of its own each, since the block is no argument
    run = lambda x, state: jax.jit(lambda x, s: attend(Exact(), x, p, s))(x, state)
    whole, _ = run(x, p.initial_state())
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 2 * HEADS * SEQ)
    assert rows_at_once(HEADS, SEQ) == 2
    first, state = run(x[:5], p.initial_state())
    rest, _ = run(x[5:], state)
    # two sums of at most 11 terms each way, around sums of 8 and 24
    size = float(jnp.max(jnp.abs(whole)))
    assert_within(jnp.concatenate([first, rest]), whole, 1000 * U64 * size)


# --- Rounded, and its bounds -------------------------------------------------------


def bounding(centred, *, keeps=None):
    return BoundedArithmetic(numbers(), MODEL.model(), centred=centred, keeps=keeps)


@functools.cache
def bounded(rows, centred):
    """What `BoundedArithmetic` says of the reads, and what it watched."""
    at = bounding(centred, keeps=_lengths)
    return jax.jit(lambda *given: (read(at, given, rows), at.records))(*drawn())


@functools.cache
def emulated(rows):
    q, k, v = drawn()
    run = jax.jit(lambda *given: read(Rounded(numbers()), given, rows))
    return np.asarray(run(q, k, v), float)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("centred", [False, True])
def test_bounds_hold_what_numpy_rounds(rows, centred):
    """Assert it of two stores rounded in NumPy, and that bounds are no hundredfold."""
    q, k, v = drawn()
    found, _ = bounded(rows, centred)
    half = lambda a: np.asarray(jnp.asarray(a, jnp.bfloat16)).astype(float)
    scores = half(by_row(q, k, v)[1].astype(float))
    rounded = np.zeros(q.shape)
    for h in range(HEADS):
        for i in range(SEQ):
            stop = PAST + i + 1
            e = np.exp(scores[h, i, :stop] - scores[h, i, :stop].max())
            weights = half(e / e.sum())
            rounded[i, h] = weights @ v[:stop, h * KV_HEADS // HEADS]
    for run in (rounded, emulated(rows), emulated(SEQ)):
        off = np.abs(run - found.value)
        assert np.all(off <= found.error)
        assert np.all(np.linalg.norm(off, axis=-1) <= found.norm)
    moved = np.linalg.norm(rounded - by_row(q, k, v)[0].astype(float))
    assert np.linalg.norm(found.error) < 100 * moved


@pytest.mark.parametrize("rows", ROWS[:-1])
@pytest.mark.parametrize("centred", [False, True])
def test_blocks_have_the_same_bounds(rows, centred):
    """Assert it of values, errors and norms, and of the shares that are watched."""
    whole, watched = bounded(SEQ, centred)
    blocks, parts = bounded(rows, centred)
    # sums of nonnegative terms, some hundred chained operations each
    same = gamma(400, U64)
    for name in ("value", "error", "norm"):
        expected = np.asarray(getattr(whole, name))
        limit = same * np.max(np.abs(expected))
        assert_within(getattr(blocks, name), expected, limit, name)
    assert set(parts) == set(watched) == set(SITES)
    for site, part in parts.items():
        assert part.norm.shape == (HEADS, SEQ)
        for of in (_share, _by_token):
            expected = np.asarray(of(watched[site]))
            assert centred or np.max(expected) > 0
            assert_within(of(part), expected, same * np.max(expected), site)


def test_draws_differ_from_block_to_block():
    """Assert it of equal queries, and that draws stay within the bound."""
    q, k, v = drawn()
    q = np.broadcast_to(q[:1], q.shape)
    at = Sampled(numbers(), jax.random.key(0))
    found = jax.jit(lambda *given: read(at, given, 3, past=KEYS))(q, k, v)
    found = np.asarray(found)
    assert len(np.unique(found[:, 0, 0])) == SEQ
    at = bounding(False)
    limit = jax.jit(lambda *given: read(at, given, 3, past=KEYS))(q, k, v)
    assert np.all(np.abs(found - limit.value) <= limit.error)


# --- Backward ----------------------------------------------------------------------


@pytest.mark.parametrize("rows", ROWS)
def test_adjoints_are_numpys(rows):
    """Assert worst cases and variances of both stores, and what goes on in front.

    With P the weights, S the scores and G the pull: the adjoint of P is G v^T, that of
    S is P (dP - sum P dP), those of v, k and q are P^T G, dS^T q and dS k.
    """
    q, k, v = drawn()
    pulls = np.random.default_rng(2).normal(size=(2, *q.shape))
    executions = [numbers(), numbers({"attention": FP16})]
    run = lambda at, given: read(at, given, rows)
    effects, before = jax.jit(lambda x, g: pulled_back(run, x, g, executions))(
        tuple(jnp.asarray(a) for a in (q, k, v)), jnp.asarray(pulls)
    )
    _, scores, weights = by_row(q, k, v)
    size = lambda a, form: np.asarray(
        rounding_error_bound(jnp.abs(jnp.asarray(a.astype(float))), form.numbers())
    )
    of_head = np.arange(HEADS) * KV_HEADS // HEADS
    for n, G in enumerate(pulls):
        dP = np.einsum("lhd,shd->hls", G, v[:, of_head])
        dS = weights * (dP - np.sum(weights * dP, axis=-1, keepdims=True))
        for i, (site, adjoint, value, form) in enumerate(
            [
                ("attention", dP, weights, BF16),
                ("scores", dS, scores, BF16),
                ("attention", dP, weights, FP16),
            ]
        ):
            moved = np.abs(adjoint) * size(value, form)
            found = effects[i // 2][site]
            same = gamma(1000, U64)
            assert_within(found["worst"][n], moved.sum(), same * moved.sum(), site)
            square = np.sum(moved**2) / 3
            assert_within(found["variance"][n], square, same * square, site)
        assert "scores" not in effects[1]
        dk, dv = np.zeros(k.shape), np.zeros(v.shape)
        for h, own in enumerate(of_head):
            dv[:, own] += (weights[h].T @ G[:, h]).astype(float)
            dk[:, own] += (SCALE * dS[h].T @ q[:, h]).astype(float)
        dq = SCALE * np.einsum("hls,shd->lhd", dS, k[:, of_head])
        for found, expected in zip(before, (dq, dk, dv), strict=True):
            expected = expected.astype(float)
            assert_within(found[n], expected, 1000 * U64 * np.abs(expected).max())


def test_without_gauges_rows_go_at_once():
    """Assert that offsets, which are held whole, are not left out in blocks."""
    q, k, v = drawn()
    offset = jnp.zeros((HEADS, SEQ, KEYS)).at[1, 7, 2].set(0.5)
    at = Perturbed({"attention": offset})
    moved = np.asarray(read(at, (jnp.asarray(q), k, v), 2)) - by_row(q, k, v)[0]
    assert at.records["attention"].shape == offset.shape
    own = 1 * KV_HEADS // HEADS
    expected = np.zeros(q.shape)
    expected[7, 1] = 0.5 * v[2, own]
    assert_within(moved.astype(float), expected, fp64_may_lose(q, k, v) + 1e-15)


# --- Memory ------------------------------------------------------------------------


def temporaries(run, length, rows, heads=4, head_dim=8) -> int:
    """Bytes that the compiled program needs beside what goes in and comes out."""
    shape = jax.ShapeDtypeStruct((length, heads, head_dim), jnp.float64)
    compiled = jax.jit(lambda *given: run(given, rows)).lower(shape, shape, shape)
    analysis: Any = compiled.compile().memory_analysis()
    return analysis.temp_size_in_bytes


def forward(given, rows):
    return read(Exact(), given, rows, past=0)


def bounds(given, rows):
    found = read(bounding(True, keeps=_lengths), given, rows, past=0)
    return found.value, found.error


def back(given, rows):
    run = lambda at, given: read(at, given, rows, past=0)
    pulls = jnp.ones((1, *given[0].shape))
    return pulled_back(run, given, pulls, [numbers()])


@pytest.mark.parametrize("run", [forward, bounds, back])
def test_memory_grows_with_the_tokens_and_not_with_their_square(run):
    """Assert it of blocks of equal size, and that at once it is their square."""
    short, long = 512, 1024
    blocks = [temporaries(run, short, 8), temporaries(run, long, 4)]
    assert blocks[1] <= 2.2 * blocks[0]
    scores = 8 * 4 * long**2
    assert blocks[1] < scores
    assert temporaries(run, long, long) > 0.9 * scores


def test_a_batch_shares_the_block(monkeypatch):
    """Assert that sequences side by side have fewer rows each at once."""
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 960)
    assert in_batch() == 1
    seen = []

    def one(x):
        seen.append((in_batch(), rows_at_once(4, 10), rows_at_once(4, 10, 2)))
        return x

    over_batch(one, jnp.zeros((3, 2)))
    assert seen == [(3, 8, 12)]
    assert rows_at_once(4, 10) == 24
    assert rows_at_once(4000, 10) == 1
