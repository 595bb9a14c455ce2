"""Assert that each semantic finding fires where it should, and at the right length."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lyapunov.findings._catalogue import CATALOGUE
from lyapunov.findings._semantics import (
    ClippedDt,
    clipped_dt,
    kernel_reach,
    semantic_findings,
)
from lyapunov.sublayers import AttentionSizes, Mamba1Sizes, Mamba2Sizes

from .helpers import not_none


def model(*sublayers, architecture="mamba2", config=None) -> Any:
    """What the findings look at, of any size without its weights."""
    return SimpleNamespace(
        config=SimpleNamespace(sublayers=sublayers),
        layout=SimpleNamespace(
            architecture=architecture,
            checkpoint=SimpleNamespace(config=config or {"model_type": architecture}),
        ),
    )


def mamba1(**more):
    sizes = {"d_model": 64, "d_inner": 128, "d_state": 16, "d_conv": 4, "dt_rank": 4}
    return Mamba1Sizes(**{**sizes, "norm_epsilon": 1e-5, **more})


def mamba2(**more):
    sizes = {"d_model": 64, "d_inner": 128, "d_state": 16, "heads": 4, "groups": 2}
    epsilons = {"norm_epsilon": 1e-5, "gate_norm_epsilon": 1e-5}
    return Mamba2Sizes(**{**sizes, "d_conv": 4, "chunk": 16, **epsilons, **more})


def codes(given, length=128, batch=1, **more):
    return [f.code for f in semantic_findings(given, length, batch, **more)]


def test_nothing_binds_and_nothing_is_found():
    assert codes(model(mamba1(), architecture="mamba1")) == []
    assert codes(model(mamba2(), mamba1())) == []
    attention = AttentionSizes(
        d_model=64,
        heads=4,
        kv_heads=4,
        head_dim=16,
        rotary=0,
        theta=1e4,
        scale=0.25,
        norm_epsilon=1e-5,
    )
    llama = model(attention, architecture="llama")
    assert codes(llama, 10**9, adapter_targets=["q_proj", "out_proj"]) == []
    assert kernel_reach(llama) is None


# --- limits of dt ---------------------------------------------------------------------


def test_limits_that_bind_are_counted_and_the_worst_layer_named():
    limited = model(mamba2(dt_limit=(0.1, 0.8)), mamba1(), mamba2(dt_limit=(0.1, 0.8)))
    seen = {0: ClippedDt(3, 0, 100), 2: ClippedDt(10, 20, 100)}
    (finding,) = semantic_findings(limited, 64, observed=seen)
    assert (finding.code, finding.severity, finding.layer) == ("LYA011", "warning", 2)
    assert "33 of 200 dt" in finding.message
    assert "(13 below, 20 above)" in finding.message
    assert finding.value == 0.165
    quiet = dict.fromkeys((0, 2), ClippedDt(0, 0, 100))
    assert codes(limited, observed=quiet) == []
    (unseen,) = semantic_findings(limited, 64)
    assert "2 layers limit dt to [0.1, 0.8]" in unseen.message


def test_only_dt_at_a_limit_counts():
    dt = np.array([[0.1, 0.2, 0.1], [0.8, 0.5, 0.79]])
    assert clipped_dt(dt, (0.1, 0.8)) == (2, 1, 6)
    assert clipped_dt(dt, (0.1, math.inf)) == (2, 0, 6)
    assert clipped_dt(np.zeros(4), (0.0, math.inf)) == (0, 0, 4)


# --- offsets --------------------------------------------------------------------------


def wraps(sizes, length, batch) -> bool:
    """Whether some kernel's offset, computed in int32 as the kernel does, is wrong."""
    i32, last = np.int32, np.int32(batch - 1)
    token = np.int32(batch * length - 1)
    chunks = -(-length // getattr(sizes, "chunk", 2048))
    exact = []
    with np.errstate(over="ignore"):
        if sizes.kind == "mamba1":
            row = last * i32(sizes.d_inner) + i32(sizes.d_inner - 1)
            offsets = [
                token * i32(sizes.d_model),
                row * i32(chunks) * i32(sizes.d_state),
            ]
            exact = [int(token) * sizes.d_model, int(row) * chunks * sizes.d_state]
        else:
            n, p = sizes.d_state, sizes.d_inner // sizes.heads
            columns = 2 * sizes.d_inner + 2 * sizes.groups * n + sizes.heads
            per_group = sizes.d_inner // sizes.norm_groups
            group = (sizes.norm_groups - 1) * per_group
            offsets = [
                token * i32(columns) + i32(group),
                (last * i32(chunks * sizes.d_inner * n) if last else i32(0))
                + i32(chunks - 1) * i32(sizes.d_inner * n)
                + i32(sizes.heads - 1) * i32(p * n),
            ]
            exact = [
                int(token) * columns + group,
                (batch * chunks - 1) * sizes.d_inner * n + (sizes.heads - 1) * p * n,
            ]
    return any(int(o) != e for o, e in zip(offsets, exact, strict=True))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        mamba1(d_model=2560, d_inner=5120),
        mamba1(d_model=512, d_inner=16384, d_state=256),
        mamba2(d_model=2560, d_inner=5120, d_state=128, heads=80, groups=1, chunk=256),
        mamba2(d_inner=4096, d_state=256, heads=64, chunk=64, norm_groups=8),
    ],
)
def test_the_reach_is_where_int32_wraps(sizes, batch):
    reach = not_none(kernel_reach(model(sizes), batch)).length
    assert not wraps(sizes, reach, batch)
    assert wraps(sizes, reach + 1, batch)


def test_nemotron_3_ultra_ends_at_61_thousand():
    """Assert what state-spaces/mamba issue 1015 reports of these sizes."""
    ultra = mamba2(d_inner=16384, d_state=128, heads=256, groups=8, chunk=128)
    assert not_none(kernel_reach(model(ultra))).length == 61231
    (finding,) = semantic_findings(model(ultra), 61232)
    assert (finding.code, finding.limit) == ("LYA013", 61231.0)
    assert "gated norm" in finding.message
    assert codes(model(ultra), 61231) == []
    assert codes(model(ultra), 40960, 2) == ["LYA013"]


def test_without_gated_norm_the_chunks_end_the_reach():
    sizes = mamba2(
        d_inner=4096, d_state=256, heads=64, groups=1, chunk=256, gate_norm=False
    )
    reach = not_none(kernel_reach(model(sizes)))
    columns = 2 * 4096 + 2 * 256 + 64
    chunks = -(-reach.length // 256)
    assert reach.kernel == "_chunk_cumsum_fwd_kernel"
    assert (chunks - 1) * 256 * columns < 2**31 <= chunks * 256 * columns
    assert reach.length % 256 == 0


# --- training -------------------------------------------------------------------------


def test_falcon_mamba_trains_another_function():
    assert codes(model(mamba1(), architecture="falcon_mamba")) == ["LYA012"]
    assert codes(model(mamba1(), architecture="jamba")) == []


@pytest.mark.parametrize(
    ("family", "config", "targets", "words"),
    [
        ("mamba1", None, ["x_proj"], "x_proj in training"),
        ("mamba1", None, ["layers.3.mixer.dt_proj"], "dt_proj on every path"),
        ("mamba1", {"d_model": 64}, ["in_proj"], "in_proj on every path"),
        ("mamba1", None, ["in_proj", "embeddings"], None),
        ("mamba2", None, ["out_proj"], "out_proj in training"),
        ("bamba", None, ["model.layers.0.mamba.out_proj.weight"], "out_proj"),
        ("bamba", None, ["model.layers.0.self_attn.out_proj"], None),
        ("jamba", None, ["x_proj", "out_proj"], None),
        ("jamba", None, ["dt_proj"], "dt_proj on every path"),
        ("zamba", None, ["conv1d"], "conv1d on every path"),
        ("zamba", None, ["out_proj", "in_proj"], None),
        ("llama", None, ["out_proj", "dt_proj"], None),
    ],
)
def test_adapters_that_get_no_gradient(family, config, targets, words):
    found = semantic_findings(
        model(mamba1(), architecture=family, config=config or {"model_type": family}),
        64,
        adapter_targets=targets,
    )
    if words is None:
        assert found == []
    else:
        (finding,) = found
        assert finding.code == "LYA014"
        assert words in finding.message


def test_every_code_is_explained():
    for code in ("LYA011", "LYA012", "LYA013", "LYA014"):
        assert CATALOGUE[code].severity == "warning"
