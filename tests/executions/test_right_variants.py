"""Two hundred kernels that keep to the declaration, and none is called a bug.

Each is NumPy's (`right_variants`), on its own model, in both layers. T0 and T1 hold
every element of every stored tensor; one that is beyond its bound fails the test.
"""

import numpy as np
import pytest

import lyapunov
from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL, scan_depth
from oracles.checkpoints.hard import SEQ, SIZES
from oracles.kernels import mamba1 as kernel

from . import right_variants as right
from .right_variants import Right, Variant, variants
from .test_mutants import verdicts


COUNT = 200
FAST = 24


def hold(checkpoint, variant: Variant):
    folder, weights, tokens = checkpoint(variant.model, variant.seed)
    records = right.run(weights, tokens, variant, SIZES.layers)
    model = lyapunov.load(folder)
    for i, (t0, t1) in enumerate(verdicts(model, records, variant.precision)):
        assert not any(t0.values()), (variant, i, t0)
        assert t1 == 0, (variant, i)


@pytest.mark.parametrize("variant", variants(FAST, ("bf16", "fp16")), ids=str)
def test_right_variants_are_never_called_a_bug(checkpoint, variant):
    """Assert it for some of them in 16 bits."""
    hold(checkpoint, variant)


@pytest.mark.slow
@pytest.mark.parametrize("variant", variants(COUNT), ids=str)
def test_no_right_variant_is_ever_called_a_bug(checkpoint, variant):
    """Assert it for all, a third of them in fp32, where nothing hides behind stores."""
    hold(checkpoint, variant)


def test_every_choice_is_made():
    """Assert that the variants cover each list, and that they differ."""
    drawn = variants(COUNT)
    assert len(set(drawn)) == COUNT
    lists = (right.SCANS, right.ROUNDINGS, right.ERRORS, right.SUMS, right.REDUCTIONS)
    fields = ("scan", "rounding", "error", "sum", "reduction")
    for field, choices in zip(fields, lists, strict=True):
        for chosen in (drawn, variants(FAST)):
            assert {getattr(v, field) for v in chosen} == set(choices), field
    assert {v.model for v in drawn} == set(right.MODELS)


def test_variants_reach_the_edge_of_what_is_declared(checkpoint):
    """Assert it of exp, softplus, silu and rsqrt: over half their budget, and within.

    A variant that is as good as exact would be no test.
    """
    _, weights, _ = checkpoint("plain")
    held = kernel.held(kernel.layer_weights(weights, 0), "bf16")
    (edge,) = (v for v in variants(COUNT) if v.index == 0)
    layer = Right(held, edge._replace(error="high", rounding="fused"))
    x = np.linspace(-8, 8, 999).astype(np.float32)
    wide = x.astype(np.float64)
    below = wide[wide <= 0]
    found = {
        "exp": (layer.exp(x[x <= 0]), np.exp(below), KERNEL.exp_relative),
        "softplus": (
            layer.softplus(x),
            np.logaddexp(0, wide),
            KERNEL.softplus_relative,
        ),
        "silu": (layer.silu(x), wide / (1 + np.exp(-wide)), KERNEL.silu_relative),
    }
    for name, (got, true, relative) in found.items():
        at = np.abs(true) > 0
        share = np.abs(got - true)[at] / np.abs(true)[at] / relative
        assert np.max(share) > 0.5, name


def test_orders_stay_within_the_declared_depth():
    """Assert the count of every order of the scan, random bracketings included."""
    for name in right.SCANS:
        for index in range(50):
            assert right.additions(name, index) <= scan_depth(SEQ), (name, index)
