"""The fp64 reference against an independent NumPy model and against transformers.

Tolerances: the logits' condition with respect to relative errors of every
intermediate (found by perturbing the NumPy model), times counted roundings, times u.
"""

import numpy as np
import pytest

import lyapunov
from oracles.checkpoints.mamba1 import save_mamba_ssm, save_transformers
from oracles.networks.mamba1 import (
    NumpyMamba,
    Sizes,
    condition,
    operations,
    random_weights,
)

from ..helpers import assert_within, gamma


CONFIGS = {
    "plain": Sizes(),
    "odd": Sizes(vocab=37, d_model=7, expand=3, d_state=5, d_conv=3, dt_rank=1),
    "narrow": Sizes(expand=1, d_conv=2, layers=3, epsilon=1e-6),
    "untied": Sizes(tied=False),
    "no conv bias": Sizes(conv_bias=False),
    "biased": Sizes(proj_bias=True, tied=False),
}
U32, U64 = 2.0**-24, 2.0**-53


def tolerance(weights, sizes, tokens, unit):
    roundings = operations(sizes, len(tokens))
    return condition(weights, sizes, tokens) * gamma(roundings, unit)


def transformers_logits(folder, tokens):
    import torch
    from transformers import MambaForCausalLM

    network = MambaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return network(torch.tensor(tokens)[None]).logits[0].double().numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_agree_with_numpy_and_transformers(rng, tmp_path, name):
    """Assert fp64 against fp64 NumPy, and against transformers' fp32 forward."""
    sizes = CONFIGS[name]
    weights = random_weights(rng, sizes)
    tokens = rng.integers(0, sizes.vocab, 33)
    folder = save_transformers(tmp_path / "model", weights, sizes)
    ours = np.asarray(lyapunov.load(folder).logits(tokens))
    theirs = NumpyMamba(weights, sizes).logits(tokens)
    allowed = tolerance(weights, sizes, tokens, U64)
    assert allowed < 1e-10 * np.abs(theirs).max()  # the comparison means something
    assert_within(ours, theirs, allowed, "against NumPy")
    allowed = tolerance(weights, sizes, tokens, U32)
    assert allowed < 1e-2 * np.abs(theirs).max()
    assert_within(
        ours, transformers_logits(folder, tokens), allowed, "against transformers"
    )


@pytest.mark.parametrize("tied", [True, False])
def test_mamba_ssm_layout_gives_the_same_network(rng, tmp_path, tied):
    """Assert it through pytorch_model.bin; the vocabulary's padding is left out."""
    sizes = Sizes(vocab=37, tied=tied)
    weights = random_weights(rng, sizes)
    tokens = rng.integers(0, sizes.vocab, 20)
    ours = lyapunov.load(save_mamba_ssm(tmp_path / "model", weights, sizes))
    logits = np.asarray(ours.logits(tokens))
    assert logits.shape == (20, 37)
    allowed = tolerance(weights, sizes, tokens, U64)
    assert_within(logits, NumpyMamba(weights, sizes).logits(tokens), allowed)


def test_residual_in_a_lower_format_does_not_touch_the_reference(rng, tmp_path):
    """Assert that residual_in_fp32 is the execution's business alone."""
    sizes = Sizes()
    weights = random_weights(rng, sizes)
    tokens = rng.integers(0, sizes.vocab, 20)
    one, other = (
        np.asarray(
            lyapunov.load(
                save_transformers(
                    tmp_path / str(flag), weights, sizes, residual_in_fp32=flag
                )
            ).logits(tokens)
        )
        for flag in (True, False)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_stored_in_16_bits_are_read_as_they_are(rng, tmp_path, dtype):
    """Assert the logits of the rounded weights, not of what they were."""
    import ml_dtypes

    sizes = Sizes()
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    weights = {
        k: v.astype(kind).astype(np.float32)
        for k, v in random_weights(rng, sizes).items()
    }
    tokens = rng.integers(0, sizes.vocab, 20)
    folder = save_transformers(tmp_path / "model", weights, sizes, dtype=dtype)
    allowed = tolerance(weights, sizes, tokens, U64)
    expected = NumpyMamba(weights, sizes).logits(tokens)
    assert_within(np.asarray(lyapunov.load(folder).logits(tokens)), expected, allowed)


def test_extreme_dynamics_agree_with_numpy(rng, tmp_path):
    """Assert it for dt near 0 and beyond 20, decays that are 0 and 1, and repeats."""
    sizes = Sizes()
    weights = random_weights(rng, sizes)
    bias = weights["backbone.layers.0.mixer.dt_proj.bias"]
    bias[:4], bias[4:8] = -14.0, 22.0
    weights["backbone.layers.1.mixer.A_log"][:3] = 6.0
    weights["backbone.layers.1.mixer.A_log"][3:6] = -12.0
    tokens = np.full(33, 5)
    folder = save_transformers(tmp_path / "model", weights, sizes)
    allowed = tolerance(weights, sizes, tokens, U64)
    expected = NumpyMamba(weights, sizes).logits(tokens)
    assert_within(np.asarray(lyapunov.load(folder).logits(tokens)), expected, allowed)


def test_tolerances_would_notice_a_wrong_network(rng, tmp_path):
    """Assert that each defect of a list exceeds even the fp32 tolerance."""
    sizes = Sizes()
    weights = random_weights(rng, sizes)
    tokens = rng.integers(0, sizes.vocab, 33)
    right = NumpyMamba(weights, sizes).logits(tokens)
    allowed = tolerance(weights, sizes, tokens, U32)
    layer = "backbone.layers.1.mixer."
    for name, change in {
        "D": lambda x: 0 * x,
        "A_log": lambda x: x + 0.01,
        "conv1d.weight": lambda x: x[..., ::-1],
        "conv1d.bias": lambda x: 0 * x,
        "dt_proj.bias": lambda x: 0 * x,
    }.items():
        wrong = weights | {layer + name: change(weights[layer + name])}
        distance = np.abs(NumpyMamba(wrong, sizes).logits(tokens) - right).max()
        assert distance > allowed, name
