"""Parallel in time: equal to one pass of QR, and safe at both ends of fp64's range."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.exponents import (
    QR,
    ParallelInTime,
    lyapunov_spectrum,
    lyapunov_spectrum_of,
)

from .tolerance import tolerance


EPS = 2.0**-52
TOKENS = 200


def rotations(rng, d, tokens):
    """Random orthogonal matrices."""
    return np.linalg.qr(rng.normal(size=(tokens, d, d)))[0]


def henon_jacobians(tokens):
    """Of the Henon map along an orbit, by hand."""
    x, y, found = 0.1, 0.1, []
    for _ in range(tokens):
        found.append([[-2.8 * x, 1.0], [0.3, 0.0]])
        x, y = 1 - 1.4 * x * x + y, 0.3 * x
    return np.array(found)


def lorenz(x, _):
    """One RK4 step of 0.01."""

    def f(x):
        return jnp.array(
            [
                10 * (x[1] - x[0]),
                x[0] * (28 - x[2]) - x[1],
                x[0] * x[1] - 8 / 3 * x[2],
            ]
        )

    h = 0.01
    a = f(x)
    b = f(x + h / 2 * a)
    c = f(x + h / 2 * b)
    return x + h / 6 * (a + 2 * b + 2 * c + f(x + h * c))


def lorenz_jacobians(tokens):
    """Along one orbit, differentiated once for all methods."""
    start = jnp.array([1.0, 1.0, 20.0])
    _, states = jax.lax.scan(lambda x, _: (lorenz(x, None), x), start, None, tokens)
    return np.asarray(jax.vmap(jax.jacfwd(lambda x: lorenz(x, None)))(states))


def turning_below(rng):
    """A leading direction, and two pairs far below, each turning within itself."""
    Js = np.zeros((TOKENS, 5, 5))
    Js[:, 0, 0] = 0.9
    Js[:, 1:3, 1:3] = 1e-6 * rotations(rng, 2, TOKENS)
    Js[:, 3:, 3:] = 1e-9 * rotations(rng, 2, TOKENS)
    basis = rotations(rng, 5, 1)[0]
    return basis @ Js @ basis.T


def systems():
    """Jacobian sequences, by what is hard about them; of one shape, compiled once."""
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(3, TOKENS, 5, 5))
    yield "dense", dense[0]
    yield "contracts by 1e-9", 1e-9 * dense[1]
    yield "expands by 1e9", 1e9 * dense[2]
    near = 1 + 1e-3 * rng.normal(size=(TOKENS, 1, 5))
    yield "near-isotropic contraction", 0.9 * rotations(rng, 5, TOKENS) * near
    yield "isotropic contraction", 0.5 * rotations(rng, 5, TOKENS)
    yield "turns below a leading direction", turning_below(rng)
    ascending = np.diag([1e-300, 1e-9, 0.1, 0.5, 0.9])
    yield "ascending diagonal", np.tile(ascending, (TOKENS, 1, 1))
    yield "henon", henon_jacobians(1000)
    yield "lorenz", lorenz_jacobians(2000)


SYSTEMS = dict(systems())


def qr_apart(jacobians):
    """Exponents by QR from the identity, in NumPy."""
    d = jacobians.shape[1]
    frame, total = np.eye(d), np.zeros(d)
    for J in jacobians:
        pushed = J @ frame
        scale = np.abs(pushed).max(axis=0)
        frame, triangle = np.linalg.qr(pushed / scale)
        total += np.log(np.abs(np.diag(triangle))) + np.log(scale)
    return np.sort(total / len(jacobians))[::-1]


def allowed(jacobians, block=None):
    """How far two passes may part.

    Frames may differ by 16 d eps for each token of a block; a frame's change moves the
    log growth by the matrix's condition number times as much.
    """
    tokens, d, _ = jacobians.shape
    block = block or math.isqrt(tokens - 1) + 1
    return 16 * d * block * EPS * np.linalg.cond(jacobians).mean() + tolerance(64, 30)


@pytest.mark.parametrize("name", SYSTEMS)
def test_equals_one_pass_of_qr(name):
    """Assert QR()'s exponents and NumPy's, to what rounding makes of frames."""
    jacobians = SYSTEMS[name]
    found = lyapunov_spectrum_of(jacobians, method=ParallelInTime()).exponents
    one_pass = lyapunov_spectrum_of(jacobians, method=QR()).exponents
    atol = min(allowed(jacobians), 1e-8)  # the bound would be vacuous beyond
    np.testing.assert_allclose(found, one_pass, rtol=0, atol=atol)
    np.testing.assert_allclose(found, qr_apart(jacobians), rtol=0, atol=atol)


@pytest.mark.parametrize(("block", "k"), [(1, 5), (7, 2), (10_000, 1)])
def test_any_block_and_any_number_of_vectors(block, k):
    """Assert QR()'s leading k from the same start, and its history."""
    jacobians = SYSTEMS["dense"]
    method = ParallelInTime(block=block)
    found = lyapunov_spectrum_of(jacobians, k=k, method=method)
    wanted = lyapunov_spectrum_of(jacobians, k=k, method=QR())
    atol = allowed(jacobians, min(block, TOKENS))
    np.testing.assert_allclose(found.exponents, wanted.exponents, rtol=0, atol=atol)
    np.testing.assert_array_equal(found.history_tokens, wanted.history_tokens)
    # growth of the first tokens alone is not averaged over as many
    np.testing.assert_allclose(found.history, wanted.history, rtol=0, atol=10 * atol)


def test_few_vectors_in_many_dimensions_without_products():
    """Assert QR()'s 2 of 12: blocks start alike and meet when they have forgotten."""
    jacobians = np.random.default_rng(1).normal(size=(100, 12, 12))
    found = lyapunov_spectrum_of(jacobians, k=2, method=ParallelInTime())
    wanted = lyapunov_spectrum_of(jacobians, k=2, method=QR())
    np.testing.assert_allclose(
        found.exponents, wanted.exponents, rtol=0, atol=min(allowed(jacobians), 1e-8)
    )


@pytest.mark.slow
def test_underflow_over_4096_tokens_and_64_directions():
    """Assert the mean log decays where products reach e^-80000, a dense step given."""
    rng = np.random.default_rng(2)
    scale = np.where(np.arange(64) % 2, 1e-9, 1.0)
    decays = rng.uniform(0.5, 1, size=(4096, 64)) * scale
    found = lyapunov_spectrum(
        lambda x, a: a * x, jnp.ones(64), jnp.asarray(decays), method=ParallelInTime()
    )
    wanted = np.sort([math.fsum(column) / 4096 for column in np.log(decays).T])[::-1]
    np.testing.assert_allclose(
        found.exponents, wanted, rtol=0, atol=tolerance(4096 + 64, 22)
    )


@pytest.mark.parametrize("gate", ["one coordinate", "all coordinates", "one column"])
@pytest.mark.parametrize("token", [0, 40, TOKENS - 1])
def test_a_gate_of_zero_is_minus_infinity_for_what_it_closes(gate, token):
    """Assert -inf for the directions closed, QR()'s values for the others, no NaN."""
    rng = np.random.default_rng(3)
    if gate == "one coordinate":
        decays = rng.uniform(0.1, 1, size=(TOKENS, 5))
        decays[token, 2] = 0
        jacobians = np.stack([np.diag(row) for row in decays])
        closed = 1
    else:
        jacobians = rng.normal(size=(TOKENS, 5, 5))
        jacobians[token, :, slice(None) if gate == "all coordinates" else 2] = 0
        closed = 5 if gate == "all coordinates" else 1
    parallel = lyapunov_spectrum_of(jacobians, method=ParallelInTime())
    found = np.asarray(parallel.exponents)
    wanted = np.asarray(lyapunov_spectrum_of(jacobians, method=QR()).exponents)
    assert not np.isnan(found).any()
    assert np.isneginf(found).sum() == closed
    singular = np.linalg.cond(jacobians) > 1e12
    atol = allowed(jacobians[~singular])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=min(atol, 1e-8))
    if gate == "one coordinate":
        with np.errstate(divide="ignore"):
            means = np.sort(np.log(decays).mean(axis=0))[::-1]
        np.testing.assert_allclose(found, means, rtol=0, atol=tolerance(300, 3))


def test_nonlinear_steps_under_jit_and_vmap():
    """Assert each of three Lorenz orbits its own exponents, summing to the trace."""
    starts = jnp.array([[1.0, 1.0, 20.0], [-5.0, 2.0, 14.0], [3.0, -3.0, 30.0]])

    def spectrum(start):
        return lyapunov_spectrum(lorenz, start, 1000, method=ParallelInTime()).exponents

    found = jax.jit(jax.vmap(spectrum))(starts)
    # orbits part by rounding: e^(0.9 x 10 time units) of it
    np.testing.assert_allclose(found[1], spectrum(starts[1]), rtol=0, atol=1e-9)
    for exponents in found:
        # volumes shrink at 41/3 a time unit; RK4's error is of order 0.01^4 x 13.7^5
        assert float(exponents.sum()) / 0.01 == pytest.approx(-41 / 3, abs=5e-3)


def test_henon_contracts_areas_by_its_parameter():
    """Assert log 0.3 for the sum, exactly, and the known first exponent."""
    found = lyapunov_spectrum_of(henon_jacobians(20_000), method=ParallelInTime())
    assert float(found.exponents.sum()) == pytest.approx(np.log(0.3), abs=1e-12)
    assert float(found.exponents[0]) == pytest.approx(0.4192, abs=0.012)


def test_structure_comes_before_frames():
    """Assert that diagonal and triangular recurrences are not taken for dense."""
    from lyapunov.recurrences import Mamba3JointRecurrence

    from ..recurrences.test_mamba3 import drawn

    decays = np.random.default_rng(5).uniform(size=(50, 3))
    alike = lyapunov_spectrum_of(decays, method=ParallelInTime())
    np.testing.assert_array_equal(
        alike.exponents, lyapunov_spectrum_of(decays).exponents
    )
    carried, inputs = drawn(1)
    joint = Mamba3JointRecurrence()
    found = lyapunov_spectrum(joint, carried, inputs, method=ParallelInTime())
    wanted = lyapunov_spectrum(joint, carried, inputs)
    assert "ByBlocks" in wanted.method
    np.testing.assert_array_equal(found.exponents, wanted.exponents)


def unguarded(triangle, rows, logs):
    """`_times` without the guards for rows of 0."""
    size = jnp.log(jnp.abs(jnp.triu(triangle))) + logs
    largest = jnp.max(size, axis=1)
    rows = (jnp.sign(triangle) * jnp.exp(size - largest[:, None])) @ rows
    scale = jnp.max(jnp.abs(rows), axis=1)
    return rows / scale[:, None], largest + jnp.log(scale)


def one_round(through, starts, tokens, length):
    """`_until_they_meet` that takes the first frames as they are."""
    passed = jax.vmap(through)(starts, tokens)
    return passed.growth, passed.end[-1]


def stays(starts, passed, near):
    """`_next_starts` that finds nothing to change but the last block's start."""
    return starts.at[-1].set(passed.end[-2])


@pytest.mark.parametrize(
    ("broken", "name", "tokens"),
    [
        ({"_times": unguarded}, "gate", 81),
        ({"_until_they_meet": one_round}, "turns below a leading direction", 91),
        ({"_next_starts": stays}, "dense", 101),
    ],
)
def test_each_safeguard_is_needed(broken, name, tokens, monkeypatch):
    """Assert that without it exponents are NaN, or off by more than is allowed."""
    from lyapunov.exponents import _parallel

    if name == "gate":
        jacobians = np.random.default_rng(3).normal(size=(tokens, 5, 5))
        jacobians[20] = 0
    else:
        jacobians = SYSTEMS[name][:tokens]
    wanted = np.asarray(lyapunov_spectrum_of(jacobians, method=QR()).exponents)
    for function, replaced in broken.items():
        monkeypatch.setattr(_parallel, function, replaced)
    # no other test has this many tokens: a compiled one would not be broken
    parallel = lyapunov_spectrum_of(jacobians, method=ParallelInTime())
    found = np.asarray(parallel.exponents)
    with np.errstate(invalid="ignore"):
        off = np.abs(found - wanted)[np.isfinite(wanted)]
    assert np.isnan(found).any() or off.max() > 1e-8


def test_a_block_of_nothing_is_refused():
    """Assert the words."""
    with pytest.raises(ValueError, match="block is 0"):
        ParallelInTime(block=0)


def test_derivatives_are_refused_where_qr_has_them():
    """Assert the words, and by QR the slope 2 / (2 a + 0.3) of the leading one."""

    def leading(a, method):
        jacobians = a * jnp.ones((12, 2, 2)) + 0.3 * jnp.eye(2)
        return lyapunov_spectrum_of(jacobians, method=method).exponents[0]

    for differentiate in (jax.grad, jax.jacfwd):
        with pytest.raises(ValueError, match="cannot be differentiated"):
            differentiate(leading)(0.7, ParallelInTime())
    # the other direction's share in the start fades as (0.3 / 1.7)^(2 x 12)
    assert float(jax.grad(leading)(0.7, QR())) == pytest.approx(2 / 1.7, abs=1e-12)
