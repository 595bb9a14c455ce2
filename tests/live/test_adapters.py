"""Assert that a PEFT-wrapped model is W + s B A, and is left as it is."""

from typing import Any

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import UnsupportedCheckpointError
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make

from .test_from_torch import MAMBA, parameters


pytestmark = pytest.mark.filterwarnings("ignore")
TARGETS = ["x_proj", "in_proj", "embeddings"]


def adapt(network, targets, seed=0, **settings) -> Any:
    """PEFT's wrapper with an adapter that does something."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, lora_alpha=5, target_modules=targets, **settings)
    wrapped = get_peft_model(network, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return wrapped


def close(ours, merged) -> None:
    """Assert equality up to the merge's own fp32: a few sums of rank 3."""
    for a, b in zip(ours, merged, strict=True):
        scale = np.abs(b).max() + 20.0
        np.testing.assert_allclose(a, b, rtol=0, atol=16 * 2.0**-24 * scale)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_merged_view(rslora):
    import copy

    network = make("mamba", **MAMBA, tie_word_embeddings=False)
    plain = parameters(lyapunov.from_torch(network))
    wrapped = adapt(network, TARGETS, use_rslora=rslora, rank_pattern={"x_proj": 2})
    before = {name: t.clone() for name, t in wrapped.state_dict().items()}
    ours = parameters(lyapunov.from_torch(wrapped))
    merged = copy.deepcopy(wrapped).merge_and_unload()
    close(ours, parameters(lyapunov.from_torch(merged)))
    assert sum(not np.array_equal(a, b) for a, b in zip(ours, plain, strict=True)) == 5
    for name, tensor in wrapped.state_dict().items():
        assert np.array_equal(tensor, before[name])


def test_names_that_saving_changes_are_followed():
    import copy

    network = make(
        "granitemoehybrid",
        **CONFIGURATIONS["granitemoehybrid"]["experts, no positions"],
    )
    wrapped = adapt(network, ["in_proj", "q_proj", "o_proj"])
    merged = copy.deepcopy(wrapped).merge_and_unload()
    ours, theirs = lyapunov.from_torch(wrapped), lyapunov.from_torch(merged)
    close(parameters(ours), parameters(theirs))


def test_merged_and_disabled_adapters_are_what_the_weights_say():
    network = make("mamba", **MAMBA)
    plain = parameters(lyapunov.from_torch(network))
    wrapped = adapt(network, ["in_proj"])
    live = parameters(lyapunov.from_torch(wrapped))
    with wrapped.disable_adapter():
        for a, b in zip(parameters(lyapunov.from_torch(wrapped)), plain, strict=True):
            assert np.array_equal(a, b)
    wrapped.merge_adapter()
    close(parameters(lyapunov.from_torch(wrapped)), live)


def test_modules_that_an_adapter_replaces():
    import copy

    import torch

    network = make("mamba", **MAMBA, tie_word_embeddings=False)
    plain = parameters(lyapunov.from_torch(network))
    wrapped = adapt(network, ["in_proj"], modules_to_save=["lm_head"])
    with torch.no_grad():
        wrapped.base_model.model.lm_head.modules_to_save.default.weight.add_(1.0)
    ours = parameters(lyapunov.from_torch(wrapped))
    merged = copy.deepcopy(wrapped).merge_and_unload()
    close(ours, parameters(lyapunov.from_torch(merged)))
    assert np.abs(ours[1] - plain[1]).min() > 0.9
    with wrapped.disable_adapter():
        for a, b in zip(parameters(lyapunov.from_torch(wrapped)), plain, strict=True):
            assert np.array_equal(a, b)
    wrapped.merge_adapter()
    with pytest.raises(UnsupportedCheckpointError, match="replaces"):
        lyapunov.from_torch(wrapped)


def test_what_is_not_plain_lora_is_refused():
    wrapped = adapt(make("mamba", **MAMBA), ["in_proj"], use_dora=True)
    with pytest.raises(UnsupportedCheckpointError, match="DoRA"):
        lyapunov.from_torch(wrapped)
    from peft import LoraConfig

    wrapped = adapt(make("mamba", **MAMBA), ["in_proj"])
    wrapped.add_adapter("other", LoraConfig(r=2, target_modules=["in_proj"]))
    wrapped.base_model.set_adapter(["default", "other"])
    with pytest.raises(UnsupportedCheckpointError, match="2 adapters"):
        lyapunov.from_torch(wrapped)
    wrapped = adapt(make("mamba", **MAMBA), ["in_proj"])
    wrapped.base_model.model.backbone.layers[1].mixer.in_proj.scale_layer(2.0)
    with pytest.raises(UnsupportedCheckpointError, match="strength"):
        lyapunov.from_torch(wrapped)
