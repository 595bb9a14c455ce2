"""NumPy's Mamba-2 in several calls (`oracles.kernels.mamba2`), under the bounds of an
audit: the state handed on in fp32, where all calls are bounded as one, and in 16 bits.
"""

import jax
import numpy as np
import pytest

import lyapunov
from lyapunov.bounds import audit_sublayer
from lyapunov.formats import state_format_named
from lyapunov.implementations._segment import Segment, merged
from oracles.kernels import mamba2 as ssd
from oracles.kernels.mamba1 import cast

from . import ssd_models as models, ssd_runs as runs


# an audit's three programs for each of two layouts of the calls
pytestmark = pytest.mark.slow

SIZES = models.Sizes(layers=1, d_model=16, chunk=4)
CALLS = (5, 6, 3)
ENDS = np.cumsum(CALLS)


class InCalls(ssd.Ssd):
    """Each call from the state of the one before, in the format of `cache`."""

    def __init__(self, *given, cache, broken=lambda state: state, **options):
        super().__init__(*given, **options)
        self.cache, self.broken = cache, broken

    def scanned(self, xz, conv):
        x, B, C = self.parts(conv)
        step = self.step_size(xz[:, -self.heads :])
        state = np.zeros((self.heads, x.shape[2], self.n), self.kind)
        out = []
        for start, end in zip(ENDS - CALLS, ENDS, strict=True):
            if start:
                state = self.broken(cast(state, self.cache))
            for first in range(start, end, self.shape.chunk):
                own = slice(first, min(first + self.shape.chunk, end))
                state, y = self.chunk(state, step[own], x[own], B[own], C[own])
                out.append(y)
        return np.concatenate(out).reshape(len(conv), -1)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A model of one layer, its weights, and a text."""
    weights = models.drawn(SIZES)
    folder = models.save(tmp_path_factory.mktemp("calls") / "model", weights, SIZES)
    tokens = np.random.default_rng(1).integers(0, SIZES.vocab, sum(CALLS))
    return lyapunov.load(str(folder)), weights, tokens


def audited(setting, declared, **options):
    """The run's audit; `declared`: what is said of its cache."""
    model, weights, tokens = setting
    records = runs.run_stack(weights, tokens, "bf16", SIZES, InCalls, **options)
    execution = runs.execution_of("bf16", SIZES)
    (_, _, record, parameters), start = runs.bounded_by(model, execution, records[0], 0)
    cache = state_format_named(declared)
    segments = [
        Segment(int(end - n), int(end), execution, cache)
        for n, end in zip(CALLS, ENDS, strict=True)
    ]
    sizes = model.config.sublayers[0]
    segments = merged(segments, sizes)
    assert len(segments) == (1 if declared == "fp32" else len(CALLS))
    every = [parameters] * len(segments), [model.parameters(0)] * len(segments)
    keys = jax.random.split(jax.random.key(0), 2)
    with jax.enable_x64(True):
        return audit_sublayer(segments, sizes, record, *every, start, keys)


@pytest.mark.parametrize("cache", ["fp32", "bf16"])
def test_calls_hold_and_what_they_lose_is_found(setting, cache):
    """Assert no violation, a bound that is reached, a z of rounding; and of a state
    that is lost, or rounded below what is declared, a violation behind the first call
    alone."""
    found = audited(setting, cache, cache=cache)
    for held in (*found.tensors.values(), found.output):
        assert int(np.sum(held.violations)) == 0
        assert int(np.sum(held.unbounded)) == 0
    assert float(np.max(found.output.ratio)) > 0.5
    assert 0 < float(np.max(found.z)) < 4
    lost = audited(setting, cache, cache=cache, broken=np.zeros_like)
    by_token = np.asarray(lost.tensors["scan_output"].violations)[0]
    assert not by_token[: CALLS[0]].any()
    assert by_token[CALLS[0]] > 0
    assert float(np.max(lost.z)) > float(np.max(found.z))


def test_a_cache_that_is_narrower_than_declared_is_found(setting):
    """Assert it of fp8 where bf16 is declared, at the first token behind a call."""
    found = audited(setting, "bf16", cache="bf16", broken=coarse)
    by_token = np.asarray(found.tensors["scan_output"].violations)[0]
    assert not by_token[: CALLS[0]].any()
    assert by_token[CALLS[0]] > 0


def coarse(state):
    """Three bits of a mantissa."""
    mantissa, exponent = np.frexp(state)
    return np.ldexp(np.round(mantissa * 8) / 8, exponent).astype(np.float32)
