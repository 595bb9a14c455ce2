"""In exact arithmetic every cut of a text gives the same numbers; the emulator's do not
differ by more than rounding."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import Exact
from lyapunov.bounds.local import REFERENCE_SHARE
from lyapunov.implementations._ways import parse_variant
from lyapunov.results._audit import CONSISTENT
from lyapunov.sublayers.residual import Incoming, sublayer

from .conftest import SEQ


@pytest.mark.parametrize("variant", ["steps", "chunks:7", "chunks:1", "chunks:31,rest"])
def test_whole_steps_and_chunks_agree(setting, variant):
    """Assert it in fp64: both sides are off by REFERENCE_SHARE of a token's norm."""
    model, _, tokens = setting
    with jax.enable_x64(True):
        residual = model.embed(tokens)
        p = model.parameters(0)
        flow = model.sublayers[0].flow
        run = eqx.filter_jit(
            lambda x, start: sublayer(
                Exact(), flow, Incoming(x, jnp.zeros_like(x)), p, start
            )[1:]
        )
        whole, end = run(residual, model.start(p))
        parts, state = [], model.start(p)
        for call in parse_variant(variant).calls(SEQ):
            size = 1 if call.decode else call.stop - call.start
            for first in range(call.start, call.stop, size):
                part, state = run(residual[first : first + size], state)
                parts.append(part)
        joined = jnp.concatenate(parts)
        limit = 2 * REFERENCE_SHARE * jnp.linalg.norm(whole, axis=-1, keepdims=True)
        assert jnp.all(jnp.abs(joined - whole) <= limit)
        assert joined.shape == whole.shape
        np.testing.assert_allclose(state.state, end.state, rtol=0, atol=1e-9)
        # and a lost state is far beyond that
        lost = run(residual[SEQ // 2 :], model.start(p))[0]
        assert jnp.any(jnp.abs(lost - whole[SEQ // 2 :]) > 100 * limit[SEQ // 2 :])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_emulator_in_calls_is_rounding(audited, precision):
    """Assert it for chunks, steps and a prompt, through caches in fp32 and 16 bits."""
    ways = ("whole", "chunks:17", f"initial_state:{SEQ // 2}")
    for state in ("fp32", None):
        found = audited(
            *ways, precision=precision, source="emulated", state_precision=state
        )
        for name, run in found.items():
            assert run.verdict == CONSISTENT, (name, run.first_violation)
            assert run.z < 4


@pytest.mark.slow
def test_too_many_calls_through_a_narrow_cache_are_not_run(audited):
    """Assert the reason, and what to do."""
    run = audited("whole", "chunks:2", source="emulated")["chunks:2"]
    assert run.verdict == "not run"
    assert "--state-precision fp32" in run.reason
