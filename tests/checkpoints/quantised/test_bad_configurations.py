"""Configurations of quantised files that say something else: one clear line each."""

import numpy as np
import pytest

from lyapunov._errors import CorruptCheckpointError, UnsupportedCheckpointError
from lyapunov.checkpoints import open_checkpoint, recognise

from .spoiling import (
    STATE,
    P,
    as_json,
    put,
)


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}
CONFIGURATIONS = {
    "another method's tensors": (
        "gptq-int4",
        {"quant_method": "bitsandbytes"},
        CorruptCheckpointError,
        ("the configuration says bitsandbytes", "as gptq or awq stores them"),
    ),
    "another kind of the method": (
        "ct-fp8-channel",
        {"config_groups": {"group_0": GROUP}},
        CorruptCheckpointError,
        ("is fp8_e4m3", "config.json has int4"),
    ),
    "4 bits of bitsandbytes for 8": (
        "bnb-int8",
        {"load_in_8bit": False, "load_in_4bit": True},
        CorruptCheckpointError,
        ("the configuration says 4 bits",),
    ),
    "8 bits of bitsandbytes for 4": (
        "bnb-nf4",
        {"load_in_8bit": True, "load_in_4bit": False},
        CorruptCheckpointError,
        ("the configuration says 8 bits",),
    ),
    "bits of another size": (
        "gptq-int4",
        {"bits": 8},
        CorruptCheckpointError,
        ("codes of 8 bits take",),
    ),
    "groups of another size": (
        "gptq-int4",
        {"group_size": 128},
        CorruptCheckpointError,
        ("has 4 groups; 128 inputs in groups of 128 have 1",),
    ),
    "groups of 0": (
        "awq",
        {"group_size": 0},
        CorruptCheckpointError,
        ("do not divide",),
    ),
    "bits that are no number": (
        "gptq-int4",
        {"bits": "four"},
        CorruptCheckpointError,
        ("bits is four",),
    ),
    "bits of 5": (
        "gptq-int4",
        {"bits": 5},
        UnsupportedCheckpointError,
        ("GPTQ's bits 5", "covered: 2, 3, 4, 8"),
    ),
    "an unknown method": (
        "gptq-int4",
        {"quant_method": "quark"},
        UnsupportedCheckpointError,
        ("quark", "covered: compressed-tensors, fp8"),
    ),
    "a method that is no word": (
        "gptq-int4",
        {"quant_method": ["gptq"]},
        UnsupportedCheckpointError,
        ("quant_method",),
    ),
    "an unknown format": (
        "ct-int4-group",
        {"format": "marlin-24"},
        UnsupportedCheckpointError,
        ("marlin-24", "pack-quantized"),
    ),
    "rotations": (
        "ct-int4-group",
        {"transform_config": {"config_groups": {"R1": {}}}},
        UnsupportedCheckpointError,
        ("rotations",),
    ),
    "sparse as well": (
        "ct-int4-group",
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        UnsupportedCheckpointError,
        ("sparse-24-bitmask",),
    ),
    "groups that are a list": (
        "ct-int4-group",
        {"config_groups": [GROUP]},
        CorruptCheckpointError,
        ("config_groups is no object",),
    ),
    "groups without weights": (
        "ct-int4-group",
        {"config_groups": {"group_0": {"targets": ["Linear"]}}},
        CorruptCheckpointError,
        ("say nothing of weights",),
    ),
    "an ignore that is a word": (
        "ct-int4-group",
        {"ignore": "lm_head"},
        CorruptCheckpointError,
        ("ignore is no list of names",),
    ),
    "a later zero point's layout": (
        "gptq-int4",
        {"checkpoint_format": "gptq_v3"},
        UnsupportedCheckpointError,
        ("gptq_v3", "gptq_v2"),
    ),
    "AWQ for other kernels": (
        "awq",
        {"version": "gemv"},
        UnsupportedCheckpointError,
        ("gemv",),
    ),
    "e5m2": (
        "fp8-blocks",
        {"fmt": "e5m2"},
        UnsupportedCheckpointError,
        ("e5m2",),
    ),
    "blocks of three sides": (
        "fp8-blocks",
        {"weight_block_size": [128, 128, 1]},
        CorruptCheckpointError,
        ("no pair of sizes",),
    ),
    "blocks of nothing": (
        "fp8-blocks",
        {"weight_block_size": [0, 128]},
        CorruptCheckpointError,
        ("no pair of sizes",),
    ),
    "ModelOpt's other algorithm": (
        "modelopt-fp8-channel",
        {"quant_algo": "NVFP4"},
        CorruptCheckpointError,
        ("as fp8_e4m3 stores them",),
    ),
    "ModelOpt's AWQ": (
        "modelopt-fp8-channel",
        {"quant_algo": "W4A8_AWQ"},
        UnsupportedCheckpointError,
        ("W4A8_AWQ", "NVFP4"),
    ),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_configurations_of_something_else(refused, spoilt, case):
    recipe, config, error, words = CONFIGURATIONS[case]
    refused(spoilt(recipe, config=config), error, *words, read=True)


@pytest.mark.parametrize("recipe", ["ct-int4-group", "gptq-int4", "bnb-int8", "awq"])
def test_without_its_configuration(refused, quantised, set_config, recipe):
    folder, _ = quantised(recipe)
    set_config(folder, remove=["quantization_config"])
    e = refused(folder, CorruptCheckpointError, "names no quantisation")
    assert "quantize_config.json" in e.hint


def test_a_configuration_without_its_tensors(refused, plain, tmp_path, set_config):
    import shutil

    folder = tmp_path / "plain"
    shutil.copytree(plain(), folder)
    set_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(folder, CorruptCheckpointError, "no tensor is stored so")
    set_config(folder, quantization_config="gptq")
    refused(folder, CorruptCheckpointError, "is no object")


def test_inputs_that_are_multiplied_first(refused, spoilt):
    scale = lambda t: t.__setitem__(f"{P}.pre_quant_scale", np.ones(128, np.float32))
    folder = spoilt("modelopt-nvfp4", scale)
    refused(folder, UnsupportedCheckpointError, "pre_quant_scale")


def test_a_list_that_names_nothing_is_told(spoilt):
    kept = ["lm_head", "backbone.layers.0.mixer.in_porj", "re:.*\\.gate$", "re:(a+)+$"]
    found = open_checkpoint(spoilt("ct-int4-group", config={"ignore": kept}))
    notes = found.quantisation.notes  # type: ignore[union-attr]
    assert [note.hint for note in notes] == [False, True]
    assert notes[0].text.startswith("backbone.layers.0.mixer.in_porj in the list")
    assert notes[1].text.startswith("re:.*\\\\.gate$ in the list"), notes[1].text
    told = " ".join(note.text for note in notes)
    assert "lm_head" not in told
    assert "(a+)+" not in told, "an expression that could take for ever was tried"
    recognise(found)


def test_a_tied_head_may_stand_on_the_list(quantised):
    found = open_checkpoint(quantised("bnb-nf4", "mamba")[0])
    assert "lm_head.weight" not in found.tensors
    assert "lm_head" in found.quantisation.kept  # type: ignore[union-attr]
    assert found.quantisation.notes == ()  # type: ignore[union-attr]


def test_a_list_that_names_what_is_quantised_is_told(spoilt):
    kept = ["re:.*in_proj"]
    found = open_checkpoint(spoilt("ct-int4-group", config={"ignore": kept}))
    note, *_ = found.quantisation.notes  # type: ignore[union-attr]
    assert "were to be left alone, and are stored as codes" in note.text


def test_a_plain_matrix_on_no_list_is_told(quantised):
    chosen = lambda name: "in_proj" in name
    for recipe, told in (("ct-int4-group", True), ("modelopt-fp8", True), ("awq", 0)):
        folder, _ = quantised(recipe, chosen=chosen)
        notes = open_checkpoint(folder).quantisation.notes  # type: ignore[union-attr]
        assert [note.hint for note in notes] == [True] * told
        for note in notes:
            assert "out_proj" in note.text
            assert "embed" not in note.text
            assert "lm_head" not in note.text


@pytest.mark.parametrize(
    ("recipe", "hint", "words"),
    [
        ("modelopt-fp8", True, "rounds them once"),
        ("ct-nvfp4", False, "off by the ratio"),
    ],
)
def test_scales_that_vllm_joins_are_told(quantised, recipe, hint, words):
    folder, _ = quantised(recipe, "nemotron_h")
    notes = open_checkpoint(folder).quantisation.notes  # type: ignore[union-attr]
    (note,) = [note for note in notes if "vLLM joins" in note.text]
    assert "mixer.(q_proj|k_proj|v_proj)" in note.text
    assert words in note.text
    assert note.hint is hint


def test_claims_take_no_memory(refused, spoilt, peak_memory):
    """A matrix of 2^48 numbers in a file of a few hundred kilobytes."""
    big = spoilt("bnb-nf4", put(STATE, as_json(shape=[2**24, 2**24])))
    with peak_memory(20 * 2**20):
        refused(big, CorruptCheckpointError, "quant_state")
