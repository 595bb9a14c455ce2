"""Assert that a family with a recurrence that is not read is told from one without."""

import json
import re
from pathlib import Path

import pytest

import lyapunov
from lyapunov import recurrences
from lyapunov._errors import UnsupportedCheckpointError
from lyapunov.checkpoints.families._architectures import _MODEL_TYPES, layout_of
from lyapunov.checkpoints.families._not_covered import NOT_COVERED, WINDOW
from lyapunov.command._answers import architectures


# What a recurrence, or a window of a convolution, is called in a modeling file.
MARKS = re.compile(
    r"\bA_log\b|recurrent_state|rg_lru|time_decay|mLSTM|ShortConv|LightningAttention"
    r"|\bconv_states?\b"
)
TYPE = re.compile(r'model_type\s*=\s*"([^"]+)"')
PARTS = ("_vision", "_audio")


def recurrent_types():
    """Every model_type of the installed transformers whose own code has a mark."""
    transformers = pytest.importorskip("transformers")
    home = Path(transformers.__file__).parent / "models"
    found = set()
    for path in home.glob("*/modeling_*.py"):
        if MARKS.search(path.read_text("utf-8")):
            for config in path.parent.glob("configuration_*.py"):
                found |= set(TYPE.findall(config.read_text("utf-8")))
    return {name for name in found if not name.endswith(PARTS)}


def test_every_recurrence_of_transformers_is_covered_or_said_not_to_be():
    """Assert it by the library's source, so that a new family is not passed over."""
    found = recurrent_types()
    assert {"mamba", "qwen3_next", "rwkv", "xlstm", "lfm2", "recurrent_gemma"} <= found
    assert found <= set(_MODEL_TYPES) | set(NOT_COVERED)
    assert not set(_MODEL_TYPES) & set(NOT_COVERED)


@pytest.mark.parametrize("model_type", sorted(NOT_COVERED))
def test_it_is_said_what_there_is_instead(model_type):
    """Assert no "nothing to check", no family that it is not, and a hint to type."""
    family = NOT_COVERED[model_type]
    with pytest.raises(UnsupportedCheckpointError) as caught:
        layout_of({"model_type": model_type}, "m", ["model.layers.0.x.weight"])
    error = caught.value
    assert family.title in error.message
    assert "is not covered as a checkpoint" in error.message
    assert family.recurrence in error.message
    assert family.beside in error.message
    assert "nearest" not in error.hint
    assert "no SSM" not in error.message
    if family.recurrence == WINDOW:
        assert "-inf" in error.hint
        return
    assert callable(lyapunov.lyapunov_spectrum)
    assert "lyapunov.lyapunov_spectrum" in error.hint
    (cell,) = re.findall(r"lyapunov\.recurrences\.(\w+)", error.hint)
    assert cell == (family.cell or "GivenJacobians")
    assert cell in recurrences.__all__


SMALL = {
    "lfm2_moe": {
        "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 16, "moe_intermediate_size": 16,
        "num_experts": 2, "num_experts_per_tok": 1, "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"],
    },
}  # fmt: skip


@pytest.mark.parametrize("model_type", SMALL)
@pytest.mark.parametrize("door", ["load", "from_torch"])
def test_what_transformers_saves_is_named(tmp_path, model_type, door):
    """Assert it of real files and of modules, whatever their tensors are called."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        model_type, vocab_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        **SMALL[model_type],
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config)
    given = network
    if door == "load":
        network.save_pretrained(tmp_path / "m")
        given = tmp_path / "m"
    with pytest.raises(UnsupportedCheckpointError) as caught:
        getattr(lyapunov, door)(given)
    assert NOT_COVERED[model_type].title in caught.value.message
    assert caught.value.hint == NOT_COVERED[model_type].hint


@pytest.mark.parametrize("inner", ["glm5_next_text", "lfm3"])
def test_the_text_part_of_a_wrapper_is_looked_at(inner):
    config = {"model_type": "wrapper", "text_config": {"model_type": inner}}
    with pytest.raises(UnsupportedCheckpointError) as caught:
        layout_of(json.loads(json.dumps(config)), "m", [])
    assert NOT_COVERED[inner].title in caught.value.message


@pytest.mark.parametrize("model_type", ["gpt2", "qwen3", "gemma3", "bert", "mistral"])
def test_a_transformer_that_is_not_read_is_not_covered(model_type):
    """Assert that Transformers, which are covered in part, are not "nothing"."""
    with pytest.raises(UnsupportedCheckpointError) as caught:
        layout_of({"model_type": model_type}, "m", ["h.0.attn.weight"])
    assert "is not covered" in caught.value.message
    assert "nothing to check" not in caught.value.message
    assert "nearest" not in caught.value.hint


def test_the_list_of_architectures_has_them():
    text = " ".join(architectures().split())
    for family in NOT_COVERED.values():
        assert family.title in text
    assert "RWKV-7: a generalised delta rule" in text
