"""T0 and T1 as a GPU computes them: arrays kept apart, numbers sent once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis._speed_inputs import SMALL, incoming, parameters, record_of, rounded
from lyapunov.arithmetic import BoundedArithmetic, Exact, _called
from lyapunov.arithmetic.rules import declared, sums
from lyapunov.bounds import local
from lyapunov.bounds.passes import Interpreter, bounded_pass, numbers_of, without_error
from lyapunov.implementations.mamba_ssm.mamba1 import mamba_ssm_prefill
from lyapunov.sublayers.mamba1 import initial_state, mamba1
from lyapunov.sublayers.residual import sublayer

from ..helpers import gamma


# Sums over 64 channels, some twenty operations in front of each; roots and squares.
OPERATIONS = 256


def alike(a, b) -> bool:
    """Equal to fp64's own error, which is relative to the largest in the tensor."""
    return bool(
        np.all(np.abs(a - b) <= gamma(OPERATIONS, 2.0**-53) * np.max(np.abs(a)))
    )


@pytest.mark.slow
def test_barriers_change_nothing(monkeypatch):
    """Assert the same bounds with and without, and no violation."""
    execution = mamba_ssm_prefill("bf16")
    given, p = incoming(SMALL), parameters(SMALL, 0)
    held, start = rounded(p, execution), initial_state(p)
    record = record_of(execution, given, held)
    interpreter = Interpreter(execution, SMALL.seq, True)
    found = []
    for gpu in (False, True):
        for rules in (declared, sums):
            monkeypatch.setattr(rules, "has_gpu", lambda gpu=gpu: gpu)
        # compiled anew: what is compiled already does not ask for the GPU again
        t0 = eqx.filter_jit(lambda *given: local._operations.__wrapped__(*given))
        t1 = eqx.filter_jit(lambda *given: bounded_pass.__wrapped__(*given))
        through = t1(
            mamba1,
            interpreter,
            numbers_of(execution),
            without_error(record.incoming),
            held,
            start,
        )
        operations = t0(*local._traced(execution, mamba1, record), held, start)
        found.append((operations, through.output))
    (plain, output), (apart, output_apart) = found
    for site, one in plain.items():
        assert not np.any(one.violations)
        assert not np.any(apart[site].violations)
        assert alike(one.bound_square, apart[site].bound_square), site
        assert alike(one.measured_square, apart[site].measured_square), site
    assert alike(output.error, output_apart.error)
    assert alike(output.norm, output_apart.norm)


def test_a_barrier_is_there_on_a_gpu_alone(monkeypatch):
    """Assert it in the traced program, in a batch as well."""
    run = jax.vmap(lambda x: declared.written_out((x, 2.0 * x))[1])
    for gpu in (False, True):
        monkeypatch.setattr(declared, "has_gpu", lambda gpu=gpu: gpu)
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
        assert set(at.observed) == ({"dt", "state"} if observes else set())


def chain(as_functions: bool):
    """Two dozen operations of which each reads what is before it twice."""
    execution = mamba_ssm_prefill("bf16")
    model = execution.constants.model()

    def run(x):
        at = BoundedArithmetic({}, model, as_functions=as_functions)
        for _ in range(12):
            x = at.add(at.multiply(x, x), x)
        return x.value, x.error, x.norm

    return run


def test_on_a_cpu_a_rule_is_computed_once_for_all_its_readers(rng, monkeypatch):
    """Assert fewer instructions, the same numbers, and nothing of it on a GPU."""
    x = jnp.asarray(rng.uniform(-1, 1, (4, 8)))
    programs = [jax.jit(chain(functions)).lower(x) for functions in (False, True)]
    inline, apart = (program.compile() for program in programs)
    size = lambda program: program.as_text().count(" = ")
    assert size(apart) < size(inline) / 2
    for one, other in zip(inline(x), apart(x), strict=True):
        np.testing.assert_array_equal(one, other)
    assert 'inlineable = "false"' in programs[1].as_text()
    monkeypatch.setattr(_called, "has_gpu", lambda: True)
    assert "inlineable" not in jax.jit(chain(True)).lower(x).as_text()
