"""`analysis.decisions`: tokens counted on kernels, added up, and gone on with."""

import json

import pytest

from analysis import decisions


def row(precision="bf16", **counts):
    zero = dict.fromkeys(decisions.COUNTS, 0)
    about = {"case": "mamba1, prefill, 1 x 8", "model": "mamba1", "mode": "prefill"}
    return (
        about | {"precision": precision, "environment": {"jax": "0.0"}} | zero | counts
    )


def test_counts_are_added_up():
    rows = [row(tokens=8, changed=2), row("fp16", tokens=8, predicted_stable=7)]
    page = decisions.page({"command": "x", "failed": {"a": "no GPU"}, "rows": rows})
    assert "| mamba1 | prefill | bf16 | 8 | 2 | 0 | 0 | 0 |" in page
    assert "| all |  |  | 16 | 2 | 0 | 7 | 0 |" in page
    assert "not finished: a: no GPU" in page


def test_a_rehearsal_is_not_committed():
    with pytest.raises(SystemExit):
        decisions.main(["--rehearse", "--commit"])


@pytest.mark.slow
def test_a_rehearsal_counts_and_goes_on(tmp_path, capsys):
    out = tmp_path / "decisions.json"
    call = ["--rehearse", "--out", str(out), "--scratch", str(tmp_path), "--only"]
    decisions.main([*call, "bundled"])
    (found,) = json.loads(out.read_text())["rows"]
    assert found["tokens"] == 48
    assert found["predicted_stable"] > 40
    assert found["predicted_changed"] <= found["changed"]
    capsys.readouterr()
    decisions.main([*call, "bundled"])
    assert json.loads(out.read_text())["rows"] == [found]
