"""What configurations ask of activations, by module, and the scales that are stored."""

import dataclasses

import numpy as np
import pytest

import lyapunov
from lyapunov._errors import CorruptCheckpointError, UnsupportedCheckpointError
from lyapunov.checkpoints.quantised._recognise import Quantisation
from lyapunov.implementations._configured_activations import configured_activations
from oracles.checkpoints.quantised_models import RECIPES

from ...helpers import not_none


IN, OUT = (f"backbone.layers.0.mixer.{name}_proj" for name in ("in", "out"))
NEXT = "backbone.layers.1.mixer.in_proj"
TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
WHOLE = {"num_bits": 8, "type": "float", "strategy": "tensor"}


def told(folder) -> Quantisation:
    return not_none(lyapunov.load(folder).layout.checkpoint.quantisation)


def formats(folder) -> dict[str, str | None]:
    return {module: one.format for module, one in told(folder).asked.items()}


ASKED = {
    "ct-fp8-tensor": "fp8_e4m3-token",
    "ct-fp8-channel": "fp8_e4m3-token",
    "ct-int8": "int8-token",
    "ct-fp8-static": "fp8_e4m3-static=",
    "ct-nvfp4-both": "nvfp4=",
    "fp8-blocks": "fp8_e4m3-group128",
    "modelopt-fp8": "fp8_e4m3-static=",
    "modelopt-fp8-blocks": "fp8_e4m3-group128",
    "modelopt-fp8-channel": "fp8_e4m3-token",
    "modelopt-nvfp4": "nvfp4=",
    "bnb-int8": None,
}
"""Of each layout; layouts that are not named quantise weights alone."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_layout_asks_the_same_of_all_its_matrices(quantised, recipe):
    found = formats(quantised(recipe)[0])
    if recipe not in ASKED:
        assert not found
    else:
        assert set(found.values()) == {ASKED[recipe]}
        assert set(found) == {
            f"backbone.layers.{i}.mixer.{name}_proj"
            for i in (0, 1)
            for name in ("in", "out")
        }


def group(activations, *targets):
    weights = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
    return {
        "targets": list(targets),
        "weights": weights,
        "input_activations": activations,
    }


GROUPS = {
    # a name is stronger than a class, whichever group comes first
    "by-name": (
        {"a": group(TOKEN, "Linear"), "b": group(None, IN)},
        [None, "fp8_e4m3-token", "fp8_e4m3-token"],
    ),
    "by-expression": (
        {"a": group(TOKEN, "re:.*layers\\.1.*"), "b": group(None, "Linear")},
        [None, None, "fp8_e4m3-token"],
    ),
    "first-of-two": (
        {"a": group(TOKEN, "Linear"), "b": group(None, "Linear")},
        ["fp8_e4m3-token"] * 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_for_whom_they_name(spoilt, name):
    groups, wanted = GROUPS[name]
    found = formats(spoilt("ct-fp8-tensor", config={"config_groups": groups}))
    assert [found.get(module) for module in (IN, OUT, NEXT)] == wanted


def test_a_module_that_no_group_names_is_not_guessed(spoilt):
    """Assert it where groups differ; one scheme for all needs no names."""
    groups = {"a": group(TOKEN, "re:.*in_proj"), "b": group(None, "Embedding")}
    found = told(spoilt("ct-fp8-tensor", config={"config_groups": groups})).asked
    assert found[IN].format == "fp8_e4m3-token"
    assert found[OUT].format is None
    assert "none names this module" in found[OUT].words


def test_many_expressions_are_not_tried_for_ever(spoilt):
    """Assert that expressions that take long, or that are many, name nobody."""
    slow = ["re:(a+)+$", "re:.*a.*a.*a.*a.*b", "re:" + "a" * 1000]
    many = [f"re:never{i}" for i in range(100_000)] + ["re:.*out_proj"]
    groups = {"a": group(TOKEN, *slow, *many), "b": group(None, "Linear")}
    assert not formats(spoilt("ct-fp8-tensor", config={"config_groups": groups}))


def test_who_is_to_be_left_alone_is_asked_nothing(spoilt):
    config = {"ignore": ["lm_head", OUT, "re:.*layers\\.1.*"]}
    assert set(formats(spoilt("ct-fp8-tensor", config=config))) == {IN}


def test_each_layer_of_a_mixed_one_has_its_own(spoilt):
    """Assert it of ModelOpt's list, and that a layer on no list is not guessed."""
    layers = {IN: {"quant_algo": "FP8"}, OUT: {"quant_algo": "FP8_PB_WO"}}
    mixed = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    folder = spoilt("modelopt-fp8", config=None, beside={"quantization": mixed})
    found = formats(folder)
    assert found[IN] == "fp8_e4m3-static="
    assert found[OUT] == "fp8_e4m3-group128"
    assert found[NEXT] is None


UNDECLARED = [
    {**TOKEN, "type": "int", "num_bits": 4},
    {**TOKEN, "type": "int", "symmetric": False},
    {**TOKEN, "strategy": "group", "group_size": 64},
    {**TOKEN, "strategy": "tensor"},
    {**WHOLE, "type": "int"},
]


@pytest.mark.parametrize("settings", UNDECLARED)
def test_what_is_not_declared_has_words_and_no_format(spoilt, settings):
    groups = {"a": group(settings, "Linear")}
    found = told(spoilt("ct-fp8-tensor", config={"config_groups": groups}))
    assert {one.format for one in found.asked.values()} == {None}
    assert found.activations
    assert found.activations == found.asked[IN].words


FP8_SCHEMES = {
    "dynamic": "fp8_e4m3-token",
    "static": "fp8_e4m3-static=",
}


@pytest.mark.parametrize("scheme", FP8_SCHEMES)
def test_fp8_without_blocks(spoilt, scheme):
    """Assert what vLLM's Fp8LinearMethod does: one scale a token, or the stored one."""

    def stored(tensors):
        for name in [n for n in tensors if n.endswith(".weight_scale_inv")]:
            whole = tensors.pop(name).reshape(-1)[:1].reshape(())
            tensors[name.removesuffix("_inv")] = whole

    config = {"activation_scheme": scheme, "weight_block_size": None}
    folder = spoilt("fp8-blocks", change=stored, config=config)
    assert set(formats(folder).values()) == {FP8_SCHEMES[scheme]}
    assert ("a token" in not_none(told(folder).activations)) == (scheme == "dynamic")


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"activation_scheme": "static"}, CorruptCheckpointError),
        ({"activation_scheme": "sometimes"}, UnsupportedCheckpointError),
    ],
)
def test_schemes_that_there_are_not_are_refused(spoilt, config, error):
    with pytest.raises(error, match="activation") as caught:
        lyapunov.load(spoilt("fp8-blocks", config=config))
    assert caught.value.hint


# ---- scales


def scaled(recipe, values, last="input_scale"):
    """From a folder's tensors, with these scales of the first sublayer's `in_proj`."""

    def change(tensors):
        name = f"{IN}.{last}"
        if values is None:
            del tensors[name]
        else:
            tensors[name] = values

    return {"recipe": recipe, "change": change}


BAD = [None, *(np.array([x], np.float32) for x in (0, -0.5, np.nan, np.inf))]
BAD += [np.array([0.1, 0.2], np.float32), np.array([1], np.int8)]


@pytest.mark.parametrize("values", BAD)
@pytest.mark.parametrize(
    ("recipe", "last"),
    [
        ("modelopt-fp8", "input_scale"),
        ("ct-fp8-static", "input_scale"),
        ("ct-nvfp4-both", "input_global_scale"),
    ],
)
def test_scales_that_are_none_are_refused_where_they_are_followed(
    spoilt, recipe, last, values
):
    """Assert the tensor's name, and that weights alone are still checked."""
    model = lyapunov.load(spoilt(**scaled(recipe, values, last)))
    for _ in range(2):  # an error is not kept as an answer
        with pytest.raises(CorruptCheckpointError, match=f"{IN}.{last}") as caught:
            configured_activations(model.layout)
    assert "--quantise-activations none" in not_none(caught.value.hint)


def test_nvfp4_has_a_scale_and_its_inverse(spoilt):
    """Assert it of the two layouts of one number: vLLM's `modelopt.py` takes
    1 / input_scale where `compressed_tensors_w4a4_nvfp4.py` takes what is stored."""
    value = np.float32(0.003)
    inverse = np.float32(1) / value
    ours = scaled("modelopt-nvfp4", np.array(value))
    theirs = scaled("ct-nvfp4-both", np.array([inverse]), "input_global_scale")
    found = []
    for one in (ours, theirs):
        layout = lyapunov.load(spoilt(**one)).layout
        found.append(configured_activations(layout).reads[0]["in_operand"])
    assert found[0] == found[1]
    assert found[0].format == f"nvfp4={float(inverse)!r}"


def test_scales_that_nobody_asks_for_are_told(quantised, spoilt):
    """Assert it of a static scale beside a scheme that chooses its own, once."""

    def change(tensors):
        tensors[f"{IN}.input_scale"] = np.array([1.0], np.float32)

    notes = told(spoilt("ct-fp8-tensor", change=change)).notes
    (note,) = [one for one in notes if "input_scale" in one.text]
    assert note.hint
    assert not told(quantised("ct-fp8-tensor", name="as-made")[0]).notes


def test_a_quantisation_without_asking_has_no_scales():
    """Assert that an object of another reader (llama.cpp's) asks nothing."""
    plain = Quantisation("gguf", "to 8-bit blocks", False, ())
    assert not plain.asked
    assert dataclasses.replace(plain, asked={}).scales == {}
