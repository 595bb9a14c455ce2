"""Executions whose logits say nothing, and logits that only look so, end to end.

The oracles are a NumPy network in fp64 and torch's own argmax.
"""

import json

import numpy as np
import pytest
import torch
from transformers import MambaForCausalLM

import lyapunov
from lyapunov.report import to_table
from lyapunov.report.json import dump
from oracles.checkpoints.hard import SEQ, SIZES
from oracles.checkpoints.mamba1 import save_transformers
from oracles.networks.mamba1 import NumpyMamba, random_weights

from ..helpers import not_none


MEASURES = ["emulated", "transformers"]
UNTIED = SIZES._replace(tied=False)


def check(folder, tokens, precision="bf16", measure="emulated", probes=0):
    return lyapunov.check(
        str(folder),
        tokens,
        precisions=[precision],
        measure=measure,
        floor=False,
        probes=probes,
        readouts=1,
        ball=False,
    )


def exact_logits(weights, sizes, tokens) -> np.ndarray:
    return np.asarray(NumpyMamba(weights, sizes).logits(tokens))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(100).integers(0, SIZES.vocab, SEQ)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_stream_that_overflows_when_squared_is_an_error(tmp_path, tokens, measure):
    """Assert it where every value is finite: one scale is lost, the last norm divides
    by infinity, all logits are 0, and the lowest index is chosen at every token."""
    weights = random_weights(np.random.default_rng(0), SIZES)
    weights["backbone.layers.1.mixer.out_proj.weight"] *= np.float32(1e21)
    save_transformers(tmp_path / "model", weights, SIZES)
    report = check(tmp_path / "model", tokens, measure=measure)
    output = report.precisions[0].output
    assert output.non_finite == output.reference_non_finite == 0
    assert output.constant_tokens == output.argmax_total == SEQ
    chosen = exact_logits(weights, SIZES, tokens).argmax(-1)
    assert output.argmax_flips == np.sum(chosen != 0) > SEQ / 2
    assert output.argmax_ties == 0
    assert output.measured_rel_l2 == pytest.approx(1.0, abs=1e-12)
    (finding,) = (f for f in report.findings if f.code == "LYA015")
    assert f"{SEQ} of {SEQ} tokens" in finding.message
    summary = report.summary
    assert (summary.verdict, summary.exit_code) == ("findings", 1)
    assert summary.flags == []
    assert "fine" not in summary.recommendation
    assert not any(f.code == "LYA003" for f in report.findings)


@pytest.mark.parametrize("measure", MEASURES)
def test_overflow_leaves_elements_without_a_bound(checkpoint, measure):
    """Assert the counts by sublayer and tensor where fp16 overflows in the second."""
    folder, _, tokens = checkpoint("overflow")
    report = check(folder, tokens, "fp16", measure)
    first, second = report.precisions[0].layers
    assert first.elements_unbounded == 0
    assert first.unbounded == {}
    assert first.elements_bounded == not_none(first.elements_total) > 0
    assert 0 < not_none(second.elements_unbounded) < not_none(second.elements_total)
    assert (
        not_none(second.elements_bounded) + not_none(second.elements_unbounded)
        == second.elements_total
    )
    assert 0 < not_none(second.unbounded)["sublayer output"] <= 1
    # what overflowed has no bound: it neither holds nor fails
    assert not_none(second.elements_unbounded) >= second.non_finite > 0
    assert second.violations == 0
    assert 0 < not_none(report.summary.bounded_share) < 1
    text = to_table(report, width=120)
    assert f"{second.elements_unbounded:,} of" in text
    assert "elements have no finite bound" in text


@pytest.mark.parametrize("probes", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_head_of_zeros_is_finite_and_holds(tmp_path, tokens, probes):
    """Assert what a network that was set up as muP has it is told: no distance is
    defined, and nothing is wrong."""
    weights = random_weights(np.random.default_rng(0), UNTIED)
    weights["lm_head.weight"] *= 0
    save_transformers(tmp_path / "model", weights, UNTIED)
    report = check(tmp_path / "model", tokens, probes=probes)
    output = report.precisions[0].output
    assert np.isnan(not_none(output.measured_rel_l2))
    assert output.kl_mean == output.kl_max == output.measured_max == 0
    assert output.argmax_flips == output.constant_tokens == output.non_finite == 0
    assert output.reference_ties == SEQ
    codes = {f.code for f in report.findings}
    assert not codes & {"LYA002", "LYA004", "LYA015"}
    assert report.summary.exit_code == 0
    document = json.loads(dump(report.to_dict()))
    shown = document["precisions"][0]["output"]
    assert shown["measured_rel_l2"] is None
    assert shown["measured_rel_l2_flag"] == "nan"
    # nor is any estimate relative to nothing, and nothing is said to overflow
    assert output.sigma_t3 is output.estimate_t2 is output.weights_rel_l2 is None
    assert output.sigma_by_site is None
    if probes:
        assert "one value a token" in not_none(output.sigma_withheld)
    text = " ".join(to_table(report, width=200).split())
    assert "no relative distance" in text
    for wrong in ("not finite", "overflow", "limit: the head"):
        assert wrong not in text


@pytest.mark.parametrize("measure", MEASURES)
def test_changed_greedy_tokens_are_those_of_torch(tmp_path, measure):
    """Assert it for an offset of all logits of a token, which softmax does not see and
    under which bf16 logits tie in pairs and more."""
    rng = np.random.default_rng(5)
    weights = random_weights(rng, UNTIED)
    offset = rng.normal(size=UNTIED.d_model)
    head = weights["lm_head.weight"] / 8 + 10 * offset / np.linalg.norm(offset)
    weights["lm_head.weight"] = head.astype(np.float32)
    save_transformers(tmp_path / "model", weights, UNTIED)
    tokens = rng.integers(0, UNTIED.vocab, SEQ)
    output = check(tmp_path / "model", tokens, measure=measure).precisions[0].output
    exact = exact_logits(weights, UNTIED, tokens)
    model = MambaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    with torch.no_grad():
        logits = model(torch.tensor(tokens[None])).logits[0].float()
    shared = np.sum((logits == logits.max(-1, keepdim=True).values).numpy(), -1) > 1
    changed = exact.argmax(-1) != logits.argmax(-1).numpy()
    assert np.sum(changed & shared) > 5
    assert output.argmax_ties == output.reference_ties == 0
    if measure == "transformers":
        assert output.argmax_flips == changed.sum()
    else:
        # another order of fp32 sums moves a few tokens
        assert abs(output.argmax_flips - changed.sum()) <= changed.sum() / 3
