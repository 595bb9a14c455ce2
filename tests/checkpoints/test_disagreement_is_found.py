"""Configuration, tensors and values are held to each other."""

import os

import numpy as np
import pytest

from lyapunov._errors import CorruptCheckpointError, UnsupportedCheckpointError
from lyapunov.checkpoints import open_checkpoint, recognise


@pytest.mark.parametrize(
    ("entries", "name", "found", "asked"),
    [
        ({"hidden_size": 64}, "embeddings", "(53, 32)", "(53, 64)"),
        ({"vocab_size": 54}, "embeddings", "(53, 32)", "(54, 32)"),
        ({"state_size": 8}, "x_proj", "(10, 64)", "(18, 64)"),
        ({"conv_kernel": 3}, "conv1d.weight", "(64, 1, 4)", "(64, 1, 3)"),
        ({"time_step_rank": 4}, "x_proj", "(10, 64)", "(12, 64)"),
    ],
)
def test_shapes_that_disagree(refused, saved, set_config, entries, name, found, asked):
    """Assert that tensor, found shape and expected shape are named."""
    _, folder = saved()
    set_config(folder, **entries)
    refused(folder, CorruptCheckpointError, name, found, asked)


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"num_hidden_layers": 3}, "asks for 3 layers"),
        ({"num_hidden_layers": 1}, "no place for"),
        ({"num_hidden_layers": 9999}, "the weights hold tensors of 2"),
        ({"num_hidden_layers": 2**30}, "a plausible number of layers"),
        ({"use_conv_bias": False}, "conv1d.bias"),
        ({"use_bias": True}, "in_proj.bias"),
        ({"tie_word_embeddings": False}, "lm_head.weight"),
    ],
)
def test_tensors_missing_or_left_over(refused, saved, set_config, entries, word):
    """Assert that tensors too few and too many are both noticed."""
    _, folder = saved()
    set_config(folder, **entries)
    refused(folder, CorruptCheckpointError, word)


def test_tied_head_that_differs(refused, saved, set_config):
    """Assert that a head that is not the embedding is not passed over as tied."""
    _, folder = saved(tie_word_embeddings=False)
    set_config(folder, tie_word_embeddings=True)
    refused(folder, CorruptCheckpointError, "lm_head.weight", "differ")


@pytest.mark.parametrize("value", ["32", -1, 0, 2.5, None, True, [1], 10**30])
def test_sizes_that_are_none(refused, saved, set_config, value):
    """Assert that nonsense in config.json is named with its key."""
    _, folder = saved()
    set_config(folder, hidden_size=value)
    refused(folder, CorruptCheckpointError, "hidden_size")


@pytest.mark.parametrize(
    "content", ["", "[]", "nonsense", "\xff", "[" * 10**5, '{"a":' * 10**5]
)
def test_broken_configuration(refused, saved, content):
    """Assert that a config.json that is none is called corrupt."""
    _, folder = saved()
    (folder / "config.json").write_text(content, encoding="latin-1")
    refused(folder, CorruptCheckpointError, "config.json", hint=False)


def test_odd_names_stay_on_one_line(refused, saved, set_config):
    """Assert that text from a file cannot break or flood the message."""
    _, folder = saved()
    set_config(folder, model_type="a\nb\x1b[31m" + "x" * 10_000)
    refused(folder, UnsupportedCheckpointError, "a\\nb\\x1b")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("part", ["A_log", "dt_proj.bias", "in_proj.weight"])
def test_non_finite_weights(refused, saved, rewrite, dtype, part):
    """Assert that NaN and infinity are counted and named when the layer is read."""
    _, folder = saved(dtype=dtype)
    name = f"backbone.layers.1.mixer.{part}"

    def damage(state):
        flat = state[name].view(-1)
        flat[3], flat[5], flat[7] = float("nan"), float("inf"), -float("inf")

    rewrite(folder, damage)
    e = refused(folder, CorruptCheckpointError, name, read=True)
    assert "1 NaN and 2 infinite" in e.message
    layout = recognise(open_checkpoint(folder))
    assert np.isfinite(layout.layer(0)["A_log"]).all()


@pytest.mark.parametrize(
    "name", ["backbone.embeddings.weight", "backbone.norm_f.weight"]
)
def test_non_finite_ends(refused, saved, rewrite, name):
    """Assert that embedding, final norm and head are looked at as well."""
    _, folder = saved()
    rewrite(folder, lambda s: s[name].view(-1).__setitem__(0, float("nan")))
    refused(folder, CorruptCheckpointError, name, "1 NaN", read=True)


def test_file_that_shrinks_while_it_is_read(saved):
    """Assert that a file cut off after it was opened is noticed."""
    _, folder = saved()
    layout = recognise(open_checkpoint(folder))
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(CorruptCheckpointError, match="too soon"):
        layout.final_norm()
