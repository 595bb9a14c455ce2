"""A bound that is infinite or NaN at an element neither holds nor fails there."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov.arithmetic import Bounded
from lyapunov.bounds.local import compare, hold
from lyapunov.findings._verdict import Verdict
from lyapunov.questions._audit import _variant
from lyapunov.questions._audit_verdict import audit_findings, audit_summary
from lyapunov.results._audit import CONSISTENT, UNBOUNDED, LayerAudit


SHAPE = 2, 6, 5
ODD = (np.inf, -np.inf, np.nan)


@pytest.fixture
def tensors(rng):
    """Measured, value and error in which any of the three may be infinite or NaN, in
    every combination and next to sound elements."""
    value = rng.normal(size=SHAPE)
    error = np.full(SHAPE, 1e-2)
    measured = value + rng.uniform(-1e-2, 1e-2, SHAPE)
    measured[rng.random(SHAPE) < 0.2] += 1.0
    for array in (measured, value, error):
        for odd in ODD:
            array[rng.random(SHAPE) < 0.08] = odd
    return measured, value, error


def counted(measured, value, error):
    """Unbounded elements and violations by token, one element after the other."""
    unbounded, violations = np.zeros(SHAPE[:2], int), np.zeros(SHAPE[:2], int)
    for place in np.ndindex(*SHAPE):
        if not np.isfinite(error[place]) or not np.isfinite(value[place]):
            unbounded[place[:2]] += 1
        elif not abs(measured[place] - value[place]) <= error[place]:
            violations[place[:2]] += 1
    return unbounded, violations


def test_every_element_is_bounded_or_not_and_only_the_bounded_fail(tensors):
    """Assert counts of a check's and of an audit's comparison against a loop."""
    unbounded, violations = counted(*tensors)
    assert unbounded.sum() > 5
    assert violations.sum() > 5
    measured, value, error = map(jnp.asarray, tensors)
    norm = jnp.linalg.norm(error, axis=-1)
    for found in (
        compare(measured, Bounded(value, error, norm)),
        hold(measured, Bounded(value, error)),
    ):
        np.testing.assert_array_equal(found.unbounded, unbounded)
        np.testing.assert_array_equal(found.violations, violations)


def test_no_bound_at_all_is_no_element_that_held(tensors):
    """Assert it for errors that are all infinite and all NaN, whatever was measured."""
    measured, value, _ = map(jnp.asarray, tensors)
    for odd in (np.inf, np.nan):
        error = jnp.full(SHAPE, odd)
        for found in (
            compare(measured, Bounded(value, error, error[..., 0])),
            hold(measured, Bounded(value, error)),
        ):
            assert int(np.sum(found.unbounded)) == value.size
            assert int(np.sum(found.violations)) == 0


# --- An audit that rests on few bounds -------------------------------------------

LAYER = LayerAudit(0, "mamba1", 0, 0.5, 0.5, 1.0, 3, elements=1000)


def audit_of(*layers):
    way: Any = SimpleNamespace(variant="steps", precision="bf16", segments=())
    return _variant(way, list(layers), 40)


@pytest.mark.parametrize(
    ("unbounded", "output_bounded", "verdict"),
    [
        (0, 1.0, CONSISTENT),
        (400, 0.6, CONSISTENT),
        (501, 1.0, UNBOUNDED),
        (100, 0.49, UNBOUNDED),
        (1000, 0.0, UNBOUNDED),
    ],
)
def test_an_audit_without_bounds_is_not_called_rounding(
    unbounded, output_bounded, verdict
):
    """Assert the verdict, the counts, the words and the exit code."""
    layer = replace(LAYER, unbounded=unbounded, output_bounded=output_bounded)
    run = audit_of(layer, layer)
    assert run.verdict == verdict
    assert (run.elements, run.unbounded) == (2000, 2 * unbounded)
    assert run.bounded_share == min(1 - unbounded / 1000, output_bounded)
    summary = audit_summary([run], audit_findings([run]), Verdict(), 1.0)
    assert summary.verdict == verdict
    assert summary.exit_code == (2 if verdict == UNBOUNDED else 0)
    if verdict == CONSISTENT and unbounded:
        assert "800 of 2,000 elements have no finite bound" in summary.recommendation
    if verdict == UNBOUNDED:
        assert "not decided: steps" in summary.recommendation


def test_a_violation_or_an_odd_error_counts_more_than_missing_bounds():
    blind = replace(LAYER, unbounded=900, output_bounded=0.0)
    assert audit_of(blind, replace(blind, violations=1)).verdict == "bug"
    assert audit_of(replace(blind, z=9.0)).verdict == "suspicious"
    runs = [audit_of(blind), audit_of(replace(LAYER, z=9.0)), audit_of(LAYER)]
    assert audit_summary(runs, [], Verdict(), 1.0).verdict == "suspicious"
    assert audit_summary(runs[::2], [], Verdict(), 1.0).verdict == UNBOUNDED
