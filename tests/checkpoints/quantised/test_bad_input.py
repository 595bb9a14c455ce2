"""Quantised files that are not what they say: one clear line each, before any harm."""

import json
import re

import ml_dtypes
import numpy as np
import pytest

from lyapunov._errors import CorruptCheckpointError, UnsupportedCheckpointError
from lyapunov.checkpoints import open_checkpoint, recognise
from oracles.checkpoints.quantised_models import stored_arrays, write_safetensors


P = "backbone.layers.0.mixer.in_proj"
E4M3 = ml_dtypes.float8_e4m3fn


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


def put(name, value):
    """A change that puts a value in the place of a tensor."""

    def change(tensors):
        tensors[name] = value(tensors[name].copy())

    return change


def at(index, value):
    def changed(array):
        array.reshape(-1)[index] = value
        return array

    return changed


def without(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


def renamed(old, new):
    def change(tensors):
        for name in list(tensors):
            if old in name:
                tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def nan_code(array):
    array.view(np.uint8).reshape(-1)[3] = 0x7F
    return array


def as_json(**entries):
    """A change of the bytes that say what bitsandbytes stored."""

    def changed(array):
        told = json.loads(array.tobytes()) | entries
        return np.frombuffer(json.dumps(told).encode(), np.uint8)

    return changed


def as_bytes(old, new):
    return lambda array: np.frombuffer(re.sub(old, new, array.tobytes()), np.uint8)


STATE = f"{P}.weight.quant_state.bitsandbytes__nf4"
TENSORS = {
    "a scale of 0": (
        "ct-fp8-channel",
        put(f"{P}.weight_scale", at(5, 0)),
        "1 scales of 0, of 552",
    ),
    "a scale that is NaN": (
        "ct-int8",
        put(f"{P}.weight_scale", at(5, np.nan)),
        "1 scales that are NaN or infinite",
    ),
    "NaN among blocks of NVFP4": (
        "modelopt-nvfp4",
        put(f"{P}.weight_scale", nan_code),
        "1 scales that are NaN",
    ),
    "NaN among powers of two": (
        "ct-mxfp4",
        put(f"{P}.weight_scale", at(3, 255)),
        "1 scales that are NaN",
    ),
    "a code that is NaN": (
        "fp8-blocks",
        put(f"{P}.weight", nan_code),
        "1 codes of float8_e4m3fn that are no number",
    ),
    "no scale": ("ct-fp8-channel", without(f"{P}.weight_scale"), "without scales"),
    "no zero points": ("gptq-int4", without(f"{P}.qzeros"), "no tensor"),
    "scales of another matrix": (
        "ct-fp8-channel",
        put(f"{P}.weight_scale", lambda a: a[:-1]),
        "(551, 1) beside a matrix of (552, 128)",
    ),
    "blocks of another size": (
        "fp8-blocks",
        put(f"{P}.weight_scale_inv", lambda a: a[:-1]),
        "it should be (5, 1) for blocks of 128 x 128",
    ),
    "groups that do not divide": (
        "ct-int4-group",
        put(f"{P}.weight_scale", lambda a: np.concatenate([a, a[:, :1]], 1)),
        "the groups divide 128 columns",
    ),
    "groups of another size than told": (
        "ct-int4-group",
        put(f"{P}.weight_scale", lambda a: a[:, :2]),
        "groups of 64; config.json has int4, groups of 32",
    ),
    "weight_shape of other rows": (
        "ct-int4-group",
        put(f"{P}.weight_shape", at(0, 2**40)),
        "the codes beside it are",
    ),
    "weight_shape of other columns": (
        "ct-int4-group",
        put(f"{P}.weight_shape", at(1, 129)),
        "words a row for 129 codes",
    ),
    "weight_shape below 0": (
        "ct-int4-group",
        put(f"{P}.weight_shape", at(1, -128)),
        "the codes beside it are",
    ),
    "weight_shape of three": (
        "ct-int4-group",
        put(f"{P}.weight_shape", lambda a: np.append(a, 1)),
        "a matrix has 2 sizes",
    ),
    "zero points of other rows": (
        "ct-int4-group-asymmetric",
        put(f"{P}.weight_zero_point", lambda a: a[:-1]),
        "it should be (69, 4)",
    ),
    "g_idx beyond the groups": (
        "gptq-int4-order",
        put(f"{P}.g_idx", at(7, 8)),
        "names group 8 of 8",
    ),
    "g_idx below 0": (
        "gptq-int4-order",
        put(f"{P}.g_idx", at(7, -1)),
        "names group -1 of 8",
    ),
    "g_idx of compressed-tensors": (
        "ct-int4-group-order",
        put(f"{P}.weight_g_idx", at(7, 99)),
        "names group 99 of 8",
    ),
    "g_idx of fewer inputs": (
        "gptq-int4",
        put(f"{P}.g_idx", lambda a: a[:-8]),
        "codes of 4 bits take",
    ),
    "qzeros of other groups": (
        "gptq-int4",
        put(f"{P}.qzeros", lambda a: a[:-1]),
        "codes of 4 bits take",
    ),
    "AWQ's zero points of other groups": (
        "awq",
        put(f"{P}.qzeros", lambda a: a[:-1]),
        "do not fit",
    ),
    "NVFP4 by the other convention (divided)": (
        "ct-nvfp4",
        put(f"{P}.weight_global_scale", lambda a: 1 / a),
        "In the other convention (its reciprocal)",
    ),
    "NVFP4 by the other convention (multiplied)": (
        "modelopt-nvfp4",
        put(f"{P}.weight_scale_2", lambda a: 1 / a),
        "In the other convention (its reciprocal)",
    ),
    "NVFP4 under a scale of 0": (
        "ct-nvfp4",
        put(f"{P}.weight_global_scale", lambda a: 0 * a),
        "scales of 0",
    ),
    "NVFP4 under several scales": (
        "ct-nvfp4",
        put(f"{P}.weight_global_scale", lambda a: np.append(a, a)),
        "a matrix has one such scale",
    ),
    "an absmax too few": (
        "bnb-nf4",
        put(f"{P}.weight.absmax", lambda a: a[:-1]),
        "1103 scales for 1104 blocks",
    ),
    "scales of scales too few": (
        "bnb-nf4-double",
        put(f"{P}.weight.nested_absmax", lambda a: a[:-1]),
        "do not fit 1104 scales in blocks of 256",
    ),
    "a shape that the bytes do not hold": (
        "bnb-nf4",
        put(STATE, as_json(shape=[2**24, 2**24])),
        "quant_state says a shape of",
    ),
    "a shape with a negative side": (
        "bnb-nf4",
        put(STATE, as_json(shape=[-552, -128])),
        "axis of length -552",
    ),
    "a shape that is no list": (
        "bnb-nf4",
        put(STATE, as_json(shape="552x128")),
        "no plausible shape",
    ),
    "blocks of 0": ("bnb-nf4", put(STATE, as_json(blocksize=0)), "blocksize of 0"),
    "blocks of half": (
        "bnb-nf4",
        put(STATE, as_json(blocksize=0.5)),
        "blocksize is 0.5",
    ),
    "an offset that is no number": (
        "bnb-nf4-double",
        put(STATE, as_json(nested_offset="1e400")),
        "nested_offset of 1e400",
    ),
    "an offset beyond every number": (
        "bnb-nf4-double",
        put(STATE, as_bytes(rb'("nested_offset": )[^,}]+', rb"\g<1>1e999")),
        "nested_offset of inf",
    ),
    "an offset of more digits than a number has": (
        "bnb-nf4-double",
        put(STATE, as_bytes(rb'("nested_offset": )[^,}]+', rb"\g<1>" + b"9" * 400)),
        "nested_offset of 999",
    ),
    "a state that is no JSON": (
        "bnb-nf4",
        put(STATE, lambda a: a[:-1]),
        "is not valid JSON",
    ),
    "a state too long": (
        "bnb-nf4",
        put(STATE, lambda a: np.full(2**17, 32, np.uint8)),
        "at most 65536 are plausible",
    ),
    "nf4 by the name of fp4": (
        "bnb-nf4",
        renamed("bitsandbytes__nf4", "bitsandbytes__fp4"),
        "quant_type",
    ),
    "a table of another type": (
        "bnb-nf4",
        put(f"{P}.weight.quant_map", at(3, 0.5)),
        "is not the table of nf4",
    ),
    "SCB of other rows": (
        "bnb-int8",
        put(f"{P}.SCB", lambda a: a[:-1]),
        "(551,) beside 552 rows",
    ),
    "codes of another type": (
        "ct-int8",
        put(f"{P}.weight", lambda a: a.astype(np.int32)),
        "is stored as int32",
    ),
    "weights plain and as codes": (
        "gptq-int4",
        lambda t: t.__setitem__(f"{P}.weight", np.zeros((552, 128), np.float32)),
        "is stored twice",
    ),
    "scales beside plain weights": (
        "ct-fp8-channel",
        put(f"{P}.weight", lambda a: a.astype(np.float32)),
        "prepared and never compressed",
    ),
    "GPTQ's names, AWQ's codes": (
        "gptq-int4",
        put(f"{P}.qweight", lambda a: np.zeros((128, 69), np.int32)),
        "as AWQ stores them",
    ),
    "AWQ's names, GPTQ's codes": (
        "awq",
        put(f"{P}.qweight", lambda a: np.zeros((16, 552), np.int32)),
        "as GPTQ stores them",
    ),
    "AWQ's codes with g_idx": (
        "awq",
        lambda t: t.__setitem__(f"{P}.g_idx", np.zeros(128, np.int32)),
        "as GPTQ stores them",
    ),
    "a stray scale": (
        "ct-fp8-channel",
        lambda t: t.__setitem__("lm_head.weight_scale_inv", np.ones(1, np.float32)),
        "belong to no matrix",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(refused, spoilt, case):
    recipe, change, words = TENSORS[case]
    folder = spoilt(recipe, change)
    refused(folder, CorruptCheckpointError, words, read=True)


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
