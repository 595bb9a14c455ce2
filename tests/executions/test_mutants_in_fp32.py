"""Where fp32 is declared: TF32, sums, stores and a state in 16 bits are caught.

The emulation of a reduced format inside an fp32 kernel is NumPy's and ml_dtypes'. As
in `test_mutants`, a mutant runs on a right first layer's outputs, and T0 accuses the
tensor concerned and no other.
"""

import numpy as np
import pytest

import lyapunov
from analysis.elementwise import Elementwise, exceeding
from lyapunov.bounds.local import with_operator_norms
from lyapunov.implementations import mamba_ssm_prefill
from oracles.checkpoints.hard import SEQ
from oracles.kernels import mamba1 as kernel
from oracles.kernels.mamba1 import F, cast
from oracles.mutants.faults import (
    gated_with,
    low_operands,
    low_steps,
    mutant,
    product,
    store,
)


PROJECTIONS = {
    "in_proj.weight": "xz",
    "x_proj.weight": "x_proj",
    "dt_proj.weight": "dt",
    "out_proj.weight": "out",
}
SITES = ("norm", "xz", "conv", "x_proj", "dt", "gated", "out")


def low(x, kind="bf16"):
    return cast(np.asarray(x).astype(F), kind)


def partials(k, x, W):
    half = x.shape[1] // 2
    first, rest = x[:, :half] @ W[:, :half].T, x[:, half:] @ W[:, half:].T
    return low(first) + low(rest)


def accumulated(k, x, W):
    total = np.zeros((len(x), len(W)), F)
    for j in range(x.shape[1]):
        total = low(total + x[:, j, None] * W[:, j])
    return total


MUTANTS = {
    **{
        f"operands of {name} in TF32": product(site, name, low_operands(11))
        for name, site in PROJECTIONS.items()
    },
    **{
        f"operands of {name} in bf16": product(site, name, low_operands(8))
        for name, site in PROJECTIONS.items()
    },
    **{
        f"{name}: split-K partials in bf16": product(site, name, partials)
        for name, site in PROJECTIONS.items()
        if name != "dt_proj.weight"
    },
    **{
        f"{name}: accumulator in bf16": product(site, name, accumulated)
        for name, site in PROJECTIONS.items()
    },
    **{
        f"{site} stored in {kind}": store(site, lambda k, x, kind=kind: low(x, kind))
        for site in SITES
        for kind in ("bf16", "fp16")
    },
    "residual in bf16": mutant("residual", residual=lambda k, x, y: low(x + y)),
    "state in bf16": low_steps(lambda k, h: low(h)),
    "state in fp16": low_steps(lambda k, h: low(h, "fp16")),
    "dt in bf16": gated_with(step_size=lambda k, right, dt: low(right(dt))),
    "decays in bf16": gated_with(decay=lambda k, right, dt: low(right(dt))),
    "drives in bf16": gated_with(drive=lambda k, right, *given: low(right(*given))),
    "read-out in bf16": gated_with(read_out=lambda k, right, *x: low(right(*x))),
    "gate in bf16": gated_with(gate=lambda k, right, y, z: y * low(k.silu(z))),
    "mean of squares in bf16": mutant(
        "norm",
        mean_square=lambda k, x: low(kernel.Kernel.mean_square(k, x)).astype(float),
    ),
    "wrong epsilon": mutant(
        "norm", rsqrt=lambda k, m: k.settled(1 / np.sqrt(m + 1e-6))
    ),
    "exp off by 2^-18": gated_with(exp=lambda k, right, x: right(x) * F(1 - 2.0**-18)),
}

# All of T1 in fp32 is radius: orders of sums and functions at their worst at once.
SMALL = {
    "x_proj stored in fp16",
    "dt stored in fp16",
    "wrong epsilon",
    "exp off by 2^-18",
}


@pytest.fixture(scope="module")
def setting(checkpoint):
    """The first layer's outputs, and everything about the second one's bounds."""
    folder, weights, tokens = checkpoint("plain")
    model, execution = lyapunov.load(folder), mamba_ssm_prefill("fp32")
    before = weights["backbone.embeddings.weight"].astype(F)[tokens]
    first, second = (kernel.layer_weights(weights, i) for i in range(2))
    stored = kernel.Kernel(first, "fp32").run(before, np.zeros_like(before))
    p = with_operator_norms(model.parameters(1, execution))
    bounds = Elementwise(execution, model.sublayers[1].flow, SEQ)

    def violations(layer):
        stream = stored["residual"], stored["out"]
        found = layer.run(*stream)
        records, _, t1 = bounds(execution, *stream, found, p, p, model.start(p))
        t0 = {site: exceeding(found[site], records[site]) for site in found}
        return t0, exceeding(found["out"], t1), t1.error

    def effect(mutation):
        """What it does to the output, without roundings."""
        stream = stored["residual"], stored["out"]
        kinds = kernel.Kernel, mutation.kernel
        right, wrong = (kind(second, "fp32", wide=True).run(*stream) for kind in kinds)
        return np.abs(wrong["out"] - right["out"])

    return second, violations, effect


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_less_than_fp32_is_caught_where_it_is(setting, name):
    """Assert that T0 finds the tensor and no other, and that T1 finds the sublayer.

    What does at most twice T1's bound everywhere may escape T1; few do.
    """
    weights, violations, effect = setting
    t0, t1, bound = violations(MUTANTS[name].kernel(weights, "fp32"))
    assert {site for site, count in t0.items() if count} == {MUTANTS[name].site}
    assert t1 > 0 or np.max(effect(MUTANTS[name]) / bound) <= 2
    assert t1 > 0 or name in SMALL


@pytest.mark.slow
def test_fp32_is_not_accused(setting):
    """Assert that right kernels are free, and that exp within its ulp is."""
    weights, violations, _ = setting
    one_ulp = gated_with(exp=lambda k, right, x: right(x) * k.kind(1 - 2**-23))
    for layer in (
        kernel.Kernel(weights, "fp32"),
        kernel.Kernel(weights, "fp32", order="tree", fused=False),
        kernel.Kernel(weights, "fp32", order="block_scan"),
        one_ulp.kernel(weights, "fp32"),
    ):
        t0, t1, _ = violations(layer)
        assert not any(t0.values()), t0
        assert t1 == 0
