"""Assert that a live module is the model that its own save_pretrained would leave."""

from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UnsupportedCheckpointError, UsageError
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, save
from tests.families.quick import QUICK


TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8])
MAMBA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "state_size": 4,
    "num_hidden_layers": 2,
    "pad_token_id": None,
}


def parameters(model) -> list[np.ndarray]:
    """Every array of a model, in the stored type."""
    layout, rows = model.layout, model.config.padded_vocab_size
    found = [layout.embedding(np.arange(rows)), layout.head(0, rows)]
    for get in (layout.final_norm, layout.final_norm_bias):
        if (array := get()) is not None:
            found.append(array)
    for i in range(len(model.sublayers)):
        found += [array for _, array in sorted(layout.layer(i).items())]
    return found


def assert_same(ours, theirs) -> None:
    assert ours.config == theirs.config
    assert ours.layout.architecture == theirs.layout.architecture
    assert ours.layout.dtype == theirs.layout.dtype
    assert ours.layout.n_params == theirs.layout.n_params
    for a, b in zip(parameters(ours), parameters(theirs), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("family", "name"), QUICK)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_family_is_what_it_saves(family, name, dtype, tmp_path):
    """Assert equality bit by bit: the same flows then give the same logits."""
    import torch

    network = make(family, **CONFIGURATIONS[family][name])
    folder = save(network, tmp_path / "saved", dtype)
    network.to(getattr(torch, dtype))
    assert_same(lyapunov.from_torch(network), lyapunov.load(folder))


def test_logits_are_those_of_the_saved_model(tmp_path):
    network = make("mamba", **MAMBA)
    ours = lyapunov.from_torch(network).logits(TOKENS)
    theirs = lyapunov.load(save(network, tmp_path / "saved")).logits(TOKENS)
    assert np.array_equal(ours, theirs)


def test_a_backbone_without_head_is_covered(tmp_path):
    backbone = make("mamba", **MAMBA).backbone
    backbone.save_pretrained(tmp_path / "saved")
    assert_same(lyapunov.from_torch(backbone), lyapunov.load(tmp_path / "saved"))


def test_nothing_is_written_and_nothing_changes(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    network = make("mamba", **MAMBA).train()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    random = torch.get_rng_state().clone()
    config = network.config.to_json_string()
    lyapunov.from_torch(network).logits(TOKENS)
    assert network.training
    assert network.config.to_json_string() == config
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert list(tmp_path.iterdir()) == []


def test_what_was_read_is_a_copy_and_what_is_read_is_live():
    import torch

    network = make("mamba", **MAMBA)
    model = lyapunov.from_torch(network)
    before = model.layout.layer(0)["D"]
    with torch.no_grad():
        network.backbone.layers[0].mixer.D.add_(1.0)
    after = model.layout.layer(0)["D"]
    np.testing.assert_array_equal(after, before + np.float32(1.0))


def test_wrappers_are_looked_through():
    import torch

    network = make("mamba", **MAMBA)
    plain = lyapunov.from_torch(network)
    assert_same(lyapunov.from_torch(torch.nn.DataParallel(network)), plain)
    assert_same(lyapunov.from_torch(torch.compile(network)), plain)


def test_a_transposed_weight_is_read_by_its_values():
    import torch

    network = make("mamba", **MAMBA)
    plain = parameters(lyapunov.from_torch(network))
    weight = network.backbone.layers[0].mixer.in_proj.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    again = parameters(lyapunov.from_torch(network))
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert isinstance(weight, torch.nn.Parameter)


# --- mamba_ssm, which does not install without a GPU: a module of the same names ------


def stub_of_mamba_ssm(network):
    """A module with `MambaLMHeadModel`'s config and names, and these weights."""
    import dataclasses

    import torch

    @dataclasses.dataclass
    class MambaConfig:
        d_model: int = 16
        d_intermediate: int = 0
        n_layer: int = 2
        vocab_size: int = 40
        ssm_cfg: dict = dataclasses.field(default_factory=lambda: {"d_state": 4})
        attn_layer_idx: list = dataclasses.field(default_factory=list)
        attn_cfg: dict = dataclasses.field(default_factory=dict)
        rms_norm: bool = True
        residual_in_fp32: bool = True
        fused_add_norm: bool = True
        pad_vocab_size_multiple: int = 8
        tie_embeddings: bool = True

    class MambaLMHeadModel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = MambaConfig()
            self.backbone = torch.nn.Module()
            self.backbone.embedding = network.backbone.embeddings
            self.backbone.layers = network.backbone.layers
            self.backbone.norm_f = network.backbone.norm_f
            self.lm_head = torch.nn.Linear(16, 40, bias=False)
            self.lm_head.weight = self.backbone.embedding.weight

    return MambaLMHeadModel()


def test_a_model_of_mamba_ssm():
    network = make("mamba", **MAMBA)
    stub = lyapunov.from_torch(stub_of_mamba_ssm(network))
    for a, b in zip(
        parameters(stub), parameters(lyapunov.from_torch(network)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert stub.config.tie_embeddings
    assert stub.config.fused_add_norm


def test_a_head_that_came_loose_is_told():
    """Assert that a tie which the config promises is looked for in memory."""
    import torch

    stub = stub_of_mamba_ssm(make("mamba", **MAMBA))
    stub.lm_head.weight = torch.nn.Parameter(stub.lm_head.weight.detach() + 1.0)
    with pytest.raises(lyapunov.LyapunovError, match="the head is the embedding"):
        lyapunov.from_torch(stub)


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "state-spaces/mamba-130m", 3, {"a": 1}])
def test_what_is_no_module_is_refused(given):
    import torch

    with pytest.raises(UsageError, match="no torch module") as refused:
        lyapunov.from_torch(given)
    assert "lyapunov.load" in refused.value.hint
    with pytest.raises(UsageError, match="no config"):
        lyapunov.from_torch(torch.nn.Linear(2, 2))


def test_another_family_is_refused():
    from transformers.models.bert import BertConfig, BertModel

    small: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2}
    small["num_hidden_layers"] = 1
    network = BertModel(BertConfig(vocab_size=9, intermediate_size=8, **small))
    with pytest.raises(UnsupportedCheckpointError, match="bert"):
        lyapunov.from_torch(network)


def test_weights_without_values_are_refused():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("mamba", **MAMBA)
        )
    with pytest.raises(UnsupportedCheckpointError, match="meta device") as refused:
        lyapunov.from_torch(network)
    assert "load the weights" in refused.value.hint


def test_quantised_weights_are_refused():
    import torch

    network = make("mamba", **MAMBA)
    network.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(UnsupportedCheckpointError, match="quantised"):
        lyapunov.from_torch(network)
    network = make("mamba", **MAMBA)
    mixer = network.backbone.layers[0].mixer
    mixer.D = torch.nn.Parameter(mixer.D.to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedCheckpointError, match="int8"):
        lyapunov.from_torch(network)


def test_weights_that_diverged_are_refused_when_they_are_read():
    import torch

    network = make("mamba", **MAMBA)
    with torch.no_grad():
        network.backbone.layers[1].mixer.D[3] = float("nan")
    with pytest.raises(lyapunov.LyapunovError, match="1 NaN"):
        lyapunov.from_torch(network).logits(TOKENS)
