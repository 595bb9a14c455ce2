"""Families of the delta rule, and LFM2, against NumPy in fp64, as saved and released.

transformers computes the delta rule in fp32 whatever it is asked for, so that its own
forward (`test_forward`) cannot show what a NumPy one shows here.
"""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lyapunov
from lyapunov._errors import LyapunovError, UnsupportedCheckpointError
from oracles.checkpoints.configurations import CONFIGURATIONS
from oracles.checkpoints.transformers import make, redraw, save
from oracles.networks import (
    kimi_linear,
    lara_mini,
    lfm2,
    ling,
    minimax,
    olmo_hybrid,
    qwen3_next,
    recurrent_gemma,
    rwkv,
    xlstm,
)
from oracles.tolerances import exact_logits

from ..helpers import assert_within


FORWARDS = {
    "qwen3_next": qwen3_next.logits,
    "qwen3_5": qwen3_next.logits,
    "qwen3_5_moe": qwen3_next.logits,
    "olmo_hybrid": olmo_hybrid.logits,
    "kimi_linear": kimi_linear.logits,
    "bailing_hybrid": ling.logits,
    "lara_mini": lara_mini.logits,
    "lfm2": lfm2.logits,
    "recurrent_gemma": recurrent_gemma.logits,
    "rwkv": rwkv.logits,
    "minimax": minimax.logits,
    "xlstm": xlstm.logits,
}
CASES = [(family, name) for family in FORWARDS for name in CONFIGURATIONS[family]]
QUICK = {("qwen3_next", "experts and an MLP"), ("kimi_linear", "experts")}
TOKENS = np.random.default_rng(7).integers(0, 50, 13)


@functools.cache
def saved(family, name=None):
    """config.json and tensors of a small random model, as transformers saves it."""
    settings = CONFIGURATIONS[family]
    network = make(family, **settings[name or next(iter(settings))])
    folder = save(network, Path(tempfile.mkdtemp(prefix="lyapunov-test-")))
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    # in fp32 they would be another function than the slopes
    return config, tensors | minimax.buffers(tensors)


def loaded(folder, config, tensors):
    """What we read of a folder with this config.json and these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return lyapunov.load(folder)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow])
        for case in CASES
    ],
)
def test_logits_are_numpys_and_every_tensor_counts(family, name, tmp_path):
    """Assert fp64's agreement, with states that remember, tensor by tensor."""
    config, tensors = saved(family, name)
    forward, states = FORWARDS[family], []
    forward(tensors, config, TOKENS, states)
    # what one write leaves is at most its value, of about 1
    assert all(np.abs(state).max() > 0.3 for state in states)
    theirs, allowed = exact_logits(tensors, config, forward, TOKENS)
    assert allowed < 1e-9 * np.abs(theirs).max()
    model = loaded(tmp_path, config, tensors)
    ours = np.asarray(model.logits(TOKENS))
    assert_within(ours, theirs, allowed, f"{family}, {name}")
    assert model.layout.n_params == sum(array.size for array in tensors.values())
    idle = []
    for key, value in tensors.items():
        turned = np.flip(value, 0) + 0.1 * (np.arange(value.size) % 3).reshape(
            value.shape
        ).astype(np.float32)
        moved = forward(tensors | {key: turned}, config, TOKENS)
        if np.array_equal(moved, theirs):
            idle.append(key)  # an expert that none of these tokens goes through
            continue
        assert np.abs(moved - ours).max() > allowed, key
    of_experts = [key for key in tensors if ".experts." in key]
    assert set(idle) <= set(of_experts)
    assert len(idle) <= len(of_experts) / 2


def same(tmp_path, family, change, name=None):
    """Assert that a folder changed so is read as the same network."""
    config, tensors = saved(family, name)
    expected = np.asarray(loaded(tmp_path / "saved", config, tensors).logits(TOKENS))
    config, tensors = change(dict(config), dict(tensors))
    found = loaded(tmp_path / "other", config, tensors)
    np.testing.assert_array_equal(np.asarray(found.logits(TOKENS)), expected)
    return found


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


def test_a_model_that_reads_pictures_is_read_as_its_text(tmp_path):
    """Assert it with names and settings of the whole model, the head for more tokens
    beside it, and full attention by its interval."""

    def whole(config, tensors):
        text = without(config, "layer_types", "tie_word_embeddings")
        text |= {"full_attention_interval": 2}
        inside = {
            name.replace("model.", "model.language_model.", 1): array
            for name, array in tensors.items()
        }
        more = {
            "model.visual.patch_embed.weight": np.zeros((3, 4), np.float32),
            "mtp.layers.0.input_layernorm.weight": np.zeros(4, np.float32),
        }
        outer = {"model_type": "qwen3_5", "tie_word_embeddings": False}
        return outer | {"text_config": text, "vision_config": {}}, inside | more

    found = same(tmp_path, "qwen3_5", whole)
    assert found.layout.architecture == "qwen3_5"
    assert found.layout.modules[0] == "model.language_model.layers.0.linear_attn"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_a_model_that_reads_pictures_as_transformers_saves_it(family, tmp_path):
    """Assert the text's logits of the whole class's own file, tower and all."""
    import torch
    import transformers

    library: Any = transformers  # some of its names are there without type stubs
    text = next(iter(CONFIGURATIONS[family].values())) | {"vocab_size": 60}
    tower = {
        "model_type": f"{family}_vision", "depth": 1, "hidden_size": 32,
        "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
        "num_position_embeddings": 16,
    }  # fmt: skip
    names = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    config = library.AutoConfig.for_model(
        family,
        text_config=text | {"model_type": f"{family}_text"},
        vision_config=tower,
        **{f"{name}_id": 50 + i for i, name in enumerate(names)},
    )
    network = library.AutoModelForImageTextToText.from_config(
        config, dtype=torch.float32
    )
    redraw(network)
    folder = save(network, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    assert any(name.startswith("model.visual.") for name in tensors)
    theirs, allowed = exact_logits(tensors, config, FORWARDS[family], TOKENS)
    ours = np.asarray(lyapunov.load(folder).logits(TOKENS))
    assert_within(ours, theirs, allowed, family)


def test_experts_in_two_tensors_are_those_one_by_one(tmp_path):
    def fused(config, tensors):
        out = {k: v for k, v in tensors.items() if ".experts." not in k}
        for i in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{i}.mlp.experts."
            if f"{prefix}0.up_proj.weight" not in tensors:
                continue
            each = lambda name, prefix=prefix: np.stack(
                [tensors[f"{prefix}{e}.{name}_proj.weight"] for e in range(4)]
            )
            both = np.concatenate([each("gate"), each("up")], axis=1)
            out |= {f"{prefix}gate_up_proj": both, f"{prefix}down_proj": each("down")}
        return config, out

    same(tmp_path, "qwen3_next", fused)


def test_rows_of_olmos_convolution_lie_as_they_may(tmp_path):
    """Assert thirds, as transformers saves them, and each part's own, as released."""

    def own(config, tensors):
        for name in [name for name in tensors if name.endswith("q_conv1d.weight")]:
            names = [name.replace("q_conv", f"{part}_conv") for part in "qkv"]
            thirds = [tensors[one].shape[0] for one in names]
            assert thirds == [19, 19, 18]
            whole = np.concatenate([tensors[one] for one in names])
            parts = np.split(whole, [16, 32])
            tensors |= dict(zip(names, parts, strict=True))
        return config, tensors

    same(tmp_path, "olmo_hybrid", own)


def test_kimi_linear_as_released(tmp_path):
    """Assert lists that count from 1, its own settings, and names of the dense MLP."""

    def released(config, tensors):
        settings = {
            "kda_layers": [1, 3], "full_attn_layers": [2], "head_dim": 8,
            "num_heads": 4, "short_conv_kernel_size": 4,
        }  # fmt: skip
        config = without(
            config, "layer_types", "mlp_layer_types", "linear_head_dim",
            "linear_num_heads", "linear_conv_kernel_dim",
        )  # fmt: skip
        config |= {
            "linear_attn_config": settings, "first_k_dense_replace": 1,
            "mla_use_nope": True, "moe_router_activation_func": "sigmoid",
        }  # fmt: skip
        dense, plain = "model.layers.0.block_sparse_moe.", "model.layers.0.mlp."
        return config, {k.replace(dense, plain): v for k, v in tensors.items()}

    same(tmp_path, "kimi_linear", released)


def test_lings_layers_for_more_tokens_are_passed_over(tmp_path):
    def more(config, tensors):
        name = "model.layers.3.attention.dense.weight"
        return config, tensors | {name: np.zeros((4, 4), np.float32)}

    same(tmp_path, "bailing_hybrid", more)


def refused(tmp_path, family, change, kind=LyapunovError):
    config, tensors = saved(family)
    with pytest.raises(kind) as caught:
        loaded(tmp_path, *change(dict(config), dict(tensors)))
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


# What config.json says instead, and what the refusal says of it.
WRONG = [
    ("qwen3_next", {"linear_num_value_heads": 3}, "linear_num_value_heads = 3"),
    ("qwen3_next", {"num_hidden_layers": 4}, "names 3 layers, and counts 4"),
    ("qwen3_next", {"layer_types": ["mamba", "sliding_attention", "mamba"]},
     "sliding_attention"),
    ("qwen3_next", {"moe_intermediate_size": 32}, "config.json asks for (32, 32)"),
    ("qwen3_next", {"num_experts": 5}, "no tensor"),
    ("qwen3_next", {"num_experts_per_tok": 5}, "5 of 4 experts"),
    ("qwen3_next", {"model_type": "qwen3_5_text"}, "no tensor"),
    ("qwen3_5", {"model_type": "qwen3_5"}, "text_config"),
    ("qwen3_5", {"model_type": "qwen3_5_moe_text"}, "no tensor"),
    ("qwen3_5", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type"),
    ("olmo_hybrid", {"linear_value_head_dim": 8}, "64 in all"),
    ("olmo_hybrid", {"linear_allow_neg_eigval": "yes"}, "linear_allow_neg_eigval"),
    ("kimi_linear", {"kv_lora_rank": 16}, "config.json asks for (16,)"),
    ("kimi_linear", {"mlp_layer_types": ["dense"]}, "1 MLPs of 3 layers"),
    ("kimi_linear", {"moe_router_activation_func": "softmax"}, "sigmoids"),
    ("kimi_linear", {"num_expert_group": 3}, "8 experts in 3 groups"),
    ("kimi_linear", {"num_expert_group": 8, "topk_group": 2}, "8 experts in 8 groups"),
    ("kimi_linear",
     {"num_expert_group": 4, "topk_group": 1, "num_experts_per_token": 3},
     "3 experts are chosen of 1 groups of 2"),
    ("bailing_hybrid", {"kda_lower_bound": 5.0}, "5"),
    ("minimax", {"num_hidden_layers": 2}, "names 3 layers, and counts 2"),
    ("minimax", {"layer_types": ["conv"] * 3}, "conv"),
    ("minimax", {"layer_types": None, "attn_type_list": [1, 0]}, "in attn_type_list"),
    ("minimax", {"layer_types": None, "attn_type_list": [1, 0, 2]}, "list of 0 and 1"),
    ("minimax", {"num_attention_heads": 8, "head_dim": 4}, "k_proj.weight"),
    ("minimax", {"block_size": 8}, "query_decay"),
    ("minimax", {"num_local_experts": 5}, "no tensor"),
    ("minimax", {"hidden_act": "gelu"}, "only silu"),
    ("minimax", {"mlp_alpha_factor": "one"}, "mlp_alpha_factor"),
    ("recurrent_gemma", {"block_types": ["recurrent", "mamba"]}, "mamba"),
    ("recurrent_gemma", {"block_types": "recurrent"}, "block_types = "),
    ("recurrent_gemma", {"block_types": ["attention"]}, "q_proj.weight"),
    ("recurrent_gemma", {"num_attention_heads": 3}, "divisor of 32"),
    ("recurrent_gemma", {"num_attention_heads": 8}, "asks for (8, 4, 4)"),
    ("recurrent_gemma", {"lru_width": 30}, "lru_width = 30 is no multiple of 4"),
    ("recurrent_gemma", {"logits_soft_cap": 0.0}, "logits_soft_cap = 0.0"),
    ("recurrent_gemma", {"hidden_activation": "tanh"}, "hidden_activation = "),
    ("recurrent_gemma", {"embeddings_scale_by_sqrt_dim": False}, "not scaled"),
    ("recurrent_gemma", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "says"), WRONG)
def test_what_does_not_fit_is_refused_by_name(tmp_path, family, changes, says):
    message = refused(tmp_path, family, lambda c, t: (c | changes, t))
    assert says in message, message


def test_a_file_of_pictures_alone_says_so(tmp_path):
    """Assert that a vision part without its text is told from a damaged file."""

    def pictures(config, tensors):
        del tensors
        alone = {"model.visual.patch_embed.weight": np.zeros((3, 4), np.float32)}
        return {"model_type": "qwen3_5", "text_config": config}, alone

    assert "the text part is not there" in refused(tmp_path, "qwen3_5", pictures)


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({"kda_layers": [1, 3]}, "full_attn_layers"),
        ({"kda_layers": [0, 2], "full_attn_layers": [1]}, "count from 1"),
        ({"kda_layers": [1], "full_attn_layers": [2]}, "3 layers"),
        ({"kda_layers": "all", "full_attn_layers": [2]}, "kda_layers"),
    ],
)
def test_lists_of_layers_that_do_not_fit_are_refused(tmp_path, places, says):
    change = lambda c, t: (
        without(c, "layer_types") | {"linear_attn_config": places},
        t,
    )
    assert says in refused(tmp_path, "kimi_linear", change)


def test_a_latent_attention_of_kimi_with_positions_is_not_covered(tmp_path):
    change = lambda c, t: (c | {"mla_use_nope": False}, t)
    refused(tmp_path, "kimi_linear", change, UnsupportedCheckpointError)
