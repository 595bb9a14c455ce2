"""Right kernels at the edge of their budget, on hard inputs: no bound is exceeded.

`test_adversarial` has the inputs and holds one kernel to true values; here the kernels
of `right_variants` spend what is declared (errors of functions all of one sign, flushed
subnormals, other orders of sums) on the same inputs.
"""

import functools

import numpy as np
import pytest

from analysis.elementwise import Elementwise, exceeding
from lyapunov.implementations import mamba_ssm_prefill
from lyapunov.sublayers.mamba1 import mamba1
from oracles.kernels import mamba1 as kernel

from ..executions.right_variants import Right, variants
from .test_adversarial import (
    CASES,
    EPSILON,
    INNER,
    RANK,
    SEQ,
    bounds_for,
    hard,
    parameters,
)


FAST, ALL = 2, 12


@functools.cache
def bounds_in(precision: str) -> Elementwise:
    if precision == "fp32":
        return Elementwise(mamba_ssm_prefill(precision), mamba1, SEQ)
    return bounds_for(SEQ)


def measured_over_bounds(layer, w, before, hidden, precision):
    """Assert T0, T1 and T1 at its worst; the largest share that is reached of each."""
    with np.errstate(all="ignore"):
        stored = layer.run(before, hidden)
    p, start = parameters(w)
    given = mamba_ssm_prefill(precision), before, hidden
    records, _, t1 = bounds_in(precision)(*given, stored, p, p, start)
    worst = bounds_in(precision).worst(*given, p, start)
    for site, record in records.items():
        assert exceeding(stored[site], record) == 0, site
    assert exceeding(stored["out"], t1) == 0
    distance = np.abs(stored["out"] - t1.value)
    assert np.all((distance <= worst) | ~np.isfinite(worst))
    known = np.isfinite(t1.error) & (t1.error > 0)
    return np.max(distance[known] / t1.error[known], initial=0.0), stored, t1


def chosen(case: str, precision: str, count: int):
    """So many variants of one precision, others for each case."""
    every = [v for v in variants(120) if v.precision == precision]
    first = CASES.index(case)
    return [every[(first + 7 * i) % len(every)] for i in range(count)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_a_spent_budget_is_within_every_bound(case, precision):
    """Assert it for some variants in 16 bits."""
    w, before, hidden = hard(case, SEQ, precision)
    for variant in chosen(case, precision, FAST):
        measured_over_bounds(Right(w, variant), w, before, hidden, precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("case", CASES)
def test_spent_budgets_are_within_every_bound(case, precision):
    """Assert it for more of them, and in fp32, where no store hides them."""
    w, before, hidden = hard(case, SEQ, precision)
    for variant in chosen(case, precision, ALL):
        measured_over_bounds(Right(w, variant), w, before, hidden, precision)


@pytest.mark.slow
def test_bounds_in_fp32_are_near_what_a_spent_budget_reaches():
    """Assert that over a tenth of T1 is reached in fp32, where all of it is radius."""
    w, before, hidden = hard("plain", SEQ, "fp32")
    reached = [
        measured_over_bounds(Right(w, v), w, before, hidden, "fp32")[0]
        for v in chosen("plain", "fp32", ALL)
    ]
    assert max(reached) > 0.1


def overflowing(case: str):
    """Kernels that overflow between two stores, what they store being small or not."""
    w, before, hidden = hard("plain", SEQ, "bf16")
    if case == "squares of the stream":
        before = before * np.float32(1e20)
    elif case == "D u":
        w["D"][:] = 3e38
        w["in_proj.weight"][:INNER] *= 10
        w["in_proj.weight"][INNER:] *= np.float32(1e-3)
    elif case == "C h":
        w["x_proj.weight"][RANK:] *= np.float32(1e19)
        w["in_proj.weight"][INNER:] *= np.float32(1e-3)
    else:
        assert case == "A times no dt"
        w["A_log"][:], w["dt_proj.bias"][:] = 90, -200
        w["dt_proj.weight"][:] = 0
    return kernel.held(w, "bf16"), before.astype("f4"), hidden


@pytest.mark.parametrize(
    "case", ["squares of the stream", "D u", "C h", "A times no dt"]
)
def test_overflow_between_two_stores_is_no_violation(case):
    """Assert it, and that the kernel is wrong beyond what a finite bound could hold."""
    w, before, hidden = overflowing(case)
    variant = next(v for v in variants(120) if v.error == "none")
    layers = (
        kernel.Kernel(w, "bf16", EPSILON),
        Right(w, variant._replace(precision="bf16")),
    )
    for layer in layers:
        _, stored, t1 = measured_over_bounds(layer, w, before, hidden, "bf16")
        assert not np.isfinite(t1.error).any()
    far = np.abs(stored["out"] - t1.value) > 0.5 * np.abs(t1.value)
    assert np.any(far | ~np.isfinite(stored["out"]))
