"""Assert that the JSON report is stable, valid and free of NaN."""

import dataclasses
import json
import math

import jsonschema
import pytest

from lyapunov.report import to_json
from lyapunov.report.json import combined, dump, schema
from lyapunov.results import _check as _results
from lyapunov.results._check import LayerExponents

from .example import delta_exponents, example_report, layer_exponents


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
    assert list(_strict(to_json(held))) == list(schema()["properties"])


def test_schema_describes_every_field_in_order():
    described = {"Report": schema(), **schema()["$defs"]}
    for name, definition in described.items():
        fields = [f.name for f in dataclasses.fields(getattr(_results, name))]
        if name == "Report":
            fields.insert(0, fields.pop(fields.index("schema_version")))
        assert list(definition["properties"]) == fields
        assert set(definition["required"]) <= set(fields)


def test_a_report_of_an_earlier_version_is_still_valid():
    """Fields that came later are not required: CI keeps its old baselines."""
    document = json.loads(to_json(example_report(2)))
    later = {
        "reference",
        "parameter_changes",
        "flags",
        "benchmark_note",
        "texts",
        "decisions",
        "function",
    }
    later |= {"elements_bounded", "elements_unbounded", "unbounded", "bounded_share"}
    later |= {"reference_ties", "constant_tokens", "reference_non_finite"}

    def without(value):
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k not in later}
        return [without(v) for v in value] if isinstance(value, list) else value

    jsonschema.validate(without(document), schema())


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


def test_heads_are_valid_and_infinite_sums_are_null():
    row = delta_exponents(0)
    assert row.heads is not None
    lost = dataclasses.replace(
        row.heads, sum=[-math.inf, -2.4], memory_tokens=[1.0, math.inf]
    )
    report = example_report(layers=[dataclasses.replace(row, heads=lost)])
    document = _strict(to_json(report))
    jsonschema.validate(document, schema())
    shown = document["exponents"]["layers"][0]["heads"]
    assert shown["sum"] == [None, -2.4]
    assert shown["memory_tokens"] == [1.0, None]
    assert shown["upper"] == [-0.01, -0.2]


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
