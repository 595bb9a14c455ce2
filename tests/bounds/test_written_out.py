"""T0 and T1 as a GPU computes them: arrays kept apart, numbers sent once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis._speed_inputs import SMALL, incoming, parameters, record_of, rounded
from lyapunov.arithmetic import Exact, bounded
from lyapunov.bounds.local import operation_bounds, sublayer_bound
from lyapunov.executions.mamba_ssm import mamba_ssm_prefill
from lyapunov.flows.mamba1 import initial_state, mamba1
from lyapunov.flows.residual import sublayer

from ..helpers import gamma


# Sums over 64 channels, some twenty operations in front of each; roots and squares.
OPERATIONS = 256


@pytest.mark.parametrize(
    "precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"]
)
def test_barriers_change_nothing(monkeypatch, precision):
    """Assert the same bounds to fp64's own error, and the same violations: none."""
    execution = mamba_ssm_prefill(precision)
    given, p = incoming(SMALL), parameters(SMALL, 0)
    held = rounded(p, execution)
    record, start = record_of(execution, given, held), initial_state(p)
    found = []
    for gpu in (False, True):
        monkeypatch.setattr(bounded, "has_gpu", lambda gpu=gpu: gpu)
        jax.clear_caches()
        t0 = operation_bounds(execution, mamba1, record, held, start)
        t1 = sublayer_bound(execution, mamba1, record, held, p, start).comparison
        found.append({**t0, "sublayer": t1})
    plain, apart = found
    for site, one in plain.items():
        assert not np.any(one.violations)
        assert np.all(one.measured_square <= one.bound_square)
        for name in ("bound_square", "measured_square"):
            a, b = getattr(one, name), getattr(apart[site], name)
            assert np.all(np.abs(a - b) <= gamma(OPERATIONS, 2.0**-53) * a), site


def test_a_barrier_is_there_on_a_gpu_alone(monkeypatch):
    """Assert it in the traced program, in a batch as well."""
    run = jax.vmap(lambda x: bounded.written_out(x, 2.0 * x)[1])
    for gpu in (False, True):
        monkeypatch.setattr(bounded, "has_gpu", lambda gpu=gpu: gpu)
        text = str(jax.make_jaxpr(lambda x, gpu=gpu: run(x))(jnp.ones((2, 3))))
        assert ("optimization_barrier" in text) == gpu


def test_numbers_are_sent_once():
    """Assert the same arrays at every call, and others for another format."""
    one, other = mamba_ssm_prefill("bf16"), mamba_ssm_prefill("bf16")
    assert one.site_numbers()["xz"].unit is other.site_numbers()["xz"].unit
    assert one.constants.model().unit is other.constants.model().unit
    wide = mamba_ssm_prefill("fp32").site_numbers()["xz"]
    assert float(wide.unit) == 2.0**-24
    assert float(one.site_numbers()["xz"].unit) == 2.0**-8
    inside = jax.jit(lambda x: x * mamba_ssm_prefill("fp16").site_numbers()["xz"].unit)
    assert float(inside(2.0)) == 2.0**-10
    # made while tracing, read outside
    assert float(mamba_ssm_prefill("fp16").site_numbers()["xz"].unit) == 2.0**-11


def test_an_exact_pass_shows_nothing():
    """Assert that where nobody reads what a scan shows, nothing is kept of it."""
    given, p = incoming(SMALL), parameters(SMALL, 0)
    one = jax.tree.map(lambda x: x[0], given)
    for observes in (False, True):
        at = Exact(observes=observes)
        sublayer(at, mamba1, one, p, initial_state(p))
        assert set(at.observed) == (
            {"dt", "state", "scan_output"} if observes else set()
        )
