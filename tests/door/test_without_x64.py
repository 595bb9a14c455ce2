"""Assert that the public API computes in fp64 where JAX's 64-bit types are off."""

import importlib
import inspect
import pkgutil
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from lyapunov import implementations
from lyapunov.exponents import finite_time_exponents, transient_growth
from lyapunov.implementations import executions_for


TOKENS = np.array([[3, 1, 4, 1, 5]])


@pytest.fixture
def without_x64():
    """As a user's Python starts, with JAX's word on lost digits as an error."""
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jnp.zeros(()).dtype == jnp.float32
        yield


def of_a_model() -> list:
    """What a model and a trace of it give."""
    model = lyapunov.load()
    found = [model.parameters(0).D, model.embed(TOKENS), model.head(0, 4).matrix]
    found += [model.final_norm().weight, model.logits(TOKENS[0])]
    (execution,) = executions_for(model.config, ["bf16"])
    runner = implementations.Emulated(execution)
    head: Any = list(lyapunov.trace(model, TOKENS, runner=runner))[-1]
    return [*found, head.residual, head.hidden, head.logits(0, 8)]


def of_a_recurrence() -> list:
    """Exponents and what is made of them, of a step in JAX and of given Jacobians."""
    step = lambda x, u: jnp.tanh(0.7 * x[::-1] + u)
    state, inputs = np.full(2, 0.1, np.float32), jnp.ones((64, 2), jnp.float32)
    spectrum = lyapunov.lyapunov_spectrum(step, state, inputs)
    found = [spectrum.exponents, spectrum.interval(0.9), spectrum.history]
    decays = 1 - np.arange(1, 65)[:, None] * 2.0**-40
    found.append(lyapunov.lyapunov_spectrum_of(decays).exponents)
    found.append(finite_time_exponents(step, state, inputs).exponents)
    found.append(transient_growth(step, state, inputs).log_norms)
    return found


@pytest.mark.parametrize("figures", [of_a_model, of_a_recurrence])
def test_every_figure_is_that_of_fp64(figures, without_x64):
    ours = [np.asarray(x) for x in figures()]
    with jax.enable_x64(True):
        theirs = [np.asarray(x) for x in figures()]
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.dtype == b.dtype == np.float64, i
        np.testing.assert_array_equal(a, b, err_msg=str(i))


def test_what_was_read_without_it_is_not_kept_in_fp32(without_x64):
    """Assert that a parameter asked for first does not shorten the logits later."""
    model = lyapunov.load()
    with jax.enable_x64(True):
        wanted = np.asarray(lyapunov.load().logits(TOKENS[0]))
    model.parameters(0)
    assert np.array_equal(np.asarray(model.logits(TOKENS[0])), wanted)


def test_the_setting_is_given_back_between_records(without_x64):
    records = []
    for record in lyapunov.trace(lyapunov.load(), TOKENS):
        assert jnp.zeros(()).dtype == jnp.float32
        records.append(record)
    assert records[-1].logits(0, 4).dtype == np.float64
    assert jnp.zeros(()).dtype == jnp.float32


def test_every_runner_enters_it():
    """Assert that no runner's trace is left without, present ones and new ones."""
    found = 0
    for module in pkgutil.walk_packages(
        implementations.__path__, "lyapunov.implementations."
    ):
        for _, kind in inspect.getmembers(
            importlib.import_module(module.name), inspect.isclass
        ):
            declared = getattr(kind, "_is_protocol", False)  # what it has to do alone
            if declared or kind.__module__ != module.name:
                continue
            trace = getattr(kind, "trace", None)
            if trace is not None:  # its own, or one that it has of another stack's
                assert hasattr(trace, "__wrapped__"), kind
                found += 1
    # the emulator follows several flows
    names = implementations.IMPLEMENTATIONS
    assert found >= len([name for name in names if not name.endswith("_emulated")])
