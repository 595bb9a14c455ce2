"""Served Mamba-2 in two calls: where chunks end, and what of the state is handed on."""

import jax
import numpy as np
import pytest

import lyapunov
from lyapunov.bounds import audit_sublayer
from lyapunov.formats import state_format_named
from lyapunov.implementations import implementation_named
from lyapunov.implementations._segment import Segment, merged
from lyapunov.sublayers.ssd import chunks
from oracles.kernels import served

from . import ssd_models as models, ssd_runs as runs
from .test_served_kernels import run_stack


SIZES = models.Sizes(layers=1, d_model=16, chunk=4)
SEQ, CUT = 19, 10


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A model of one layer, its weights, and a text."""
    weights = models.drawn(SIZES)
    folder = models.save(tmp_path_factory.mktemp("served") / "model", weights, SIZES)
    tokens = np.random.default_rng(1).integers(0, SIZES.vocab, SEQ)
    return lyapunov.load(str(folder)), weights, tokens


def audited(setting, name, make, **options):
    """The audit of a run in two calls, declared as by the implementation."""
    model, weights, tokens = setting
    execution = (
        implementation_named(name)
        .execution(model.config, "bf16", architecture="mamba2", state_precision="bf16")
        .of("mamba2")
    )
    records = run_stack(
        weights, tokens, "bf16", SIZES, make, {"cache": "bf16"} | options
    )
    (_, _, record, parameters), start = runs.bounded_by(model, execution, records[0], 0)
    cache = state_format_named("bf16")
    calls = Segment(0, CUT, execution, cache), Segment(CUT, SEQ, execution, cache)
    segments = merged(calls, model.config.sublayers[0])
    every = [parameters] * 2, [model.parameters(0)] * 2
    keys = jax.random.split(jax.random.key(0), 2)
    with jax.enable_x64(True):
        return audit_sublayer(
            segments, model.config.sublayers[0], record, *every, start, keys
        )


class OnAGrid(served.SglangScan):
    """vLLM: the second call goes on in the middle of a chunk."""

    def scanned(self, xz, conv):
        x, B, C = self.parts(conv)
        step = self.step_size(xz[:, -self.heads :])
        state = np.zeros((self.heads, x.shape[2], self.n), self.kind)
        self.ends, out = False, []
        for first, last in ((0, 4), (4, 8), (8, 10), (10, 12), (12, 16), (16, 19)):
            own = slice(first, last)
            if first == CUT:
                state = self.as_cached(state, self.cached)
            state, y = self.chunk(state, step[own], x[own], B[own], C[own])
            out.append(y)
        return np.concatenate(out).reshape(SEQ, -1)


@pytest.mark.slow  # an audit's three programs each
@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("sglang_emulated", served.SglangScan, {"cut": CUT}),
        ("vllm_emulated", OnAGrid, {"cut": CUT, "again": False}),
    ],
)
def test_calls_hold(setting, name, make, options):
    """Assert no violation, and a bound that is reached."""
    found = audited(setting, name, make, **options)
    for held in (*found.tensors.values(), found.output):
        assert int(np.sum(held.violations)) == 0
        assert int(np.sum(held.unbounded)) == 0
    assert float(np.max(found.output.ratio)) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        # the carry itself where it is made anew, chunks from the call where they end
        # on a grid, and the other way round
        ("sglang_emulated", served.SglangScan, {"cut": CUT, "again": False}),
        ("vllm_emulated", served.SglangScan, {"cut": CUT, "again": False}),
        ("sglang_emulated", OnAGrid, {"cut": CUT}),
    ],
)
def test_calls_of_the_other_stack_are_told(setting, name, make, options):
    """Assert violations behind the first call, and none within it."""
    found = audited(setting, name, make, **options)
    by_token = np.asarray(found.tensors["scan_output"].violations)[0]
    assert not by_token[:CUT].any()
    assert by_token[CUT:].any()


@pytest.mark.parametrize("calls", [(), (10, 9), (1, 17, 1), (4, 4, 11)])
@pytest.mark.parametrize("grid", [None, 0, 3, 4, 9])
def test_chunks_end_where_they_should(calls, grid):
    """Assert borders against a loop over tokens, and that cutting can be undone."""
    cut, joined = chunks(SEQ, SIZES.chunk, calls, grid)
    numbers = np.arange(1, SEQ + 1)[:, None]
    pieces = [[int(t) for t in row if t] for row in np.asarray(cut(numbers))[..., 0]]
    starts = {0, *np.cumsum(calls)} - {SEQ}
    expected, own, begun = [], [], 0
    for token in range(SEQ):
        passed = token - begun if grid is None else token + grid
        if own and (token in starts or passed % SIZES.chunk == 0):
            expected.append(own)
            own = []
        if token in starts:
            begun = token
        own.append(token + 1)
    assert pieces == [*expected, own]
    assert np.array_equal(np.asarray(joined(cut(numbers))), numbers)
