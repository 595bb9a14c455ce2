"""Known defects: the cases that are looked for, as far as a CPU shows them."""

import json

import numpy as np
import pytest

from analysis import known_defects
from analysis._cross_cases import TRAINED
from lyapunov import load


def test_bias_is_lowered_and_nothing_else(tmp_path):
    make = known_defects._lowered(6.0)
    changed, trained = (load(str(p)) for p in (make(tmp_path), TRAINED["mamba2"]))
    for name, value in trained.raw_parameters(1).items():
        own = changed.raw_parameters(1)[name]
        by = 6.0 if name == "dt_bias" else 0.0
        np.testing.assert_array_equal(own, value - np.float32(by))


def test_limits_are_in_the_settings(tmp_path):
    high = known_defects.median_dt()
    folder = known_defects._limited(high)(tmp_path)
    assert load(str(folder)).config.sublayers[0].dt_limit == (0.0, high)


def test_cases_are_there_by_name():
    kinds = ["softplus", "limits", "state", "heads"]
    each = [[case[0] for case in known_defects.cases(0.1, [kind])] for kind in kinds]
    assert [len(names) for names in each] == [5, 2, 6, 4]
    assert len({name for names in each for name in names}) == 17


def test_what_cannot_run_is_written_down(tmp_path):
    """Mamba-3 is made by mamba_ssm, which is not there without a GPU."""
    out = tmp_path / "known.json"
    known_defects.main(["--only", "heads", "--results", str(out), "--measure",
                        "emulated", "--tokens", "64"])  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 4
    assert all("refused" in row for row in rows)
    assert out.with_suffix(".md").read_text().count("refused") == 4


@pytest.mark.slow
def test_limits_are_said_to_be_ignored(tmp_path):
    out = tmp_path / "known.json"
    known_defects.main(["--only", "limits", "--results", str(out), "--measure",
                        "emulated", "--tokens", "64"])  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    assert all(row["violations"] == 0 for row in rows)
    assert any("LYA011" in told for row in rows for told in row["findings"])
