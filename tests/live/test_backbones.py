"""Assert that models without a head, and modules as they are, are taken for such."""

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import LyapunovError, UsageError
from lyapunov.runners import Reference

from ..families.configurations import CONFIGURATIONS, QUICK
from ..families.library import make


TOKENS = np.array([3, 1, 4, 1, 5])
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
        lambda: lyapunov.check(backbone, TOKENS),
        lambda: lyapunov.check(bare, TOKENS, measure="none", round_weights="bf16"),
    ):
        with pytest.raises(UsageError, match="has no head") as caught:
            ask()
        assert "trace(model, tokens)" in caught.value.hint
        assert type(backbone).__name__ in caught.value.message


def test_its_trace_is_that_of_the_whole():
    network = make("mamba2", **SMALL, num_heads=4, head_dim=8, n_groups=1)
    network.config.tie_word_embeddings = False
    ours = list(lyapunov.trace(network.base_model, TOKENS))
    theirs = list(lyapunov.trace(network, TOKENS))
    assert len(ours) == len(theirs) == 2
    for a, b in zip(ours, theirs, strict=True):
        assert np.array_equal(a.residual, b.residual)
        assert np.array_equal(a.hidden, b.hidden)
    assert theirs[-1].logits(0, 40).shape == (1, 5, 40)
    with pytest.raises(UsageError, match="Mamba2Model in memory has no head"):
        ours[-1].logits(0, 40)


def test_a_module_is_checked_and_audited_as_it_is(monkeypatch):
    """Assert that the model which the work begins with is that of `from_torch`."""
    seen = []

    class Begun(Exception):
        pass

    def begin(model, ids, *_):
        seen.append(model)
        raise Begun

    monkeypatch.setattr("lyapunov._check.run_layers", begin)
    monkeypatch.setattr("lyapunov._audit._run", begin)
    network = make("mamba", **SMALL)
    with pytest.raises(Begun):
        lyapunov.check(network, TOKENS, precisions="bf16")
    with pytest.raises(Begun):
        lyapunov.audit(network, "emulated", TOKENS, variants="steps")
    for model in seen:
        assert model.source == "MambaForCausalLM in memory"
    assert len(seen) == 2
    records = lyapunov.trace(network, TOKENS, runner=Reference())
    assert next(records).kind == "mamba1"


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
    from transformers import BertConfig, BertModel

    network = make("mamba", **SMALL)
    network.config.num_hidden_layers = 2
    wide = make("mamba", **SMALL)
    wide.backbone.layers[0].mixer.D = torch.nn.Parameter(torch.ones(7))
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
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
