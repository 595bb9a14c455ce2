"""Assert that a report comes back from its file whole, and nothing else comes."""

import json
import math
import random
from dataclasses import replace

import pytest

from lyapunov._errors import ReportError
from lyapunov.report import read_report, to_html, to_markdown
from lyapunov.report._read import read_results, showing
from lyapunov.report.json import combined, dump

from .example import (
    example_report,
    layer_divergence,
    layer_exponents,
    output_divergence,
    parameter_change,
    precision_report,
    texts,
)
from .test_sections import example_audit


def broken_numbers():
    row = layer_divergence(
        0,
        "bf16",
        local_l2=math.inf,
        local_by_position=[1.0, math.nan, -math.inf],
        bound_by_position=None,
        accumulated_by_position=None,
        max_abs_stored={"gated": math.inf, "out": 1.0},
    )
    run = replace(
        precision_report("bf16", 1),
        layers=[row],
        output=output_divergence("bf16", kl_mean=math.nan, texts=texts(2)),
    )
    strange = layer_exponents(0, quantiles=[-math.inf, -1.0, 0.0])
    return example_report(
        layers=[strange], executions=[run], changes=[parameter_change(n_layers=1)]
    )


@pytest.fixture(scope="module")
def plain():
    return json.loads(json.dumps(example_report(1, ("bf16",)).to_dict()))


@pytest.mark.parametrize(
    "make", [lambda: example_report(2), example_audit, broken_numbers]
)
def test_what_is_read_is_what_was_written(make, tmp_path):
    report = make()
    report.save(tmp_path / "r.json")
    again = read_report(tmp_path / "r.json")
    assert type(again) is type(report)
    assert again.to_dict() == report.to_dict()
    assert to_markdown(again) == to_markdown(report)


def test_a_troubled_report_too(troubled, tmp_path):
    (tmp_path / "r.json").write_text(dump(troubled.to_dict()))
    assert read_report(tmp_path / "r.json").to_dict() == troubled.to_dict()


def test_several_and_failures_come_back(tmp_path):
    error = {"code": "checkpoint", "message": "no such file", "hint": "look"}
    failure = {"checkpoint": {"source": "lost"}, "error": error}
    path = tmp_path / "r.json"
    path.write_text(dump(combined([example_report(1), failure])))
    results, version = read_results(path)
    assert version == "0.1.0"
    assert results[1] == failure
    with pytest.raises(ReportError, match="several"):
        read_report(path)


def changed(document, place, value):
    """A copy with one value changed, or with one left out for `...`."""
    copy = json.loads(json.dumps(document))
    *way, last = place
    inner = copy
    for step in way:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return copy


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (["schema_version"], 2, "reads 1"),
        (["schema_version"], ..., "schema_version is None"),
        (["kind"], "plan", "neither a check, an audit nor a ranking"),
        (["kind"], ["audit"], "neither a check, an audit nor a ranking"),
        (["newer"], 1, "a field 'newer'"),
        (["checkpoint", "source"], ..., "checkpoint.source is missing"),
        (["checkpoint", "source"], 3, "checkpoint.source is not of type str"),
        (["checkpoint", "source"], "\x1b[2J", "'\\x1b'"),
        (["checkpoint", "source"], "a\u202eb", "'\\u202e'"),
        (["checkpoint", "source"], "\ud800", "'\\ud800'"),
        (["checkpoint", "n_params"], True, "n_params is not of type int"),
        (["checkpoint", "n_params"], 10**30, "too large"),
        (["exponents", "layers"], {}, "exponents.layers is not of type list"),
        (["exponents", "layers", 0], 7, "exponents.layers[0] is not of type dict"),
        (["exponents", "max"], "1", "exponents.max is not of type float"),
        (["exponents", "max_flag"], "huge", "none of nan, inf, -inf"),
        (["summary", "flags"], [1], "summary.flags[0] is not of type dict"),
        (["findings"], None, "findings is not of type list"),
        (["settings"], {"a": math.inf}, "not finite"),
    ],
)
def test_what_is_no_report_is_refused_in_words(plain, tmp_path, place, value, says):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(changed(plain, place, value)))
    with pytest.raises(ReportError) as caught:
        read_report(path)
    assert says in caught.value.message
    assert caught.value.hint


OTHERS = ["", "[]", "{}", "3", "null", "NaN", "\xff", "1" * 5000, "[" * 10**5]
OTHERS += ['{"reports": []}', '{"reports": 3}', '{"error": {}}']
OTHERS += ['{"error": 1, "checkpoint": {"source": "x"}}', '{"a":' * 40 + "1" + "}" * 40]


@pytest.mark.parametrize("text", OTHERS)
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ReportError) as caught:
        read_report(path)
    assert str(path) in caught.value.message


def test_a_file_that_is_too_large_or_missing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lyapunov.findings._baseline_file.LARGEST_FILE", 10)
    path = tmp_path / "r.json"
    with pytest.raises(ReportError, match="no report at"):
        read_report(path)
    path.write_text('{"schema_version": 1}')
    with pytest.raises(ReportError, match="too many"):
        read_report(path)
    with pytest.raises(ReportError, match="no report at"):
        read_report(tmp_path)


def test_whatever_is_changed_is_read_or_refused(plain, tmp_path):
    """Assert it of 300 places with what JSON can hold: no other error comes."""
    drawn, path, refused = random.Random(0), tmp_path / "r.json", 0
    values = [None, True, -1, 1e300, "x", [], {}, [None], {"a": 1}, ...]
    for _ in range(300):
        place, inner = [], plain
        while isinstance(inner, dict | list) and inner and drawn.random() < 0.9:
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            place.append(drawn.choice(list(keys)))
            inner = inner[place[-1]]
        if not place:
            continue
        path.write_text(json.dumps(changed(plain, place, drawn.choice(values))))
        try:
            read_report(path)
        except ReportError:
            refused += 1
    assert 50 < refused < 300


def test_what_cannot_be_drawn_is_refused_in_words(plain, tmp_path):
    path = tmp_path / "r.json"
    place = ["exponents", "layers", 0, "decay_histogram"]
    path.write_text(json.dumps(changed(plain, place, {"share": [1.0]})))
    report = read_report(path)
    with pytest.raises(ReportError, match="cannot be shown"), showing(path):
        to_html(report)
