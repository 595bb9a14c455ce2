"""Divergences and intervals of made-up rows, against what they were made from."""

import numpy as np
import pytest

from experiments.finetuning import comparison
from experiments.finetuning.items import SHOTS, TASKS
from experiments.finetuning.page import publish
from experiments.results import Results


N = 40


def row(model, method, precision, seed, right, stage="tuned", flips=0.0, kl=0.0):
    bits = np.broadcast_to(right, (len(TASKS), len(SHOTS), N))
    apart = {"flips": flips, "kl": kl, "kl_max": kl, "rel_l2": kl}
    between = {task: apart for task in TASKS} | {"reference": f"{model}{seed}"}
    values = {
        "right": np.packbits(bits).tobytes().hex(),
        "answers": f"{model}{seed}",
        "against": between,
        "skipped": 0,
    }
    if precision != "fp32":
        values |= {"alone": between, "asked_in_fp32": between}
    settings = {
        "stage": stage, "model": model, "method": method, "precision": precision,
        "seed": seed, "questions": N, "learning_rate": 0.1,
    }  # fmt: skip
    return {"settings": settings, "values": values}


def rows(model, lost, seeds=4):
    """Half-precision runs that have `lost` fewer right answers than the fp32 ones."""
    right = np.arange(N) < 30
    less = np.arange(N) < 30 - lost
    return [
        one
        for seed in range(seeds)
        for one in (
            row(model, "full", "fp32", seed, right),
            row(model, "full", "fp16", seed, less, flips=lost / N, kl=0.01 * lost),
            row(model, "full", "bf16", seed, less, flips=lost / N, kl=0.01 * lost),
            row(model, "full", "fp32", seed, right, "noise"),
        )
    ]


def test_metric_is_the_one_published():
    both = comparison.pairs(rows("m", 4), "choices", stage="tuned", precision="fp16")
    assert list(both) == [0, 1, 2, 3]
    assert both[0][0].shape == (len(SHOTS), N)
    assert comparison.absolute(*both[0]) == pytest.approx(100 * 4 / N)
    assert comparison.changed(*both[0]) == pytest.approx(4 / N)


def test_flips_both_ways_cancel_in_it_and_not_in_flips():
    mine = np.zeros((4, N), bool)
    theirs = mine.copy()
    mine[..., 0] = theirs[..., 1] = True
    assert comparison.absolute(mine, theirs) == 0.0
    assert comparison.changed(mine, theirs) == pytest.approx(2 / N)


def test_a_more_stable_mamba_is_found_and_so_is_a_less_stable_one():
    found = comparison.stability(rows("mamba1", 2) + rows("gpt_neox", 12))
    assert found[0]["verdict"] == "Mamba is more stable"
    assert found[0]["difference"]["value"] == pytest.approx(100 * 10 / N)
    assert found[0]["kl_ratio choices"]["value"] == pytest.approx(6.0)
    found = comparison.stability(rows("mamba1", 12) + rows("gpt_neox", 2))
    assert found[0]["verdict"] == "Mamba is less stable"
    found = comparison.stability(rows("mamba1", 5) + rows("gpt_neox", 5))
    assert found[0]["verdict"] == "not told apart"


def test_lora_of_one_model_is_not_set_against_a_full_fine_tune_of_the_other():
    right, less = np.arange(N) < 30, np.arange(N) < 10
    lora = [
        row("gpt_neox", "lora-all", precision, seed, less if precision else right)
        for seed in range(4)
        for precision in ("fp32", "fp16", "bf16")
    ]
    both = rows("mamba1", 5) + rows("gpt_neox", 5)
    found = comparison.stability(both + lora)[0]
    assert found["methods"] == ["full"]
    assert found["difference"]["value"] == pytest.approx(0)


def test_what_a_method_does_is_not_what_a_precision_does():
    right, less = np.arange(N) < 30, np.arange(N) < 10
    made = [
        row("m", method, precision, seed, less if method == "lora-all" else right)
        for seed in range(3)
        for method in ("full", "lora-all")
        for precision in ("fp32", "fp16", "bf16")
    ]
    for seed in range(3):  # the same answers are their own reference
        made[6 * seed]["values"]["answers"] = f"m{seed}"
        for one in made[6 * seed + 1 : 6 * seed + 6]:
            one["values"]["answers"] = "another"
    cells = comparison.tuned(made, "m", ["fp16"], ["lora-all"])
    assert set(comparison.seeds(made, cells).values()) == {100 * 20 / N}
    assert set(comparison.seeds(made, cells, alone=True).values()) == {0.0}


def test_rows_against_another_reference_are_left_out():
    made = rows("m", 4)
    made[1]["values"]["against"]["reference"] = "of another run"
    both = comparison.pairs(made, "choices", stage="tuned", precision="fp16")
    assert list(both) == [1, 2, 3]


def test_the_same_recipe_again_is_a_reference_like_the_first():
    made = rows("m", 4, seeds=1)
    again = row("m", "full", "fp32", 0, np.arange(N) < 25, "again")
    for one in (made[3], again):
        one["values"]["against"]["reference"] = "later"
    again["values"]["answers"] = "later"
    both = comparison.pairs([*made, again], "choices", stage="noise")
    assert comparison.absolute(*both[0]) == pytest.approx(100 * 5 / N)


def test_page_and_picture_are_written(tmp_path):
    path = tmp_path / "finetune.json"
    found = rows("mamba1", 2, 2) + rows("gpt_neox", 12, 2)
    Results(path, "python -m experiments.finetune").put(
        environments=[{"device": "a card"}],
        rows=[row | {"environment": 0} for row in found],
    )
    publish(path)
    figures = Results(path).read()["figures"]
    assert figures["finetune.fp16.mamba"]["value"] == pytest.approx(100 * 2 / N)
    assert figures["finetune.fp16.mamba.alone"]["value"] == pytest.approx(100 * 2 / N)
    assert 0 < figures["finetune.fp16.mamba.alone.by_chance_of_mmlu"]["value"] < 0.2
    assert figures["finetune.more_stable.mamba"]["low"] > 0
    assert "Mamba is more stable" in path.with_suffix(".md").read_text()
    assert "- device a card" in path.with_suffix(".md").read_text()
    assert path.with_suffix(".png").stat().st_size > 1000


def test_without_rows_the_page_says_so(tmp_path):
    path = tmp_path / "finetune.json"
    publish(path)
    assert "none yet" in path.with_suffix(".md").read_text()
