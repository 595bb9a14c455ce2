"""The study of served states: what it runs alone, what it counts, and that vLLM's own
kernels agree with it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov
from analysis import _served_shapes as shapes
from analysis._served_cases import MODELS, Case, cases, kept_bytes
from analysis.served_states import state_alone
from lyapunov.recurrences import Mamba2Inputs
from lyapunov.sublayers.mamba2 import Mamba2Sizes


RESULTS = Path(__file__).parents[1] / "analysis" / "results" / "served_states.json"


@pytest.fixture(scope="module")
def result():
    return json.loads(RESULTS.read_text("utf-8"))


def test_alone_the_state_is_all_that_is_rounded():
    """Assert it of every sublayer's stores and parameters."""
    sizes = Mamba2Sizes(16, 32, 8, 4, 1, 4, 8, 1e-5, 1e-5)
    config = lyapunov.sublayers.NetworkConfig(32, 32, 16, (sizes,))
    (whole,) = lyapunov.executions_for(
        config,
        ["bf16"],
        architecture="mamba2",
        mode="decode",
        measure="vllm_emulated --use-replayssm",
    )
    alone = state_alone(whole)
    for one in (alone, *alone.kinds.values()):
        kept = {site: form.name for site, form in one.sites.items()}
        assert kept.pop("state", "bf16") == "bf16"
        assert set(kept.values()) | {f.name for f in one.parameters.values()} == {
            "fp32"
        }
    assert alone.of("mamba2").form == whole.of("mamba2").form


def test_bytes_are_those_that_are_counted_by_hand():
    sizes = Mamba2Sizes(16, 32, 8, 4, 1, 4, 8, 1e-5, 1e-5)  # 32 channels of 8 states
    kept = lambda **given: kept_bytes(
        (sizes, sizes),
        Case(**{"model": "mamba2", "stack": "vLLM", "period": 1} | given),
    )
    assert kept(state="fp32") == 2 * 32 * 8 * 4
    assert kept(state="bf16", period=4) == 2 * 4 * (32 * 8 * 2)
    assert kept(state="bf16", period=4, stack="SGLang") == 2 * 5 * (32 * 8 * 2)
    assert kept(state="int8-scaled") == 2 * (32 * 8 + 32 * 4)
    # x, B in 16 bits and dt in fp32, 16 of them
    assert kept(state="fp16", period=16) == 2 * (
        32 * 8 * 2 + 16 * (2 * 32 + 2 * 8 + 4 * 4)
    )


@pytest.mark.parametrize("period", [1, 4])
def test_a_state_by_itself_is_numpys(rng, period):
    """Assert a recurrence that NumPy stores in half precision."""
    tokens, heads, wide, states = 33, 2, 3, 4
    x, dt = (
        rng.normal(size=(tokens, heads, wide)),
        rng.uniform(0.01, 0.1, (tokens, heads)),
    )
    B, C = rng.normal(size=(2, tokens, 1, states))
    A = -rng.uniform(1.0, 16.0, heads)
    with jax.enable_x64(True):
        inputs = Mamba2Inputs(*(jnp.asarray(one) for one in (dt, x, B)))
        found, last = shapes.followed(
            inputs, jnp.asarray(A), jnp.asarray(C), "fp16", period
        )
    held, expected = np.zeros((heads, wide, states)), []
    for t in range(tokens):
        decay = np.exp(dt[t] * A)[:, None, None]
        held = decay * held + (dt[t][:, None] * x[t])[..., None] * B[t, 0]
        expected.append(held @ C[t, 0])
        if (t + 1) % period == 0:
            held = held.astype(np.float16).astype(float)
    # no roundings but fp64's are apart, of sums of 4 and of products
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(last, held, rtol=0, atol=1e-13)


def test_kernels_and_emulation_agree_on_the_same_text(result):
    """Assert that KLs and distances are within 4 standard errors, in five comparisons.

    Of a token's error, in 256 directions, 16 are taken as independent: a sum of squares
    over 512 tokens is known to sqrt(2 / (16 * 512)), its root to half of that, and two
    roots are apart by sqrt(2) times as much, 1.1 %.
    """
    apart = 4.0 / np.sqrt(16.0 * 512.0)
    assert len(result["kernels"]) == 5
    for row in result["kernels"]:
        assert abs(row["z"]) < 4.0, row
        assert abs(row["emulated_rel_l2"] / row["kernels_rel_l2"] - 1.0) < apart, row


def test_the_study_is_whole(result):
    assert result["failed"] == []
    names = [case.name for model in MODELS for case in cases(model)]
    assert [row["case"] for row in result["rows"]] == names


def test_rarer_stores_make_less(result):
    """Assert errors of stores as independent: with periods of 4 and 16 a half and a
    quarter of an fp16 state's, which does not stagnate there."""
    for shape in result["shapes"]:
        error = {
            row["period"]: row["output_rel_l2"]
            for row in shape["rows"]
            if row["state"] == "fp16-stochastic"
        }
        assert error[4] / error[1] == pytest.approx(0.5, rel=0.1)
        assert error[16] / error[1] == pytest.approx(0.25, rel=0.1)
