"""Shapes of errors hold every error that their parts allow, and little more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic.rules import ellipsoids
from lyapunov.arithmetic.rules.ellipsoids import Ellipsoid


HEADS, KEY, VALUE = 2, 12, 5


@pytest.fixture(autouse=True)
def _in_fp64():
    with jax.enable_x64(True):
        yield


def normal(seed: int, *shape: int):
    return np.random.default_rng(seed).normal(size=shape)


def inside(seed: int, e: Ellipsoid):
    """Errors on the boundary: (heads, value_dim, key_dim)."""
    at = normal(seed, HEADS, VALUE, KEY)
    at = at / np.linalg.norm(at, axis=-1, keepdims=True)
    root = np.linalg.cholesky(np.asarray(e.shape))
    return np.einsum("hkl,hvl->hvk", root, at) * np.asarray(e.scale)[..., None]


def size(e: Ellipsoid, errors):
    """sqrt(e^T shape^-1 e) over what is allowed: at most 1 inside."""
    solved = np.linalg.solve(np.asarray(e.shape), np.swapaxes(errors, -1, -2))
    squares = np.einsum("hvk,hkv->hv", errors, solved)
    return np.sqrt(squares) / np.asarray(e.scale)


def parts(seed: int):
    """Three ellipsoids of which no two are alike."""
    turn = normal(seed, HEADS, KEY, KEY)
    radius = jnp.asarray(np.abs(normal(seed + 1, HEADS, VALUE)))
    first = ellipsoids.mapped(jnp.asarray(turn), ellipsoids.ball(radius, KEY))
    second = ellipsoids.ball(3.0 * radius[:, ::-1], KEY)
    third = ellipsoids.mapped(jnp.asarray(turn**3), ellipsoids.ball(radius**2, KEY))
    return first, second, third


@pytest.mark.parametrize("seed", range(20))
def test_sums_of_errors_lie_in_the_total(seed):
    """Errors on the boundary of every part, added in random directions."""
    found = parts(seed)
    errors = sum(inside(seed + 7 * i, one) for i, one in enumerate(found))
    assert np.all(size(ellipsoids.total(*found), errors) <= 1.0)


def test_errors_that_point_one_way_fill_the_total():
    """Of two balls the sum is a ball, and its radius what both are together."""
    one, other = (jnp.asarray([[1.0, 2.0]] * 2), jnp.asarray([[3.0, 6.0]] * 2))
    whole = ellipsoids.total(ellipsoids.ball(one, KEY), ellipsoids.ball(other, KEY))
    row = jnp.asarray(normal(0, HEADS, KEY))
    row = row / jnp.linalg.norm(row, axis=-1, keepdims=True)
    np.testing.assert_allclose(ellipsoids.reach(whole, row), one + other, rtol=1e-6)
    found = ellipsoids.length(whole)
    assert np.all(found >= one + other)
    assert np.all(found <= 1.2 * (one + other))


@pytest.mark.parametrize("seed", range(10))
def test_numbers_in_front_of_keys_lie_along_them(seed):
    """Of all signs the one that a row sees most of, and for keys that are orthogonal
    no more than sqrt(tokens) of it."""
    keys = normal(seed, 6, HEADS, KEY)
    most = np.abs(normal(seed + 1, 6, HEADS, VALUE))
    e = ellipsoids.along(jnp.asarray(keys), jnp.asarray(most))
    row = normal(seed + 2, HEADS, KEY)
    worst = np.einsum("jh,jhv->hv", np.abs(np.einsum("jhk,hk->jh", keys, row)), most)
    found = np.asarray(ellipsoids.reach(e, jnp.asarray(row)))
    assert np.all(worst <= found)
    assert np.all(found <= 6**0.5 * 3.0 * worst)
    signs = np.sign(normal(seed + 3, 6, HEADS, VALUE))
    errors = np.einsum("jhv,jhk->hvk", signs * most, keys)
    # where keys span less than all, nothing lies beside them
    beside = np.linalg.svd(keys[:, 0], full_matrices=True)[2][6:]
    seen = [ellipsoids.reach(e, jnp.asarray(np.stack([b, b])))[0] for b in beside]
    length = np.linalg.norm(errors[0], axis=-1)
    assert np.all(np.asarray(seen) <= 1e-5 * length)


@pytest.mark.parametrize("seed", range(5))
def test_steps_erase_what_was_written_along_keys_alike(seed):
    """A walk without decay: never below the worst of 200 runs, and far below what
    lengths of errors add up to."""
    rng = np.random.default_rng(seed)
    tokens, runs = 300, 200
    common = rng.normal(size=(HEADS, KEY))
    keys = common + 0.7 * rng.normal(size=(tokens, HEADS, KEY))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    rates = 0.3 + 0.6 * rng.random((tokens, HEADS))
    decays = np.ones((HEADS, KEY))
    e = ellipsoids.ball(jnp.zeros((HEADS, 1)), KEY)
    errors, seen = np.zeros((runs, HEADS, KEY)), []
    step = jax.jit(
        lambda e, key, rate: ellipsoids.total(
            ellipsoids.through_token(e, decays, key, rate),
            ellipsoids.along(key[None], jnp.ones((1, HEADS, 1))),
        )
    )
    for key, rate in zip(keys, rates, strict=True):
        e = step(e, jnp.asarray(key), jnp.asarray(rate))
        read = np.einsum("rhk,hk->rh", errors, key)
        errors = errors - rate[:, None] * read[..., None] * key
        # half of the runs err the same way at all tokens
        signs = np.sign(rng.normal(size=(runs, HEADS)))
        signs[: runs // 2] = 1.0
        errors = errors + signs[..., None] * key
        seen.append(np.asarray(ellipsoids.length(e))[:, 0])
        assert np.all(size(e, np.moveaxis(errors, 0, 1)) <= 1.0)
    worst = np.max(np.linalg.norm(errors, axis=-1))
    assert seen[-1].max() < 10.0 * worst < tokens / 5


@pytest.mark.parametrize("seed", range(5))
def test_a_step_is_its_matrix(seed):
    """A rank-one step and the same matrix written out."""
    e = ellipsoids.total(*parts(seed))
    decay = np.exp(-np.abs(normal(seed, HEADS, KEY)))
    key, rate = normal(seed + 1, HEADS, KEY), np.abs(normal(seed + 2, HEADS))
    outer = np.einsum("hk,hl->hkl", key, key)
    matrix = (np.eye(KEY) - rate[:, None, None] * outer) * decay[:, None, :]
    stepped = ellipsoids.through_token(e, *map(jnp.asarray, (decay, key, rate)))
    written = ellipsoids.mapped(jnp.asarray(matrix), e)
    np.testing.assert_allclose(stepped.shape, written.shape, rtol=1e-7, atol=1e-6)
    errors = np.einsum("hkl,hvl->hvk", matrix, inside(seed, e))
    assert np.all(size(stepped, errors) <= 1.0)


def test_a_column_without_a_bound_leaves_the_others_theirs():
    """inf, NaN and errors without a square in one column."""
    for lost in (np.inf, np.nan, 1e200):
        radius = np.ones((HEADS, VALUE))
        radius[:, 1] = lost
        most = np.ones((4, HEADS, VALUE))
        most[2, :, 3] = lost
        keys = jnp.asarray(normal(0, 4, HEADS, KEY))
        e = ellipsoids.total(
            ellipsoids.ball(jnp.asarray(radius), KEY),
            ellipsoids.along(keys, jnp.asarray(most)),
        )
        for found in (ellipsoids.length(e), ellipsoids.reach(e, keys[0])):
            known = np.asarray(found) < 1e3
            assert known[:, [0, 2, 4]].all()
            assert not known[:, [1, 3]].any()


def test_tiny_errors_are_not_lost():
    """Squares of errors below 1e-154 are 0 in fp64; nothing else may make them 0."""
    for tiny in (1e-320, 1e-200, 1e-150):
        radius = jnp.full((HEADS, VALUE), tiny)
        small = ellipsoids.ball(radius, KEY)
        eye = jnp.broadcast_to(jnp.eye(KEY), (HEADS, KEY, KEY))
        e = ellipsoids.total(small, ellipsoids.mapped(1e-170 * eye, small))
        row = jnp.ones((HEADS, KEY))
        assert np.all(ellipsoids.length(e) >= tiny)
        assert np.all(ellipsoids.reach(e, row) >= tiny)
        along = ellipsoids.along(row[None], radius[None])
        assert np.all(ellipsoids.reach(along, row) >= tiny)
    exact = ellipsoids.ball(jnp.zeros((HEADS, VALUE)), KEY)
    assert not np.any(ellipsoids.length(ellipsoids.total(exact, exact)))


@pytest.mark.parametrize("rows", [2, 64, 256])
def test_the_largest_eigenvalue_is_bounded(rows):
    """Against LAPACK's, for shapes from round to flat."""
    for power in (0.0, 1.0, 8.0):
        values = np.linspace(0.01, 1.0, rows) ** power
        turn = np.linalg.qr(normal(rows, rows, rows))[0]
        shape = turn @ np.diag(values) @ turn.T
        found = float(ellipsoids.largest_eigenvalue(jnp.asarray(shape[None]))[0])
        assert 1.0 <= found <= 1.42
        ball = ellipsoids.ball(jnp.ones((1, 1)), rows)
        turned = ellipsoids.mapped(jnp.asarray(turn[None]), ball)
        assert 1.0 <= float(ellipsoids.length(turned)[0, 0]) <= 1.2


def test_columns_of_two_shapes_keep_their_own():
    """Each column is chosen of one of them."""
    one, _, other = parts(3)
    first = jnp.asarray([[True, False, True, False, True]] * HEADS)
    errors = np.where(first[..., None], inside(1, one), inside(2, other))
    assert np.all(size(ellipsoids.chosen(first, one, other), errors) <= 1.0)
    only = ellipsoids.chosen(jnp.ones_like(first), one, other)
    np.testing.assert_allclose(
        ellipsoids.length(only), ellipsoids.length(one), rtol=1e-6
    )
