"""The scan in one kernel: the loop's values and bounds, on hard inputs as well.

Kernels run in Pallas' interpreter here; that they compile is seen by lowering them for
CUDA, which needs no GPU.
"""

import contextlib
import sys
import warnings
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import Bounded, Exact, Rounded, Weight
from lyapunov.bounds.passes import exact_pass
from lyapunov.implementations.mamba_ssm.mamba1 import mamba_ssm_prefill
from lyapunov.recurrences import _fused_scan
from lyapunov.recurrences.mamba1 import in_blocks, scan_channels, selective_scan, token
from lyapunov.recurrences.mamba2 import head_scan
from lyapunov.sublayers.mamba1 import Mamba1Parameters, initial_state, mamba1
from lyapunov.sublayers.norm import Norm
from lyapunov.sublayers.residual import Incoming

from ..helpers import gamma


SEQ, CHANNELS, STATES = 48, 8, 16
UNIT = 2.0**-53
# Multiplications and additions that an entry of a bound goes through at a token: the
# decay's and the drive's rules, `advance`, `contract`. Both sides do the same ones and
# differ in how sums are bracketed and products are fused.
A_TOKEN = 64
KINDS = ["plain", "gates", "slow", "subnormal", "outliers", "far", "exact", "unknown"]


def bounded_at(seq=SEQ, precision="fp32"):
    execution = mamba_ssm_prefill(precision)
    return execution.bounded(
        seq, execution.site_numbers(), execution.constants.model(), centred=True
    )


def operands(rng, kind: str, *, bounded: bool, channels=CHANNELS, states=STATES):
    """dt, u, B, C, A, D, state in fp32, each kind hard in its own way."""
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), (SEQ, channels)))
    u = rng.normal(size=(SEQ, channels))
    B, C = rng.normal(size=(2, SEQ, states))
    A = -np.exp(rng.normal(size=(states, channels)))
    D, state = rng.normal(size=channels), rng.normal(size=(states, channels))
    relative = 2.0**-9
    if kind == "gates":
        dt[rng.random(dt.shape) < 0.3] = 0.0
        dt[rng.random(dt.shape) < 0.1] = 500.0
        u[rng.random(u.shape) < 0.2] = 0.0
        C[3:5] = 0.0
    elif kind == "slow":
        # the decay rounds to 1, in fp64 too
        dt, A = dt * 1e-12, A * 1e-6
    elif kind == "subnormal":
        u, state = u * 2.0**-130, state * 2.0**-140
    elif kind == "outliers":
        u[rng.random(u.shape) < 0.05] *= 1e20
        C[7] *= 1e10
    elif kind == "far":
        # beyond fp32: nothing is bounded there, and only there
        u[SEQ // 2, 0] = 1e38
        B[SEQ // 2] *= 1e3
    elif kind == "exact":
        relative = 0.0

    def value(x):
        x = jnp.asarray(np.asarray(x, np.float32), jnp.float64)
        return Bounded(x, relative * jnp.abs(x)) if bounded else x

    given: list[Any] = [value(x) for x in (dt, u, B, C, A)]
    if kind == "unknown" and bounded:
        # two dt and one B of which nothing is known
        dt, B = given[0], given[2]
        given[0] = Bounded(
            dt.value, dt.error.at[25, 1].set(jnp.inf).at[30, 2].set(jnp.nan)
        )
        given[2] = Bounded(B.value, B.error.at[40, 3].set(jnp.nan))
    plain = [jnp.asarray(np.asarray(x, np.float32), jnp.float64) for x in (D, state)]
    return (*given, *plain)


def rounded():
    return Rounded({})


# Compiled once for all inputs of a size. `make` gives the arithmetic.
@eqx.filter_jit
def in_loop(make, given):
    """(y, state after it, what was observed)."""
    at = make()
    return *in_blocks(at, *given), dict(at.observed)


@eqx.filter_jit
def in_kernel(make, given, tile=None, body=token):
    at, numbers = make(), make().kernel(given[-1].shape[0]).numbers
    return _fused_scan.in_kernel(at, body, numbers, given, tile=tile, interpret=True)


@eqx.filter_jit
def magnitudes(given):
    """What adds up to y and to the state, all signs alike."""
    dt, u, B, C, A, D, state = (abs(getattr(x, "value", x)) for x in given)
    return selective_scan(Exact(), dt, u, B, C, -A, D, state)


def assert_alike(one, other, given):
    """Values to fp64's own error, errors to a few of it a token, inf and NaN alike."""
    own = gamma(A_TOKEN * (SEQ + STATES), UNIT)
    for a, b, size in zip(one, other, magnitudes(given), strict=True):
        a, b = (x if isinstance(x, Bounded) else Bounded(x, abs(x) * 0) for x in (a, b))
        assert np.all(np.abs(a.value - b.value) <= own * size)
        known = np.isfinite(b.error)
        assert np.array_equal(np.isfinite(a.error), known)
        off = np.abs(a.error - b.error)[known]
        assert np.all(off <= own * b.error[known])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bounded", [False, True])
def test_kernel_computes_what_the_loop_does(rng, kind, bounded):
    """Assert values, bounds and observed states of the two, on every kind of input."""
    given = operands(rng, kind, bounded=bounded)
    make = bounded_at if bounded else Exact
    *loop, wanted = in_loop(make, given)
    y, after, observed = in_kernel(make, given)
    assert_alike((y, after), loop, given)
    assert set(observed) == set(wanted)
    for name, x in observed.items():
        np.testing.assert_allclose(x, wanted[name], rtol=gamma(4 * SEQ, UNIT))
    if bounded:
        unknown = ~np.isfinite(y.error)
        assert unknown.any() == (kind in ("far", "unknown"))
        assert not unknown[: SEQ // 2].any()
        if kind == "unknown":
            assert unknown[25:, 1].all()
            assert unknown[30:, 2].all()
            assert unknown[40:].all()
            assert not unknown[:40, 3:].any()


@pytest.mark.parametrize("kind", ["plain", "gates", "slow", "outliers"])
def test_emulator_in_a_kernel(rng, kind):
    """Assert that the emulator stays in fp32, within a scan's bound either way."""
    given = operands(rng, kind, bounded=False)
    bound = in_loop(bounded_at, given)[:2]
    loop = in_loop(rounded, given)[:2]
    y, after, observed = in_kernel(rounded, given)
    assert y.dtype == loop[0].dtype == np.float32
    assert not observed
    for against, *runs in zip(bound, (y, after), loop, strict=True):
        for ran in runs:
            far = np.abs(np.asarray(ran, np.float64) - against.value)
            assert np.all(far <= against.error)
    assert np.any(np.asarray(y, np.float64) != bound[0].value)


def rounded_sequentially(given, rng, flush: bool):
    """A scan as a kernel may do it: fp32, inputs anywhere within their errors."""

    def narrow(x):
        x = np.asarray(x, np.float32)
        return np.where(np.abs(x) < 2.0**-126, np.float32(0), x) if flush else x

    def drawn(x):
        if not isinstance(x, Bounded):
            return narrow(x)
        # half of them at an end; 2^-20 inside, so that fp32 does not round beyond it
        far = np.clip(rng.uniform(-2, 2, x.shape), -1, 1) * (1 - 2.0**-12)
        return narrow(np.asarray(x.value) + far * np.asarray(x.error))

    dt, u, B, C, A, D, h = map(drawn, given)
    y = []
    for t in range(SEQ):
        a = narrow(np.exp(narrow(dt[t] * A)))
        b = narrow(narrow(dt[t] * u[t]) * B[t][:, None])
        h = narrow(narrow(a * h) + b)
        y.append(narrow(u[t] * D))
        for n in range(STATES):
            y[-1] = narrow(y[-1] + narrow(C[t, n] * h[n]))
    return np.stack(y), h


@pytest.mark.parametrize("kind", ["plain", "gates", "slow", "subnormal", "outliers"])
def test_kernels_bound_holds_and_says_something(rng, kind):
    """Assert no violation by fp32 scans, and a bound within 200 of what they do.

    What is left open is mostly the inputs' errors, which add up in the worst case:
    over 16 states and a memory of up to 48 tokens some 30 times their random sum.
    Where numbers are below 2^-126 it is what every operation may flush.
    """
    given = operands(rng, kind, bounded=True)
    y, after, _ = in_kernel(bounded_at, given)
    worst = 0.0
    for draw in range(6):
        found = rounded_sequentially(given, rng, flush=draw % 2 == 1)
        for bound, ran in zip((y, after), found, strict=True):
            far = np.abs(np.asarray(ran, np.float64) - bound.value)
            assert np.all(far <= bound.error), kind
            worst = max(worst, float(np.linalg.norm(far) / np.linalg.norm(bound.error)))
    assert worst > 1 / 200 or kind == "subnormal"


def dropped(name: str):
    """The body with one error left out, or one input taken from the wrong place."""

    def body(at, state, inputs, A, D):
        dt, drive, _, B, C, skip = inputs
        without = lambda x: Bounded(x.value, jnp.zeros_like(x.value))
        if name == "B":
            B = without(B)
        elif name == "C":
            C = without(C)
        elif name == "dt":
            dt = without(dt)
        elif name == "A":
            A = without(A)
        elif name == "D":
            skip = jax.tree.map(jnp.zeros_like, skip)
        elif name == "drive":
            drive = dt
        return token(
            at, state, inputs._replace(dt=dt, drive=drive, B=B, C=C, skip=skip), A, D
        )

    return body


@pytest.mark.parametrize("name", ["B", "C", "dt", "A", "D", "drive"])
def test_a_broken_kernel_is_caught(rng, name):
    """Assert that leaving out one error or one input shows in the comparison."""
    given = operands(rng, "plain", bounded=True)
    loop = in_loop(bounded_at, given)[:2]
    broken = in_kernel(bounded_at, given, body=dropped(name))[:2]
    with pytest.raises(AssertionError):
        assert_alike(broken, loop, given)


@pytest.mark.parametrize("tile", [(1, 1), (2, 1), (8, 2)])
def test_tiles_do_not_matter(rng, tile):
    """Assert the same bits whatever share of the channels a program has."""
    given = operands(rng, "plain", bounded=True)
    one = in_kernel(bounded_at, given)
    other = in_kernel(bounded_at, given, tile=tile)
    assert_alike(other[:2], one[:2], given)


@pytest.mark.parametrize(
    ("channels", "states"),
    [
        (3, 4),
        *(pytest.param(*size, marks=pytest.mark.slow) for size in ((6, 16), (8, 1))),
        pytest.param(2, 128, marks=pytest.mark.slow),
    ],
)
def test_sizes(rng, channels, states):
    """Assert odd numbers of channels, one state and Mamba-2's many."""
    given = operands(rng, "plain", bounded=True, channels=channels, states=states)
    loop = in_loop(bounded_at, given)[:2]
    own = gamma(A_TOKEN * (SEQ + states), UNIT)
    for a, b in zip(in_kernel(bounded_at, given)[:2], loop, strict=True):
        assert np.all(np.abs(a.error - b.error) <= own * b.error)


def test_batches(rng):
    """Assert that a batch in one call is its sequences one by one."""
    several = [operands(rng, kind, bounded=True) for kind in ("plain", "gates")]
    shared = several[0][4:]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[one[:4] for one in several])
    run = lambda given: in_kernel(bounded_at, (*given, *shared))[:2]
    y, after = jax.jit(jax.vmap(run))(stacked)
    for i, one in enumerate(several):
        given = (*one[:4], *shared)
        loop = in_loop(bounded_at, given)[:2]
        assert_alike(jax.tree.map(lambda x, i=i: x[i], (y, after)), loop, given)


@pytest.fixture
def as_with_a_gpu(monkeypatch):
    """What is traced as on a machine with a GPU; it still runs on the CPU."""
    monkeypatch.setattr(_fused_scan, "has_gpu", lambda: True)


def lowered(run, platform: str, *arguments) -> str:
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        # JAX 0.11 says of its Triton backend that it is going to drop it
        warnings.simplefilter("ignore", DeprecationWarning)
        if platform == "cuda" and jax.__version_info__ >= (0, 11):
            # and asks which GPU
            card = jax.sharding.AbstractDevice("NVIDIA H200", None, "cuda")
            mesh = jax.sharding.AbstractMesh(
                (1,), ("x",), (jax.sharding.AxisType.Auto,), abstract_device=card
            )
            stack.enter_context(jax.sharding.use_abstract_mesh(mesh))
        traced = jax.jit(run).trace(*arguments)
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("make", [Exact, bounded_at, partial(Rounded, {})])
@pytest.mark.usefixtures("as_with_a_gpu")
def test_one_kernel_on_a_gpu_and_a_loop_elsewhere(rng, make):
    """Assert the choice by platform, in a batch, for both kinds of heads."""
    bounded = make is bounded_at
    given = operands(rng, "plain", bounded=bounded)
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), given)
    one = jax.vmap(lambda given: selective_scan(make(), *given))
    assert lowered(one, "cuda", batch).count("gpu.triton") == 1
    assert "stablehlo.while" not in lowered(one, "cuda", batch)
    assert "gpu.triton" not in lowered(one, "cpu", batch)
    assert "stablehlo.while" in lowered(one, "cpu", batch)
    dt, u, B, C, A, D, state = given
    grouped = lambda x: Bounded(x.value[:, None], x.error[:, None])
    B, C = (grouped(x) if bounded else x[:, None] for x in (B, C))
    heads = lambda *given: head_scan(make(), *given)
    text = lowered(heads, "cuda", dt, u, B, C, A[0], D, state)
    assert text.count("gpu.triton") == 1


@pytest.mark.usefixtures("as_with_a_gpu")
def test_what_stores_inside_takes_the_loop(rng):
    """Assert that no kernel leaves out a rounding of the state."""
    execution = mamba_ssm_prefill("fp32", state_precision="bf16")
    at = lambda: execution.bounded(
        SEQ, execution.site_numbers(), execution.constants.model(), centred=True
    )
    given = operands(rng, "plain", bounded=True)
    assert at().stores("state")
    run = lambda given: scan_channels(at(), *given)
    assert "gpu.triton" not in lowered(run, "cuda", given)
    formats = lambda given: scan_channels(Exact(state_units=(2.0**-8,)), *given)
    given = operands(rng, "plain", bounded=False)
    assert "gpu.triton" not in lowered(formats, "cuda", given)
    odd = operands(rng, "plain", bounded=False, states=12)
    run = lambda given: scan_channels(Exact(), *given)
    assert "gpu.triton" not in lowered(run, "cuda", odd)
    assert "gpu.triton" in lowered(run, "cuda", given)


def small_layer(rng) -> tuple[Incoming, Mamba1Parameters]:
    matrix = lambda *shape: Weight(jnp.asarray(rng.normal(size=shape) / shape[-1]))
    p = Mamba1Parameters(
        norm=Norm(jnp.ones(4), None, 1e-5),
        in_proj=matrix(16, 4),
        in_proj_bias=None,
        conv_weight=jnp.asarray(rng.normal(size=(8, 4))),
        conv_bias=jnp.zeros(8),
        x_proj=matrix(2 + 8, 8),
        dt_proj=matrix(8, 2),
        dt_bias=jnp.full(8, -3.0),
        A_log=jnp.zeros((8, 4)),
        D=jnp.ones(8),
        out_proj=matrix(4, 8),
        out_proj_bias=None,
    )
    stream = jnp.asarray(rng.normal(size=(2, SEQ, 4)))
    return Incoming(stream, jnp.zeros_like(stream)), p


@pytest.mark.usefixtures("as_with_a_gpu")
def test_without_pallas_there_is_the_loop(rng, monkeypatch):
    """Assert the loop where Pallas' Triton backend is not installed."""
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    given = operands(rng, "plain", bounded=False)
    run = lambda given: scan_channels(Exact(), *given)
    assert "stablehlo.while" in lowered(run, "cuda", given)


@pytest.mark.slow
def test_derivatives_are_the_loops(rng, monkeypatch):
    """Assert pushed and pulled vectors through a batch, with a GPU and without."""
    given, p = small_layer(rng)
    run = lambda i: exact_pass.__wrapped__(mamba1, i, p, initial_state(p))
    found = []
    for gpu in (False, True):
        monkeypatch.setattr(_fused_scan, "has_gpu", lambda gpu=gpu: gpu)
        out, push = jax.linearize(run, given)
        _, pull = jax.vjp(run, given)
        found.append((out, push(given), pull(out)[0].residual))
    for a, b in zip(*found, strict=True):
        scale = np.linalg.norm(b)
        assert np.linalg.norm(a - b) <= gamma(A_TOKEN * SEQ, UNIT) * scale
        assert scale > 0
