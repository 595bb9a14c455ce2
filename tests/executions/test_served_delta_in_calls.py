"""Served delta rules in two calls: chunks begin with each; a rounded state goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.bounds import audit_sublayer
from lyapunov.bounds.local import with_operator_norms
from lyapunov.formats import state_format_named
from lyapunov.implementations._segment import Segment, merged
from lyapunov.implementations._trace import SublayerRecord
from lyapunov.models.held import held
from oracles.kernels import served_delta as kernels
from oracles.kernels.mamba1 import cast

from . import delta_runs as runs
from .test_served_delta import VLLM


CUT = 37
CALLS = (CUT, runs.SEQ - CUT)


def audited(kind: str, make, cache: str, calls=CALLS):
    """The audit of a run in these calls, declared in two with that cache."""
    sizes, raw = runs.SIZES[kind], runs.drawn(kind)
    execution = runs.declared(kind, VLLM, "bf16", "prefill", cache)
    rng = np.random.default_rng(100)
    shape = runs.SEQ, runs.D_MODEL
    before, hidden = (
        cast(rng.normal(size=shape).astype(np.float32), "bf16") for _ in range(2)
    )
    own = kernels.held(raw, "bf16", runs.IN_FP32[kind])
    eager = kind == "kimi_delta"
    kernel = make(own, sizes, "bf16", cache=cache, calls=calls, eager=eager)
    stored = kernel.run(before, hidden)
    wide = lambda x: jnp.asarray(x, jnp.float64)[None]
    # a chunk of each call has a width of its own
    kept = {
        site: wide(x)
        for site, x in stored.items()
        if site in execution.sites and site != "inverse"
    }
    record = SublayerRecord(0, kind, wide(before), wide(hidden), kept["out"], kept, {})
    form = state_format_named(cache)
    first = Segment(0, CUT, execution, form), Segment(CUT, runs.SEQ, execution, form)
    segments = merged(first, sizes)
    with jax.enable_x64(True):
        get = lambda formats: (
            lambda name: (
                jnp.asarray(held(raw[name], name, formats)) if name in raw else None
            )
        )
        parameters = with_operator_norms(sizes.parameters(get(execution)))
        exact = sizes.parameters(get(None))
        every = [parameters] * len(segments), [exact] * len(segments)
        keys = jax.random.split(jax.random.key(0), 2)
        start = parameters.initial_state()
        return audit_sublayer(segments, sizes, record, *every, start, keys)


def lost(self, state):
    """The second call begins with nothing."""
    return np.zeros_like(state)


def in_three_bits(self, state):
    mantissa, exponent = np.frexp(state)
    return np.ldexp(np.round(mantissa * 8) / 8, exponent).astype(np.float32)


def broken(kind: str, hands_over):
    """Its kernel with another hand-over."""
    own = kernels.Kimi if kind == "kimi_delta" else kernels.Delta
    return type("Broken", (own,), {"handed_over": hands_over})


@pytest.mark.slow  # an audit's three programs each
@pytest.mark.parametrize("kind", runs.SIZES)
@pytest.mark.parametrize("cache", ["bf16", "fp32"])
def test_calls_hold(kind, cache):
    """Assert no violation, and a bound that is reached."""
    make = kernels.Kimi if kind == "kimi_delta" else kernels.Delta
    found = audited(kind, make, cache)
    for one in (*found.tensors.values(), found.output):
        assert int(np.sum(one.violations)) == 0
        assert int(np.sum(one.unbounded)) == 0
    assert float(np.max(found.output.ratio)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", runs.SIZES)
@pytest.mark.parametrize("hands_over", [lost, in_three_bits])
def test_a_hand_over_that_loses_is_told(kind, hands_over):
    """Assert violations behind the first call, and none within it."""
    found = audited(kind, broken(kind, hands_over), "bf16")
    by_token = np.asarray(found.tensors["scan_output"].violations)[0]
    assert not by_token[:CUT].any()
    assert by_token[CUT:].any()


@pytest.mark.slow
def test_chunks_that_go_on_are_told():
    """Assert that a run whose chunks end where a text's do is none in two calls."""
    found = audited("gated_delta", kernels.Delta, "fp32", calls=())
    by_token = np.asarray(found.tensors["w"].violations)[0]
    assert not by_token[:32].any()
    assert by_token[32:].any()
