"""Where an infinity goes in Mamba-2's chunks: a fact of the program, which bounds know.

NumPy, in fp32, does it both ways. As mamba_ssm's kernels: dt weighs B and the pairs,
and states are passed in a loop. As transformers: dt weighs x, and states are passed by
one product with decays that are 0 for later chunks. The latter's own function is asked,
too.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import BoundedArithmetic, Form, Rounded, constant
from lyapunov.implementations.transformers.mamba1 import TORCH
from lyapunov.sublayers.ssd import chunked_scan
from oracles.checkpoints.configurations import NO_LIMITS


TOKENS, CHUNK, HEADS, HEAD_DIM, STATES = 11, 4, 2, 3, 2
AT = 5, 1, 2
"""Token, head and channel of what is no number: in the second chunk of three."""
A = -np.array([0.5, 1.5])


@pytest.fixture(autouse=True)
def wide():
    """fp64, as in a check."""
    with jax.enable_x64(True):
        yield


def drawn():
    """dt, x, B and C that fp32 holds."""
    rng = np.random.default_rng(7)
    shapes = (TOKENS, HEADS), (TOKENS, HEADS, HEAD_DIM), *2 * [(TOKENS, 1, STATES)]
    dt, x, B, C = (np.float32(rng.normal(size=shape)) for shape in shapes)
    return np.abs(dt) + np.float32(0.1), x, B, C


def infinite_x(dt, x, B, C):
    x[AT] = np.inf


def nan_of_x(dt, x, B, C):
    x[AT] = np.nan


def infinite_B(dt, x, B, C):
    B[AT[0]] = np.inf


def infinite_C(dt, x, B, C):
    C[AT[0]] = -np.inf


def products_that_overflow(dt, x, B, C):
    """x dt beyond fp32's range, where B x dt is not."""
    x[AT], dt[AT[:2]], B[AT[0]] = 3e38, 4.0, 1e-30


CHANGES = [infinite_x, nan_of_x, infinite_B, infinite_C, products_that_overflow]


def cut(a):
    filled = np.pad(a, [(0, -TOKENS % CHUNK), *[(0, 0)] * (a.ndim - 1)])
    return filled.reshape(-1, CHUNK, *a.shape[1:])


def one_chunk(elapsed, dt, x, B, C, of_x):
    """(what pairs of tokens read, the state that the chunk makes); dt is x's or B's."""
    x, dt = (x * dt[..., None], np.ones_like(dt)) if of_x else (x, dt)
    apart = elapsed[:, None] - elapsed[None]
    decays = np.where(np.tri(CHUNK)[..., None] > 0, np.exp(np.minimum(apart, 0)), 0)
    pairs = np.einsum("ln,sn->ls", C, B)[..., None] * np.float32(decays) * dt
    read = np.einsum("lsh,shp->lhp", pairs, x)
    left = np.exp(elapsed[-1] - elapsed) * dt
    made = np.einsum("shn,shp->hpn", B[:, None] * left[..., None], x)
    return read, made


def chunks(dt, x, B, C, of_x) -> Iterator[tuple[np.ndarray, ...]]:
    """Of each chunk: sums of log decays, C, its own read-out and the state made."""
    for one_dt, one_x, one_B, one_C in zip(*map(cut, (dt, x, B, C)), strict=True):
        elapsed = np.cumsum(one_dt * np.float32(A), axis=0, dtype=np.float32)
        B, C = one_B[:, 0], one_C[:, 0]
        yield elapsed, C, *one_chunk(elapsed, one_dt, one_x, B, C, of_x)


def read_out(parts, states):
    """y of all tokens, given the state that each chunk starts from."""
    y = [
        own + np.einsum("ln,hpn->lhp", C, state) * np.exp(elapsed)[..., None]
        for (elapsed, C, own, _), state in zip(parts, states, strict=True)
    ]
    return np.concatenate(y)[:TOKENS].reshape(TOKENS, -1)


def looped(dt, x, B, C):
    """mamba_ssm: the state of a chunk is faded and added to, one after another."""
    parts = list(chunks(dt, x, B, C, False))
    states = [np.zeros((HEADS, HEAD_DIM, STATES), np.float32)]
    for elapsed, _, _, made in parts[:-1]:
        states.append(states[-1] * np.exp(elapsed[-1])[:, None, None] + made)
    return read_out(parts, states)


def at_once(dt, x, B, C):
    """transformers: all states times a matrix of decays, of later chunks 0."""
    parts = list(chunks(dt, x, B, C, True))
    made = np.stack([part[3] for part in parts])
    whole = np.cumsum([np.zeros_like(A), *(part[0][-1] for part in parts)], axis=0)
    # to the start of chunk c from the end of chunk z
    apart = whole[:-1, None] - whole[None, 1:]
    earlier = np.tri(len(parts), k=-1)[..., None] > 0
    decays = np.float32(np.where(earlier, np.exp(np.minimum(apart, 0)), 0))
    return read_out(parts, np.einsum("czh,zhpn->chpn", decays, made))


def transformers(dt, x, B, C, family="mamba2"):
    """The library's own function, which every family has a copy of."""
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    x, dt, B, C = (torch.as_tensor(a)[None] for a in (x, dt, B, C))
    rates = torch.as_tensor(A.astype(np.float32))
    y = modeling.mamba2_chunk_scan(x, dt, rates, B, C, chunk_size=CHUNK)
    return y[0].reshape(TOKENS, -1).numpy()


@functools.cache
def compiled(at_once: bool):
    """The scan of an execution that stores nothing inside: value, error, emulated."""

    def scan(at, dt, x, B, C):
        state = jnp.zeros((STATES, HEADS * HEAD_DIM))
        x = at.view(lambda a: a.reshape(TOKENS, -1), x)
        D = jnp.zeros(HEADS * HEAD_DIM)
        return chunked_scan(at, dt, x, B, C, jnp.asarray(A), D, state, CHUNK)[0]

    @jax.jit
    def run(model, *given):
        bounds = BoundedArithmetic(
            {}, model, scan_depth=CHUNK, form=Form(chunked=True, chunks_at_once=at_once)
        )
        emulator = Rounded({}, form=Form(chunked=True, chunks_at_once=at_once))
        y = scan(bounds, *map(constant, given))
        return y.value, y.error, scan(emulator, *given)

    return run


def bounded(at_once, given):
    """Value, error and what the emulator has, of one way of passing states."""
    found = compiled(at_once)(TORCH.model(), *map(np.float64, given))
    return tuple(map(np.asarray, found))


def outside(own, value, error):
    """Elements of a run that a finite bound does not hold."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(error) & ~(np.abs(own - value) <= error)


PROGRAMS = [(looped, False), (at_once, True), (transformers, True)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("program", "together"), PROGRAMS)
def test_what_is_no_number_is_unbounded_wherever_it_goes(change, program, together):
    """Assert it, and that what it cannot reach keeps its bound."""
    given = drawn()
    change(*given)
    value, error, emulated = bounded(together, given)
    with np.errstate(all="ignore"):
        own = program(*given)
    assert np.isfinite(own).all() == (change is products_that_overflow and not together)
    for run in (own, emulated):
        assert not outside(run, value, error).any()
    kept = np.isfinite(error).reshape(TOKENS, HEADS, HEAD_DIM)
    before = np.arange(TOKENS) < AT[0] // CHUNK * CHUNK
    if not together or change is infinite_C:
        assert kept[before].all()
    if change in (infinite_x, nan_of_x, products_that_overflow):
        assert kept[:, 0].all()
        assert kept[:, 1, :2].all()
    if change is infinite_C:
        assert kept[8:].all()


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(NO_LIMITS) - {"mamba2"}))
def test_every_family_passes_states_at_once(family):
    """Assert that the copies' infinities are where Mamba-2's are, and unbounded."""
    for change in CHANGES:
        given = drawn()
        change(*given)
        own = transformers(*given, family=family)
        np.testing.assert_array_equal(own, transformers(*given))
        value, error, _ = bounded(True, given)
        assert not np.isfinite(own).all()
        assert not outside(own, value, error).any()


@pytest.mark.parametrize("change", [infinite_x, nan_of_x, infinite_B])
def test_the_other_programs_bound_is_broken(change):
    """Assert that the way states are passed matters: 0 times inf, chunks before."""
    given = drawn()
    change(*given)
    value, error, _ = bounded(False, given)
    with np.errstate(all="ignore"):
        broken = outside(at_once(*given), value, error)
    assert broken[: AT[0] // CHUNK * CHUNK].any()


def test_numbers_keep_their_bounds_bit_for_bit():
    """Assert that finite drives and states are bounded alike in both programs."""
    given = drawn()
    for one, other in zip(bounded(False, given), bounded(True, given), strict=True):
        np.testing.assert_array_equal(one, other)
    value, error, _ = bounded(True, given)
    assert np.isfinite(error).all()
    for program, _ in PROGRAMS:
        assert not outside(program(*given), value, error).any()
