"""Published against ours: verdicts follow from paper.toml and nothing else."""

import json

import pytest

from experiments import compare
from experiments.results import Results, figure


PAPER = compare.read()


def row(**changes):
    given = dict(
        key="a.b", paper="one", claim="a claim", unit="%", where="abstract",
        sure="certain", source="one.json", command="python -m one", hold="interval",
        value=10.0,
    )  # fmt: skip
    given |= changes
    return {k: v for k, v in given.items() if v is not None}


def ours(value, low, high, unit="%"):
    return {**figure(value, unit, 5, low, high), "file": "one.json"}


def test_every_published_figure_is_named_and_sure():
    keys = [one["key"] for one in PAPER["row"]]
    assert len(keys) == len(set(keys))
    for one in PAPER["row"]:
        assert one["sure"] in compare.SURE
        assert '"' not in one["claim"]  # no wording is a quotation


@pytest.mark.parametrize(
    ("given", "found", "verdict"),
    [
        (row(), ours(9.0, 8.0, 10.0), "agrees"),
        (row(), ours(9.0, 8.0, 9.99), "disagrees"),
        (row(), ours(9.0, None, None), "no interval"),
        (row(), None, "not run"),
        (row(), ours(None, None, None), "not run"),
        (row(hold="hub"), None, "needs the Hub"),
        (row(hold="hub"), ours(9.0, 8.0, 10.0), "agrees"),
        (row(hold="above", than=0.0, value=None), ours(2.0, 1.0, 3.0), "agrees"),
        (row(hold="above", than=0.0, value=None), ours(2.0, -1.0, 3.0),
         "not told apart"),
        (row(hold="above", than=0.0, value=None), ours(0.0, 0.0, 0.0),
         "not told apart"),
        (row(hold="above", than=0.0, value=None), ours(-2.0, -3.0, -1.0), "disagrees"),
        (row(hold="below", than=0.0, value=None), ours(-2.0, -3.0, 0.0), "agrees"),
        (row(hold="below", than=0.0, value=None), ours(-2.0, -3.0, 0.1),
         "not told apart"),
        (row(hold="below", than=0.0, value=None), ours(2.0, 1.0, 3.0), "disagrees"),
    ],
)  # fmt: skip
def test_verdicts(given, found, verdict):
    assert compare.judge(given, found)["verdict"] == verdict


def test_other_units_are_refused():
    with pytest.raises(SystemExit, match="published in '%'"):
        compare.judge(row(), ours(9.0, 8.0, 10.0, "times"))


def test_a_figure_of_two_experiments_is_refused(tmp_path):
    for name in ("one", "two"):
        Results(tmp_path / f"{name}.json").put(figures={"a.b": figure(1.0, "%", 1)})
    with pytest.raises(SystemExit, match=r"one\.json and in two\.json"):
        compare.collect(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sure": "surely"}, "is sure 'surely'"),
        ({"hold": "near"}, "holds 'near'"),
        ({"hold": "above"}, "has no than"),
        ({"value": None}, "has no value"),
        ({"where": None}, "has no where"),
        ({"tolerance": 3.0}, "has tolerance"),
    ],
)
def test_rows_that_say_too_little_are_refused(changes, says):
    assert says in compare._problem(row(**changes), {"one": {}})


def test_models_are_told_as_they_were_trained(tmp_path):
    names = [one["model"] for one in compare.trained()]
    assert {"mamba1", "mamba2", "mamba3", "gpt_neox"} <= set(names)
    assert all(1 < one["bits_per_byte"] < 2 for one in compare.trained())
    assert compare.trained(tmp_path) == []


def test_command_writes_every_row(tmp_path, capsys):
    Results(tmp_path / "finetune.json").put(
        figures={
            "finetune.fp16.mamba": figure(
                0.2, "percentage points", 5, 0.05, 0.4, "smaller"
            ),
            "another": figure(1.0, "%", 2),
        }
    )
    call = ["--results", str(tmp_path), "--out", str(tmp_path / "compare.json")]
    compare.main(call)
    shown = capsys.readouterr().out
    text = (tmp_path / "compare.md").read_text()
    for one in PAPER["row"]:
        assert one["key"] in shown
        assert one["claim"] in text
    assert "agrees" in shown
    assert "another" in text
    assert "smaller" in text
    for model in compare.trained():
        assert f"| {model['model']} | {model['parameters']:,} |" in text
        assert f"{model['model']} {model['bits_per_byte']:.3f}" in shown
    assert (tmp_path / "compare.png").stat().st_size > 1000
    rows = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert len(rows) == len(PAPER["row"])
    compare.main(
        ["--results", str(tmp_path), "--out", str(tmp_path / "compare.json")]
    )  # its own file is not a result
