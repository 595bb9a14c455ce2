"""Assert that models without a head, and modules as they are, are taken for such."""

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

import lyapunov
from lyapunov._errors import LyapunovError, UsageError
from lyapunov.findings._rules import find
from lyapunov.implementations import Reference
from lyapunov.implementations.transformers.networks import transformers_network
from lyapunov.questions._effort import Effort
from lyapunov.questions._layers import run_layers
from lyapunov.questions._request import Request
from lyapunov.report import to_json
from lyapunov.report.json import schema
from lyapunov.results._check import Exponents, OutputDivergence
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make
from tests.families.quick import QUICK

from ..helpers import not_none, of_sublayer, parted


TOKENS = np.array([3, 1, 4, 1, 5])
NOTHING = Exponents(None, None, 0, None, None, None, 5, [])
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "state_size": 4,
    "num_hidden_layers": 1,
    "pad_token_id": None,
}


@pytest.mark.parametrize(("family", "name"), QUICK)
def test_a_backbone_of_every_family_has_its_sublayers(family, name):
    """Assert every parameter bit by bit, and a sentence where logits are wanted."""
    network = make(family, **CONFIGURATIONS[family][name])
    whole = lyapunov.from_torch(network)
    backbone = network.base_model
    assert backbone is not network
    bare = lyapunov.from_torch(backbone)
    assert bare.config == whole.config
    assert bare.layout.dtype == whole.layout.dtype
    for i in range(len(whole.sublayers)):
        ours, theirs = bare.layout.layer(i), whole.layout.layer(i)
        assert ours.keys() == theirs.keys()
        assert all(ours[k].tobytes() == theirs[k].tobytes() for k in ours)
    rows = np.arange(whole.config.vocab_size)
    assert bare.layout.embedding(rows).tobytes() == (
        whole.layout.embedding(rows).tobytes()
    )
    if bare.has_head:  # it is the embedding
        assert bare.layout.n_params == whole.layout.n_params
        return
    head = whole.config.padded_vocab_size * whole.config.d_model
    assert bare.layout.n_params == whole.layout.n_params - head
    assert list(bare.vocabulary_slices()) == []
    for ask in (
        lambda: bare.logits(TOKENS),
        lambda: bare.head(0, 1),
        lambda: lyapunov.check(backbone, TOKENS, measure="transformers"),
        lambda: lyapunov.check(bare, TOKENS, measure="none", round_weights="bf16"),
    ):
        with pytest.raises(UsageError, match="has no head") as caught:
            ask()
        assert "trace(model, tokens)" in caught.value.hint
        assert type(backbone).__name__ in caught.value.message


SMALL_LLAMA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mamba2", "llama"])
def test_its_sublayers_are_checked_as_those_of_the_whole(family):
    """Assert every figure of every sublayer, none of any logit, and what is said."""
    if family == "mamba2":
        network = make("mamba2", **SMALL, num_heads=4, head_dim=8, n_groups=1)
        network.config.tie_word_embeddings = False
    else:
        network = make("llama", **SMALL_LLAMA)
    asked = {"precisions": ["bf16", "fp16"], "floor": False, "growth": False}
    less = {"probes": 0, "readouts": 0, "ball": False}
    whole = lyapunov.check(network, TOKENS, **asked, **less)
    bare = lyapunov.check(network.base_model, TOKENS, **asked)
    assert bare.exponents == whole.exponents
    for ours, theirs in zip(bare.precisions, whole.precisions, strict=True):
        assert ours.layers == theirs.layers
        assert all(
            not_none(row.local_l2) > 0 and not_none(row.bound_t1_ratio) >= 1
            for row in ours.layers
        )
        assert theirs.output.compared
        assert theirs.output.argmax_total == 5
        assert ours.output == OutputDivergence()
        assert not ours.output.compared
    assert bare.reference is None
    assert {name: bare.settings[name] for name in less} == less
    assert bare.summary.verdict == "held"
    assert bare.summary.bounded_share == 1
    assert "without a head" in bare.summary.recommendation
    assert "fine" not in bare.summary.recommendation
    assert bare.summary.benchmark_note is None
    jsonschema.validate(json.loads(to_json(bare)), schema())


def test_a_function_of_its_own_is_measured_on_the_stream():
    """Assert LYA018 of a backbone, with what is apart in words."""
    small = {**SMALL, "num_hidden_layers": 2}
    network = make("mamba2", **small, num_heads=4, head_dim=8, n_groups=1)
    network.config.tie_word_embeddings = False
    network.config.time_step_limit = (0.0, 1e-3)
    bare = lyapunov.from_torch(network.base_model)
    executions = [transformers_network(bare.config, "mamba2", "fp32", "decode")]
    effort = Effort(floor=False, probes=0, readouts=0, ball=False, growth=False)
    _, (run,), _, bits = run_layers(
        bare, TOKENS[None], executions, (), Request(effort=effort)
    )
    distance = not_none(run.function)
    streams = [
        list(Reference(function=own).trace(bare, TOKENS[None]))[-1]
        for own in (None, executions[0])
    ]
    model, own = (np.asarray(end.residual + end.hidden) for end in streams)
    expected = np.linalg.norm(own - model) / np.linalg.norm(model)
    assert distance.rel_l2 == pytest.approx(expected, rel=1e-12)
    assert expected > 1e-6
    assert distance.argmax_total is None
    assert run.output == OutputDivergence()
    assert np.isnan(bits).all()
    (told,) = (f for f in find(NOTHING, [run]) if f.code == "LYA018")
    assert "streams behind the last sublayer of the two functions" in told.message


def test_its_trace_is_that_of_the_whole():
    network = make("mamba2", **SMALL, num_heads=4, head_dim=8, n_groups=1)
    network.config.tie_word_embeddings = False
    (of_ours, ours) = parted(lyapunov.trace(network.base_model, TOKENS))
    (of_theirs, theirs) = parted(lyapunov.trace(network, TOKENS))
    assert len(of_ours) == len(of_theirs) == 1
    for a, b in (of_ours[0], of_theirs[0]), (ours, theirs):
        assert np.array_equal(a.residual, b.residual)
        assert np.array_equal(a.hidden, b.hidden)
    assert theirs.logits(0, 40).shape == (1, 5, 40)
    with pytest.raises(UsageError, match="Mamba2Model in memory has no head"):
        ours.logits(0, 40)


def test_a_module_is_checked_and_audited_as_it_is(monkeypatch):
    """Assert that the model which the work begins with is that of `from_torch`."""
    seen = []

    class Begun(Exception):
        pass

    def begin(model, ids, *_):
        seen.append(model)
        raise Begun

    monkeypatch.setattr("lyapunov.questions._check.run_layers", begin)
    monkeypatch.setattr("lyapunov.questions._audit._run", begin)
    network = make("mamba", **SMALL)
    with pytest.raises(Begun):
        lyapunov.check(network, TOKENS, precisions="bf16")
    small = make("llama", **SMALL_LLAMA).base_model
    with pytest.raises(Begun):
        lyapunov.check(small, TOKENS)
    assert not seen.pop().has_head
    with pytest.raises(Begun):
        lyapunov.audit(network, "emulated", TOKENS, variants="steps")
    for model in seen:
        assert model.source == "MambaForCausalLM in memory"
    assert len(seen) == 2
    records = lyapunov.trace(network, TOKENS, runner=Reference())
    assert of_sublayer(next(records)).kind == "mamba1"


def parts():
    network = make("mamba", **SMALL)
    return [network.backbone.layers[0], network.backbone.layers[0].mixer]


@pytest.mark.parametrize("which", [0, 1])
def test_a_part_is_named_as_one(which):
    with pytest.raises(UsageError, match="is a part of a model") as caught:
        lyapunov.from_torch(parts()[which])
    assert "layers=[0]" in caught.value.hint


def test_what_is_said_of_a_module_is_not_of_files():
    """Assert it where tensors and config disagree, and where a family is unknown."""
    import torch
    from transformers.models.bert import BertConfig, BertModel

    network = make("mamba", **SMALL)
    network.config.num_hidden_layers = 2
    wide = make("mamba", **SMALL)
    wide.backbone.layers[0].mixer.D = torch.nn.Parameter(torch.ones(7))
    small: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2}
    small["num_hidden_layers"] = 1
    for module in (
        network,
        wide,
        BertModel(BertConfig(vocab_size=40, intermediate_size=8, **small)),
    ):
        with pytest.raises(LyapunovError) as caught:
            lyapunov.from_torch(module)
        told = f"{caught.value.message} {caught.value.hint}"
        for word in ("config.json", "file", "download", "same place"):
            assert word not in told, told
