"""Each layout reads to code times scale, bit for bit, through every family's table."""

import json

import numpy as np
import pytest

from lyapunov.checkpoints import open_checkpoint, recognise
from lyapunov.checkpoints.quantised._tensor import QuantisedTensor
from oracles.checkpoints.quantised_models import (
    RECIPES,
    stored_arrays,
    write_safetensors,
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_code_times_scale(quantised, recipe):
    folder, meant = quantised(recipe)
    checkpoint = open_checkpoint(folder)
    layout = recognise(checkpoint)
    assert len(meant) == 4
    for name, expected in meant.items():
        tensor = checkpoint.tensors[name]
        assert isinstance(tensor, QuantisedTensor)
        assert tensor.shape == expected.shape
        assert tensor.format.element == RECIPES[recipe].element
        found = tensor.read()
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, expected, err_msg=name)
        # some rows, in any order, as the whole has them
        rows = np.array([[7, 0], [131, 7]]) % expected.shape[0]
        np.testing.assert_array_equal(tensor.read_rows(rows), expected[rows])
        np.testing.assert_array_equal(tensor.read_rows(5, 126), expected[5:126])
    np.testing.assert_array_equal(
        layout.layer(1)["in_proj"], meant["backbone.layers.1.mixer.in_proj.weight"]
    )
    assert layout.dtype.startswith(RECIPES[recipe].element)
    assert layout.plain_dtype == "bf16"


@pytest.mark.parametrize("family", ["mamba", "nemotron_h", "qwen3_next"])
@pytest.mark.parametrize("recipe", ["ct-fp8-channel", "modelopt-nvfp4", "gptq-int4"])
def test_every_table_reads_the_same_parameters(quantised, plain, family, recipe):
    """A family's own names, also where one stored matrix holds several parameters."""
    folder, meant = quantised(recipe, family)
    layout, original = (recognise(open_checkpoint(f)) for f in (folder, plain(family)))
    assert layout.parts == original.parts or len(layout.parts) == len(original.parts)
    assert layout.n_params == original.n_params
    assert layout.weight_bytes < original.weight_bytes
    seen = set()
    for i, parts in enumerate(layout.parts):
        found, before = layout.layer(i), original.layer(i)
        for key, part in parts.items():
            names = {name for name in part.names if name in meant}
            seen |= names
            expected = before[key]
            if names:
                stored = lambda name: meant.get(name, original.stored(name))
                expected = original.parts[i][key].read(stored)
            np.testing.assert_array_equal(
                np.asarray(found[key], np.float64),
                np.asarray(expected, np.float64),
                err_msg=f"{i}: {key}",
            )
    assert seen == set(meant), "a quantised matrix that no table reads"


@pytest.mark.parametrize("recipe", ["ct-int4-group-asymmetric", "bnb-nf4-double"])
def test_codes_and_scales_in_different_files(quantised, recipe):
    folder, meant = quantised(recipe, name="sharded", shards=3)
    checkpoint = open_checkpoint(folder)
    recognise(checkpoint)
    for name, expected in meant.items():
        np.testing.assert_array_equal(checkpoint.read(name), expected)


PLACES = {
    "config.json's older key": ("ct-int4-group", "compression_config", None),
    "the text's part of a model of several": ("fp8-blocks", "text_config", None),
    "GPTQ's own file": ("gptq-int4", None, "quantize_config.json"),
    "AWQ's own file": ("awq", None, "quant_config.json"),
    "ModelOpt's own file, in lower case": (
        "modelopt-fp8-channel",
        None,
        "hf_quant_config.json",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_where_a_configuration_may_stand(quantised, place):
    recipe, key, file = PLACES[place]
    folder, meant = quantised(recipe)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    told = config.pop("quantization_config")
    if key == "text_config":
        config["text_config"] = {"quantization_config": told}
    elif key is not None:
        config[key] = told
    else:
        del told["quant_method"]
        if "quant_algo" in told:
            told = {"quantization": {**told, "quant_algo": told["quant_algo"].lower()}}
        (folder / file).write_text(json.dumps(told))
    path.write_text(json.dumps(config))
    checkpoint = open_checkpoint(folder)
    for name, expected in meant.items():
        np.testing.assert_array_equal(checkpoint.read(name), expected)
    names = [entry["name"] for entry in checkpoint.hashes()]
    assert (file in names) == (file is not None)


def test_zero_points_wrap_within_their_bits(quantised):
    """GPTQ's older zero point of 0 is stored as the largest code."""
    folder, meant = quantised("gptq-int4")
    tensors = stored_arrays(folder)
    name = "backbone.layers.0.mixer.in_proj"
    tensors[f"{name}.qzeros"][:] = -1  # 15 in each nibble
    write_safetensors(folder / "model.safetensors", tensors)
    found = open_checkpoint(folder).read(f"{name}.weight")
    scales = tensors[f"{name}.scales"].astype(np.float64)
    codes = found.T / scales[tensors[f"{name}.g_idx"]]
    assert codes.min() == 0
    np.testing.assert_array_equal(codes, np.rint(codes))
    assert found.shape == meant[f"{name}.weight"].shape


def test_some_rows_are_read_without_the_others(quantised, peak_memory):
    """Of a layout of rows: of an embedding of a million tokens a few are asked for."""
    folder, _ = quantised("ct-int8")
    tensors = stored_arrays(folder)
    name = "backbone.layers.0.mixer.in_proj"
    rows = 200_000
    tensors[f"{name}.weight"] = np.ones((rows, 128), np.int8)
    tensors[f"{name}.weight_scale"] = np.full((rows, 1), 0.5, np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    tensor = open_checkpoint(folder).tensors[f"{name}.weight"]
    with peak_memory(2**20):
        found = tensor.read_rows(np.array([3, rows - 1, 3]))
    np.testing.assert_array_equal(found, np.full((3, 128), 0.5))
    with pytest.raises(IndexError):
        tensor.read_rows(np.array([rows]))
    with pytest.raises(IndexError):
        tensor.read_rows(0, rows + 1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_few_rows_at_a_time_are_those_of_the_whole(quantised, monkeypatch, recipe):
    """Steps of 5 and 2 rows, which begin inside words, blocks and groups."""
    monkeypatch.setattr("lyapunov.checkpoints.quantised._tensor._ELEMENTS", 700)
    folder, meant = quantised(recipe)
    checkpoint = open_checkpoint(folder)
    for name, expected in meant.items():
        np.testing.assert_array_equal(checkpoint.read(name), expected)
