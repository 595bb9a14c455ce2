"""Executions whose cached state is in a format of its own, held to their bounds."""

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.formats import state_format_named
from lyapunov.implementations import (
    Emulated,
    Reference,
    executions_for,
    mamba_ssm_decode,
)
from lyapunov.questions._cause import StateFacts, state_cause, state_facts
from lyapunov.sublayers import Mamba1Sizes, NetworkConfig

from ..helpers import not_none, of_sublayer
from .conftest import SLOW_KINDS


FAST = ["fp8_e4m3-scaled"]
REST = [
    "bf16-stochastic",
    "fp8_e4m3",
    "fp16",
    "fp8_e5m2",
    "fp8_e5m2-scaled",
    "fp8_e4m3-scaled-stochastic",
    "int8-scaled",
    "int16-scaled",
    "int8-scaled-stochastic",
    "int16-scaled-stochastic",
]
CACHES = FAST + [pytest.param(c, marks=pytest.mark.slow) for c in REST]


def check(folder, tokens, cache, precision="bf16", **options):
    return lyapunov.check(
        str(folder),
        tokens,
        precisions=[precision],
        mode="decode",
        state_precision=cache,
        floor=False,
        probes=0,
        ball=False,
        **options,
    )


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "kind", ["plain", *SLOW_KINDS, pytest.param("overflow", marks=pytest.mark.slow)]
)
def test_no_element_exceeds_its_bound(checkpoint, kind, cache):
    """Assert zero violations, and ratios of at least 1 where something is finite."""
    folder, _, tokens = checkpoint(kind)
    run = check(folder, tokens, cache).precisions[0]
    assert run.state_precision == cache
    for layer in run.layers:
        assert layer.violations == 0, (kind, layer.first_violation)
        if not layer.non_finite:
            assert not_none(layer.bound_t1_ratio) >= 1 - 2.0**-20


def test_bounds_of_a_rounded_state_are_tight(checkpoint):
    """Assert T0 of the gate within 1.1 to nearest: the centre follows each store."""
    folder, _, tokens = checkpoint("plain")
    for cache in ("bf16", "fp8_e4m3"):
        for layer in check(folder, tokens, cache).precisions[0].layers:
            assert not_none(layer.bound_t0)["gated"] < 1.1, cache


def test_an_overflowing_e4m3_state_has_no_finite_bound(checkpoint):
    """Assert NaN in the run, inf in the bound, and no violation: not a false bound."""
    folder, _, tokens = checkpoint("outliers")
    run = check(folder, tokens, "fp8_e4m3").precisions[0]
    layer = run.layers[0]
    assert layer.non_finite > 0
    assert layer.violations == 0
    assert not np.isfinite(not_none(layer.bound_t1_l2))
    # under a scale nothing overflows
    for layer in check(folder, tokens, "fp8_e4m3-scaled").precisions[0].layers:
        assert layer.non_finite == layer.violations == 0


def test_draws_follow_the_seed(checkpoint):
    """Assert equal runs for equal seeds, others for others, and for each sequence."""
    folder, _, tokens = checkpoint("plain")
    model = lyapunov.load(folder)
    execution = mamba_ssm_decode("fp32", state_precision="fp8_e4m3-stochastic")
    both = np.stack([tokens, tokens])

    def output(seed):
        runner = Emulated(execution, seed)
        first = next(lyapunov.trace(model, both, runner=runner))
        return np.asarray(of_sublayer(first).output)

    first = output(0)
    np.testing.assert_array_equal(first, output(0))
    assert (first != output(1)).any()
    assert (first[0] != first[1]).any()


def test_drawn_states_average_to_the_ones_that_are_not_rounded(checkpoint):
    """Assert that the mean of 64 runs is nearer to fp32 than nearest rounding is."""
    folder, _, tokens = checkpoint("plain")
    model = lyapunov.load(folder)
    wide = mamba_ssm_decode("fp32")
    many = np.repeat(tokens[None], 64, axis=0)

    def outputs(cache, batch):
        execution = mamba_ssm_decode("fp32", state_precision=cache)
        runner = Emulated(execution)
        first = next(lyapunov.trace(model, batch, runner=runner))
        return np.asarray(of_sublayer(first).output)

    exact = outputs(wide.state_precision, tokens)[0]
    drawn = outputs("fp8_e4m3-stochastic", many)
    nearest = outputs("fp8_e4m3", tokens)[0]
    off = np.linalg.norm(drawn.mean(axis=0) - exact)
    assert off < 0.5 * np.linalg.norm(nearest - exact)
    # and the mean of independent errors shrinks with their number
    assert off < 3 * np.linalg.norm(drawn[0] - exact) / np.sqrt(64)


CONFIG = NetworkConfig(50, 50, 16, (Mamba1Sizes(16, 32, 4, 4, 1, 1e-5),))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"mode": "train"}, "train"),
        ({"measure": "vlm"}, "vlm"),
        ({"state_precision": "int8"}, "int8"),
        ({"precisions": ["tf32"]}, "tf32"),
        ({"precisions": ["fp32-amp"]}, "fp32-amp"),
        ({"precisions": ["bf16-half"]}, "bf16-half"),
        ({"measure": "transformers", "state_precision": "bf16"}, "fp32, not bf16"),
        ({"measure": "transformers", "precisions": ["bf16-cast"]}, "already"),
        (
            {"measure": "transformers", "precisions": ["bf16-amp"], "mode": "decode"},
            "whole sequences",
        ),
        ({"measure": "mamba_ssm", "state_precision": "bf16"}, "fp32, not bf16"),
        (
            {"measure": "mamba_ssm", "mode": "decode", "state_precision": "fp8_e4m3"},
            "not fp8_e4m3",
        ),
    ],
)
def test_what_there_is_not_is_said(asked, says):
    """Assert a UsageError with what was given, and a hint."""
    precisions = asked.pop("precisions", ["bf16"])
    with pytest.raises(UsageError, match=says) as caught:
        executions_for(CONFIG, precisions, **asked)
    assert caught.value.hint


def test_executions_are_those_that_were_asked_for():
    """Assert implementation, mode, formats and order; none for `none`."""
    found = executions_for(
        CONFIG, ["bf16", "fp16-amp"], mode="decode", state_precision="fp8_e5m2"
    )
    assert [e.precision for e in found] == ["bf16", "fp16-amp"]
    assert {e.mode for e in found} == {"decode"}
    assert {e.sites["state"].name for e in found} == {"fp8_e5m2"}
    assert executions_for(CONFIG, ["bf16"], measure="none") == []
    (torch,) = executions_for(CONFIG, ["bf16"], mode="decode", measure="transformers")
    assert torch.name == "transformers decode, bf16"
    (prefill,) = executions_for(CONFIG, ["bf16"])
    assert "state" not in prefill.sites


def test_causes_are_read_off_the_reference(checkpoint):
    """Assert the shares against NumPy, and each cause where it was made."""
    folder, _, tokens = checkpoint("plain")
    model = lyapunov.load(folder)
    form = state_format_named("fp8_e4m3")
    runner = Reference((form.unit_roundoff,), (form.smallest_normal,))
    record = next(lyapunov.trace(model, tokens, runner=runner))
    facts = not_none(state_facts(record))
    assert 0 < not_none(facts.underflow) <= 1
    assert 0 <= not_none(facts.stagnation) <= 1
    assert state_cause("fp32", [facts]) is None

    def cause(name, largest=1.0, underflow=0.0, stagnation=0.0, **known):
        fact = StateFacts(3, largest, underflow, stagnation)
        return state_cause(name, [fact], **known)

    assert not_none(cause("fp8_e4m3", largest=1e3)).startswith(
        "range: states of layer 3 reach"
    )
    assert not_none(cause("fp8_e4m3", underflow=0.8)).startswith("range: up to 80%")
    assert not_none(cause("fp8_e4m3-scaled", largest=1e3, underflow=0.8)).startswith(
        "mantissa"
    )
    assert not_none(cause("bf16", stagnation=0.3)).startswith("stagnation: 30%")
    assert not_none(cause("bf16-stochastic", stagnation=0.3)).startswith("mantissa")
    assert not_none(cause("fp16")).startswith("mantissa: fp16 keeps 11 bits")
    # integers follow the largest state, and have no subnormals
    assert not_none(cause("int8-scaled", largest=1e9, underflow=0.9)).startswith(
        "mantissa: int8 keeps 127 steps"
    )
    assert not_none(cause("int8-scaled", stagnation=0.3)).endswith(
        "below half a step of int8"
    )
    drawn = not_none(cause("int16-scaled-stochastic", stagnation=0.3))
    assert drawn.startswith("mantissa: int16 keeps 32767 steps")
    assert not_none(cause("bf16", moved=False)).startswith("the model")
    assert not_none(cause("bf16", stagnation=0.3, state_share=0.1)).startswith(
        "the model"
    )
    assert not_none(cause("fp8_e4m3", largest=np.nan)).startswith("range")
