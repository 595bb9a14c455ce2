"""Result files: whole, resumed, nothing counted twice."""

import json
import multiprocessing

import pytest

from experiments.results import Results, figure, machines
from studies.files import CURVE, as_json, finite
from studies.problems import demand


WHERE = {"device": "CPU"}


def _many(path, which):
    results = Results(path)
    for i in range(20):
        results.add({"seed": i, "method": which}, {"loss": float(i)}, 0.1, WHERE)


def test_row_of_same_settings_takes_its_place(tmp_path):
    results = Results(tmp_path / "one.json", "python -m experiments.one")
    results.add({"seed": 1, "rate": 0.1}, {"loss": 2.0}, 1.0, WHERE)
    results.add({"rate": 0.1, "seed": 1}, {"loss": 3.0}, 1.0, WHERE)
    assert [row["values"] for row in results.rows()] == [{"loss": 3.0}]
    assert results.has({"seed": 1, "rate": 0.1})
    assert not results.has({"seed": 1})
    assert results.rows(seed=1)
    assert not results.rows(seed=2)


def test_processes_that_add_at_once_lose_nothing(tmp_path):
    path = tmp_path / "one.json"
    # A fork of a process in which JAX runs threads may never end.
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_many, args=(path, name)) for name in ("full", "lora")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(Results(path).rows()) == 40
    assert len(Results(path).read()["environments"]) == 1


def test_what_is_not_finite_is_null(tmp_path):
    results = Results(tmp_path / "one.json")
    results.add({"seed": 1}, {"loss": float("nan")}, 1.0, WHERE)
    results.put(figures={"a": figure(float("inf"), "share", 1)})
    content = json.loads((tmp_path / "one.json").read_text())
    assert content["rows"][0]["values"] == {"loss": None}
    assert content["figures"]["a"]["value"] is None
    assert finite((1, float("-inf"))) == [1, None]


def test_curves_alone_are_shortened(tmp_path):
    """Assert one line a row, 6 digits of 16 numbers in a row, and all of fewer."""
    curve, pair = [(i + 1) / 7 for i in range(CURVE)], [1 / 3, 1e-300 / 3]
    rows = [{"settings": {"seed": i}, "kl": curve, "pair": pair} for i in range(3)]
    text = as_json({"rows": rows, "flips": list(range(10**7, 10**7 + CURVE))})
    read = json.loads(text)
    assert len(text.splitlines()) == len(rows) + 5
    assert read["flips"] == list(range(10**7, 10**7 + CURVE))
    for row in read["rows"]:
        assert row["pair"] == pair
        assert row["kl"] == pytest.approx(curve, rel=0.5e-5)
        assert row["kl"] != curve
    assert as_json(read) == text


def test_damaged_file_is_refused(tmp_path):
    path = tmp_path / "one.json"
    path.write_text("{")
    with pytest.raises(SystemExit, match="damaged"):
        Results(path).rows()


def test_machines_are_named_once_and_only_those_of_the_rows():
    """Assert that commits do not tell machines apart, and that order is kept."""
    content = {
        "environments": [
            {"device": "a card", "cuda": None, "git_commit": "one"},
            {"device": "a card", "cuda": None, "git_commit": "two"},
            {"device": "another", "cuda": "13"},
        ]
    }
    rows = [{"environment": 1}, {"environment": 0}]
    assert machines(content, rows) == ["- device a card"]
    rows.append({"environment": 2})
    assert machines(content, rows) == ["- device a card", "- device another, cuda 13"]


def test_what_is_not_installed_is_said():
    demand("json", "numpy")
    with pytest.raises(SystemExit, match="not installed: torsh, pefd\nhint: make test"):
        demand("json", "torsh", "pefd")
