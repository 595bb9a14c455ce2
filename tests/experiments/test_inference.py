"""Answers in half precision against those in fp32."""

import numpy as np
import pytest

from experiments import inference
from experiments.results import Results

from .finetuned import checkpoint


def said(right, logits):
    found = inference.Said()
    for i, one in enumerate(right):
        found.add("recall", i, bool(one), (int(one),), logits[i : i + 1])
    return found


def test_metric_against_one_counted_by_hand():
    rng = np.random.default_rng(0)
    theirs = rng.normal(size=(10, 8)).astype(np.float32)
    mine = theirs + rng.normal(size=(10, 8)).astype(np.float32) / 100
    found = inference.between(said([1] * 8 + [0] * 2, mine), said([1] * 10, theirs))
    assert found["divergence"]["value"] == pytest.approx(20.0)
    assert found["flips"]["value"] == pytest.approx(20.0)
    p = np.exp(theirs) / np.exp(theirs).sum(-1, keepdims=True)
    q = np.exp(mine) / np.exp(mine).sum(-1, keepdims=True)
    kl = (p * np.log(p / q)).sum(-1).mean()
    assert found["kl"]["value"] == pytest.approx(kl, rel=1e-3)
    distance = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
    assert found["rel_l2"]["value"] == pytest.approx(distance, rel=1e-6)
    assert found["divergence"]["low"] <= 20.0 <= found["divergence"]["high"]


def test_equal_answers_do_not_differ():
    logits = np.ones((4, 8), np.float32)
    found = inference.between(said([1] * 4, logits), said([1] * 4, logits))
    for key in ("divergence", "flips", "kl", "rel_l2"):
        assert found[key]["value"] == found[key]["high"] == 0.0


def test_a_change_that_no_window_shows_is_bounded_by_the_flips():
    """Both answers are wrong, and another: no resampled accuracy differs."""
    logits = np.ones((4, 8), np.float32)
    mine, theirs = said([0] * 4, logits), said([0] * 4, logits)
    mine.words[2] = (5,)
    found = inference.between(mine, theirs)
    assert found["divergence"]["high"] == 0.0
    assert found["flips"]["high"] > 0
    told = inference.divergence(found)
    assert (told["value"], told["low"]) == (0.0, 0.0)
    assert told["high"] == found["flips"]["high"]


def test_an_interval_with_a_width_stays():
    logits = np.ones((10, 8), np.float32)
    values = inference.between(said([1] * 8 + [0] * 2, logits), said([1] * 10, logits))
    assert inference.divergence(values) == values["divergence"]


def test_command_goes_on_and_counts_nothing_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inference, "_SAMPLES", 20)
    models = [str(checkpoint(tmp_path, kind)) for kind in ("mamba2", "gpt_neox")]
    out = tmp_path / "inference.json"
    call = ["--windows", "1", "--length", "160", "--device", "cpu", "--out", str(out)]
    inference.main([*call, "--models", models[0]])
    inference.main([*call, "--models", *models])
    rows = Results(out).rows()
    assert len(rows) == 2 * len(inference.RUNS)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(rows)  # none was run again
    for row in rows:
        assert 0 < row["values"]["rel_l2"]["value"] < 0.1
    figures = Results(out).read()["figures"]
    assert "inference.fp16.mamba2" in figures
    assert "inference.bf16.transformer" in figures
    assert out.with_suffix(".png").stat().st_size > 1000
