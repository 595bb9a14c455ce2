"""The studies' pictures, from the results that are committed and from less."""

import json
from pathlib import Path

import pytest

from analysis import (
    cells,
    closed_loop,
    detection,
    perturbation,
    pictures,
    state_formats,
    tightness,
)


RESULTS = pictures.RESULTS
SIZE = 5000  # bytes that an empty axis does not have


@pytest.mark.parametrize("study", pictures.STUDIES, ids=lambda study: study.__name__)
def test_committed_results_are_drawn(study, tmp_path):
    file = RESULTS / f"{study.__name__}.json"
    path = tmp_path / "one.png"
    study(json.loads(file.read_text()), path)
    assert path.stat().st_size > SIZE
    assert not list(Path(tmp_path).glob("part.*"))


@pytest.mark.parametrize(
    "study",
    [cells, closed_loop, detection, perturbation, state_formats, tightness],
    ids=lambda study: study.__name__,
)
def test_studies_of_a_cpu_are_drawn(study, tmp_path):
    name = study.__name__.rpartition(".")[2]
    content = json.loads((RESULTS / f"{name}.json").read_text())
    part = {"tightness": "rows", "detection": "caught_by_effect_over_bound"}.get(name)
    study.draw(content[part] if part else content, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > SIZE


def test_what_was_not_measured_is_left_out(tmp_path):
    document = json.loads((RESULTS / "kernel_constants.json").read_text())
    first = next(iter(document["functions"]))
    document["functions"][first] = {"error": "no compiler"}
    document["products"][0] = {"program": "cublas", "error": "no time left"}
    pictures.kernel_constants(document, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > SIZE
    pictures.speed({"bounds": {}}, tmp_path / "two.png")
    assert not (tmp_path / "two.png").exists()


def test_the_command_draws_what_is_there(tmp_path, capsys):
    (tmp_path / "faults.json").write_text((RESULTS / "faults.json").read_text())
    pictures.main(["--results", str(tmp_path), "--folder", str(tmp_path)])
    assert capsys.readouterr().out.split() == [str(tmp_path / "faults.png")]
