"""Autocast over fp32 weights: what is cast, and torch itself held to the bounds."""

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UsageError
from lyapunov.implementations import (
    Transformers,
    mamba_ssm_prefill,
    transformers_prefill,
)
from oracles.kernels import mamba1 as kernel

from ..helpers import not_none, of_sublayer
from .conftest import SLOW_KINDS
from .test_emulator import FORMATS, as_fp32, records, ulps_apart


CAST = ("in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_projections_are_cast_and_nothing_else_is(checkpoint, precision):
    """Assert each parameter bit for bit: the scan, conv and norms keep fp32."""
    folder, weights, _ = checkpoint("plain")
    model = lyapunov.load(folder)
    raw = kernel.layer_weights(weights, 0)
    execution = mamba_ssm_prefill(f"{precision}-amp")
    p = model.parameters(0, execution)
    for name, got in {
        "in_proj.weight": p.in_proj.matrix,
        "x_proj.weight": p.x_proj.matrix,
        "dt_proj.weight": p.dt_proj.matrix,
        "out_proj.weight": p.out_proj.matrix,
        "conv1d.weight": p.conv_weight,
        "conv1d.bias": p.conv_bias,
        "dt_proj.bias": p.dt_bias,
        "A_log": p.A_log,
        "D": p.D,
        "norm.weight": p.norm.weight,
    }.items():
        wanted = raw[name]
        if name in CAST:
            wanted = wanted.astype(FORMATS[precision])
        np.testing.assert_array_equal(got, wanted.astype(np.float64), err_msg=name)
    head = weights["backbone.embeddings.weight"]
    np.testing.assert_array_equal(model.embed(np.arange(3), execution), head[:3])
    rows = np.asarray(model.head(0, 3, execution).matrix)
    np.testing.assert_array_equal(rows, head[:3].astype(FORMATS[precision]))


def test_stored_tensors_are_those_of_the_kernels(checkpoint):
    """Assert each given the ones before it: activations in bf16 as ever."""
    folder, weights, tokens = checkpoint("plain")
    for record in records(folder, tokens, mamba_ssm_prefill("bf16-amp")):
        held = kernel.layer_weights(weights, record.layer)
        held = held | {name: kernel.cast(held[name], "bf16") for name in CAST}
        stored = {k: as_fp32(v[0]) for k, v in record.stored.items()}
        again = kernel.Kernel(held, "bf16").again(
            stored, as_fp32(record.residual[0]), as_fp32(record.hidden[0])
        )
        for site, expected in again.items():
            if site == "residual":
                np.testing.assert_array_equal(stored[site], expected)
                continue
            apart = ulps_apart(stored[site], expected, FORMATS["bf16"])
            assert (apart > 0).mean() <= 0.002, site


@pytest.mark.parametrize(
    "measure", [pytest.param("emulated", marks=pytest.mark.slow), "transformers"]
)
@pytest.mark.parametrize("kind", ["plain", *SLOW_KINDS])
@pytest.mark.parametrize(
    "precision", ["bf16-amp", pytest.param("fp16-amp", marks=pytest.mark.slow)]
)
def test_no_element_exceeds_its_bound(checkpoint, kind, precision, measure):
    """Assert zero violations under torch's own autocast on CPU, and tight bounds."""
    folder, _, tokens = checkpoint(kind)
    report = lyapunov.check(
        str(folder),
        tokens,
        precisions=[precision],
        measure=measure,
        floor=False,
        probes=0,
        ball=False,
    )
    run = report.precisions[0]
    assert run.precision == precision
    for layer in run.layers:
        assert layer.violations == 0, (kind, layer.first_violation)
        if layer.non_finite or kind == "repeated":
            continue
        assert 1 - 2.0**-20 <= not_none(layer.bound_t1_ratio) < 60
        for site in ("xz", "x_proj", "out"):
            assert not_none(layer.bound_t0)[site] < 1.05, site


def test_the_list_of_autocast_is_seen_in_torch(checkpoint):
    """Assert that the same tensors violate the execution without autocast."""
    folder, _, tokens = checkpoint("plain")
    model = lyapunov.load(folder)
    execution = transformers_prefill("bf16-amp")
    trace = lyapunov.trace(model, tokens, runner=Transformers(execution))
    first = of_sublayer(next(trace))
    for site in ("norm", "xz", "conv", "x_proj", "gated", "out"):
        x = np.asarray(first.stored[site])
        np.testing.assert_array_equal(x, x.astype(FORMATS["bf16"]).astype(float))
    # the embedding is not: its rows are fp32
    x = np.asarray(first.residual)
    assert (x != x.astype(FORMATS["bf16"]).astype(float)).any()


def test_what_is_not_followed_is_refused():
    """Assert errors for another device, decoding and a residual below fp32."""
    with pytest.raises(UsageError, match="autocast"):
        Transformers(transformers_prefill("bf16-amp"), device="cuda")
    for run in (mamba_ssm_prefill, transformers_prefill):
        with pytest.raises(UsageError, match="residual"):
            run("bf16-amp", residual_in_fp32=False)
