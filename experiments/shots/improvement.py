"""Improvement over zero-shot, as a share of the Transformer's, with its interval.

arXiv:2406.00209: the mean over tasks and numbers of examples of
100 (accuracy after k examples - accuracy after none) / accuracy after none, and one
model's mean as a share of another's. The share is a ratio of two noisy means: where the
Transformer's own improvement cannot be told from nothing, there is no share.
"""

from typing import Any

import numpy as np


_SAMPLES = 2000
_LEVELS = (2.5, 97.5)
# right: seeds x tasks x shots x questions, shots[0] being none


def improvement(right: np.ndarray) -> float:
    """Mean improvement over zero-shot, in per cent of it.

    `right`: booleans, (seeds, tasks, shots, questions). No accuracy counts as less than
    half an answer, since it is divided by.
    """
    accuracy = np.maximum(right.mean(axis=(0, 3)), 0.5 / right.shape[-1])
    none = accuracy[:, :1]
    return 100 * float(((accuracy[:, 1:] - none) / none).mean())


def _draws(right: np.ndarray, rng: Any, asked: np.ndarray) -> float:
    """Improvement of a sample: of seeds, and of questions (tasks x questions)."""
    seeds = rng.integers(len(right), size=len(right))
    sample = np.stack(
        [right[seeds, task][:, :, chosen] for task, chosen in enumerate(asked)], axis=1
    )
    return improvement(sample)


def shares(right: dict[str, np.ndarray], base: str) -> dict[str, dict[str, Any]]:
    """Each model's improvement and its share of `base`'s, per cent, with intervals.

    **Arguments:**

    - `right`: by model; all were asked the same questions, which are resampled
      together, a task at a time. Seeds are resampled model by model.
    - `base`: the Transformer's name.

    **Returns:**

    By model: `improvement` with `low` and `high`; `share` with `share_low` and
    `share_high`, all None where the base's improvement may be none.
    """
    rng = np.random.default_rng(0)
    tasks, questions = right[base].shape[1], right[base].shape[3]
    drawn: dict[str, list[float]] = {model: [] for model in right}
    for _ in range(_SAMPLES):
        asked = rng.integers(questions, size=(tasks, questions))
        for model, own in right.items():
            drawn[model].append(_draws(own, rng, asked))
    theirs = np.array(drawn[base])
    told = float(np.percentile(theirs, _LEVELS[0])) > 0
    found = {}
    for model, own in right.items():
        mine = np.array(drawn[model])
        low, high = np.percentile(mine, _LEVELS)
        one: dict[str, Any] = {
            "improvement": improvement(own), "low": low, "high": high,
            "seeds": len(own), "share": None, "share_low": None, "share_high": None,
        }  # fmt: skip
        if told:
            ratio = 100 * mine / theirs
            one["share"] = 100 * improvement(own) / improvement(right[base])
            one["share_low"], one["share_high"] = np.percentile(ratio, _LEVELS)
        found[model] = one
    return found
