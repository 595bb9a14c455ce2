"""Assert that the JSON report is stable, valid and free of NaN."""

import dataclasses
import json
import math

import jsonschema
import pytest

from lyapunov import _results
from lyapunov._results import LayerExponents
from lyapunov.report import to_json
from lyapunov.report.json import combined, dump, schema

from .example import example_report, layer_exponents


def _strict(text):
    def refuse(name):
        raise AssertionError(f"{name} in the document")

    return json.loads(text, parse_constant=refuse)


def test_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("name", ["held", "troubled"])
def test_reports_meet_the_schema(name, request):
    document = _strict(to_json(request.getfixturevalue(name)))
    jsonschema.validate(document, schema())


def test_keys_come_in_the_order_of_the_schema(held):
    assert list(_strict(to_json(held))) == schema()["required"]


def test_schema_names_no_field_that_the_report_lacks():
    for name, definition in schema()["$defs"].items():
        fields = {f.name for f in dataclasses.fields(getattr(_results, name))}
        assert set(definition["required"]) <= fields


def test_every_definition_is_used_strictly_enough():
    document = json.loads(to_json(example_report(2)))
    document["summary"]["verdict"] = "fine"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema())


def test_non_finite_numbers_become_null_beside_a_flag():
    row = layer_exponents(
        1,
        max=math.inf,
        quantiles=[-math.inf, -1.0],
        decay_is_one={"fp32": math.nan},
    )
    document = _strict(to_json(example_report(layers=[layer_exponents(0), row])))
    jsonschema.validate(document, schema())
    shown = document["exponents"]["layers"][1]
    assert shown["max"] is None
    assert shown["max_flag"] == "inf"
    assert shown["quantiles"] == [None, -1.0]
    assert shown["decay_is_one"] == {"fp32": None, "fp32_flag": "nan"}


def test_a_report_without_recurrences_or_executions_is_valid():
    layers = [LayerExponents(0, "mlp", reason="no recurrence")]
    report = example_report(layers=layers, executions=[])
    jsonschema.validate(_strict(to_json(report)), schema())


def test_several_reports_make_one_document(held):
    failure = {"checkpoint": {"source": "x"}, "error": {"code": "c"}}
    document = _strict(dump(combined([held, failure])))
    assert [set(entry) for entry in document["reports"]][1] == {"checkpoint", "error"}
    jsonschema.validate(document["reports"][0], schema())


def test_a_stray_nan_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump({"x": math.nan})
