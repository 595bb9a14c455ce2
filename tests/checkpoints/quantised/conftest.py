"""Small models, plain and as each layout stores them."""

import json

import pytest

from oracles.checkpoints.configurations import SMALL
from oracles.checkpoints.quantised_models import (
    RECIPES,
    quantise_folder,
    stored_arrays,
    write_safetensors,
)
from oracles.checkpoints.transformers import make, save


MAMBA2 = {
    "vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "state_size": 16,
    "num_heads": 8, "head_dim": 32, "n_groups": 1, "chunk_size": 16,
    "tie_word_embeddings": False,
}  # fmt: skip
MAMBA1 = {**SMALL, "vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 2}
MAMBA1 |= {"state_size": 8, "intermediate_size": 256, "time_step_rank": 16}
NEMOTRON = {
    "vocab_size": 64, "hidden_size": 128, "num_attention_heads": 4, "head_dim": 32,
    "num_key_value_heads": 2, "ssm_state_size": 16, "mamba_num_heads": 8,
    "mamba_head_dim": 32, "n_groups": 2, "intermediate_size": 256, "chunk_size": 16,
    "time_step_min": 0.001, "pad_token_id": None,
    "time_step_limit": (0.001, float("inf")),
    "layers_block_type": ["mamba", "attention", "mlp"],
}  # fmt: skip
QWEN = {
    "vocab_size": 64, "hidden_size": 128, "num_attention_heads": 4, "head_dim": 32,
    "num_key_value_heads": 2, "linear_num_key_heads": 4, "linear_key_head_dim": 32,
    "linear_num_value_heads": 4, "linear_value_head_dim": 32, "intermediate_size": 256,
    "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"],
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128, "pad_token_id": None,
}  # fmt: skip
FAMILIES = {
    "mamba": MAMBA1,
    "mamba2": MAMBA2,
    "nemotron_h": NEMOTRON,
    "qwen3_next": QWEN,
}
_KEPT = ("embed", "lm_head", "conv1d", "gate.weight", "norm", "in_proj_ba", "dt_proj")


def is_quantised(name: str) -> bool:
    """What quantisers round: matrices of layers, no router, embedding or head."""
    return name.endswith(".weight") and not any(part in name for part in _KEPT)


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A function that gives the folder of a family's model in bf16."""
    made = {}

    def folder(family="mamba2"):
        if family not in made:
            place = tmp_path_factory.mktemp(family) / "model"
            made[family] = save(make(family, **FAMILIES[family]), place, "bfloat16")
        return made[family]

    return folder


@pytest.fixture(scope="session")
def made(plain, tmp_path_factory):
    """A function that gives a model as `as_configured.build` makes it, each once."""
    from .as_configured import build

    found = {}

    def give(family, recipe, scale=None, kept=()):
        key = family, recipe, scale, kept
        if key not in found:
            folder = tmp_path_factory.mktemp("followed") / "model"
            found[key] = build(plain(family), folder, recipe, scale, kept)
        return found[key]

    return give


@pytest.fixture
def quantised(plain, tmp_path):
    """A function that gives a folder as a recipe stores it, and what it means."""

    def folder(recipe="ct-fp8-channel", family="mamba2", name=None, **more):
        target = tmp_path / (name or f"{family}-{recipe}")
        more = {"chosen": is_quantised, **more}
        return target, quantise_folder(plain(family), target, RECIPES[recipe], **more)

    return folder


@pytest.fixture
def spoilt(quantised):
    """A function that gives a folder whose tensors and configuration were changed."""

    def folder(recipe, change=None, config=None, beside=None, remove=()):
        place, _ = quantised(recipe)
        tensors = stored_arrays(place)
        if change is not None:
            change(tensors)
        write_safetensors(place / "model.safetensors", tensors)
        path = place / "config.json"
        told = json.loads(path.read_text())
        if config is not None:
            told["quantization_config"] |= config
        for name in remove:
            del told["quantization_config"][name]
        path.write_text(json.dumps(told))
        if beside is not None:
            (place / "hf_quant_config.json").write_text(json.dumps(beside))
        return place

    return folder
