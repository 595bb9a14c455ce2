"""A check of each layout: bounds hold, the table is shown, what is left out is said."""

import json

import jsonschema
import ml_dtypes
import numpy as np
import pytest

import lyapunov
from lyapunov.implementations import executions_for
from lyapunov.report.json import schema
from oracles.checkpoints.quantised_models import RECIPES


TOKENS = np.arange(24) % 64
# one of each layout that computes otherwise, and each configuration's file
LAYOUTS = (
    *("ct-fp8-channel", "ct-int8-asymmetric", "ct-int4-group-order", "ct-nvfp4"),
    *("fp8-blocks", "modelopt-fp8", "modelopt-nvfp4", "gptq-int4-order", "awq"),
    *("bnb-nf4-double", "bnb-int8", "torchao-int8"),
)


@pytest.mark.parametrize("recipe", LAYOUTS)
def test_a_check_of_each_layout(quantised, recipe):
    folder, meant = quantised(recipe)
    report = lyapunov.check(
        folder, TOKENS, precisions=["bf16"], probes=0, readouts=0, ball=False
    )
    assert report.summary.checked == 2
    assert report.precisions[0].count("violations") == 0
    assert not [f for f in report.findings if f.code == "LYA024"]
    told = report.checkpoint.quantisation
    assert told is not None
    assert told.method == RECIPES[recipe].config.get("quant_method", "modelopt")
    size = sum(array.size for array in meant.values())
    share = size / report.checkpoint.n_params
    np.testing.assert_allclose(told.quantised_share, share, rtol=1e-12)
    rows = {(row.kind, row.matrix): row for row in told.matrices}
    assert rows["mamba2", "in_proj"].format == RECIPES[recipe].element
    assert rows["mamba2", "in_proj"].sublayers == 2
    assert rows["mamba2", "in_proj"].parameters == 2 * 552 * 128
    assert rows["mamba2", "conv_weight"].format == "bf16"
    assert rows["outside", "head"].scales is None
    assert sum(row.share for row in told.matrices) == pytest.approx(1, abs=1e-12)
    assert (told.activations is None) != any(
        "the configuration has activations quantised" in line
        for line in report.assumptions
    )
    assert any("code times scale" in line for line in report.assumptions)


def test_every_form_shows_the_table(quantised, tmp_path):
    folder, _ = quantised("modelopt-fp8")
    report = lyapunov.check(folder, TOKENS, precisions=["bf16"], effort="quick")
    document = json.loads(json.dumps(report.to_dict()))
    jsonschema.validate(document, schema())
    assert document["checkpoint"]["quantisation"]["method"] == "modelopt"
    text = str(report)
    for suffix in ("md", "html", "json"):
        report.save(tmp_path / f"report.{suffix}")
    written = [(tmp_path / f"report.{s}").read_text("utf-8") for s in ("md", "html")]
    for shown in (text, *written):
        assert "Stored weights" in shown
        assert "one scale a tensor" in shown
        assert "here as configured" in shown
    for shown in written:
        assert "executions follow it module by module" in shown
    from lyapunov.report._read import read_report

    again = read_report(tmp_path / "report.json")
    assert again.checkpoint == report.checkpoint


def test_plain_checkpoints_have_no_table(plain):
    report = lyapunov.check(plain(), TOKENS, precisions=["bf16"], effort="quick")
    assert report.checkpoint.quantisation is None
    assert "Stored weights" not in str(report)
    assert not any("codes" in line for line in report.assumptions)


def test_an_execution_rounds_each_weight_once(quantised):
    """Dequantise to bf16, then multiply: bf16(code * scale); in fp64 nothing moves."""
    folder, meant = quantised("ct-fp8-tensor")
    model = lyapunov.load(folder)
    name = "backbone.layers.0.mixer.in_proj.weight"
    raw = model.raw_parameters(0)["in_proj"]
    np.testing.assert_array_equal(raw, meant[name])
    kinds = {"architecture": "mamba2", "mode": "prefill", "measure": "emulated"}
    for precision, dtype in (("bf16", ml_dtypes.bfloat16), ("fp16", np.float16)):
        (execution,) = executions_for(model.config, [precision], **kinds)
        held = np.asarray(model.parameters(0, execution).in_proj.matrix)
        # a product of 4 and 24 bits takes more than fp32 has: once, and not twice
        np.testing.assert_array_equal(held[:16], rounded_once(meant[name][:16], dtype))
        assert not model.held_exactly(0, execution)
    exact = np.asarray(model.parameters(0).in_proj.matrix)
    np.testing.assert_array_equal(exact, meant[name])


def rounded_once(values, dtype):
    """To nearest of a 16-bit format, ties to even, by exact fractions."""
    from fractions import Fraction

    down = values.astype(np.float32).astype(dtype)
    found = []
    for value, near in zip(values.reshape(-1), down.reshape(-1), strict=True):
        ends = (np.nextafter(near, dtype(end)) for end in (-np.inf, np.inf))
        distance = lambda x, value=value: abs(Fraction(x) - Fraction(value))
        found.append(min(map(float, (near, *ends)), key=distance))
    return np.reshape(found, values.shape)
