"""How much better one kind of network recalls than another, and how sure that is."""

from typing import Any

import numpy as np
from scipy import stats

from experiments.finetuning.intervals import Interval, difference as welch
from experiments.results import figure


TRAINED = 1024  # bytes of context
_SAMPLES, _LEVELS = 2000, (2.5, 97.5)
_UNIT = "percentage points"
Cells = dict[tuple[str, int], np.ndarray]


def _cells(rows: list[dict], kind: str, long: bool) -> list[Cells]:
    """Of each model of a kind: the episodes' shares by task and context."""
    found: dict[str, Cells] = {}
    for row in rows:
        own = row["settings"]
        if own["kind"] == kind and (own["context"] > TRAINED) == long:
            model = found.setdefault(own["model"], {})
            model[own["task"], own["context"]] = np.array(row["values"]["by_episode"])
    return list(found.values())


def _means(models: list[Cells], shared: list[tuple[str, int]]) -> list[float]:
    """Each model's mean accuracy over the shared tasks and contexts, per cent."""
    return [
        100 * float(np.mean([one[cell].mean() for cell in shared])) for one in models
    ]


def over_models(ours: list[float], theirs: list[float]) -> Interval | None:
    """Mean of one less that of the other, by Welch's t.

    If one side has a single model, the spread of the other stands for both (Student's
    t); None if both are single.
    """
    if min(len(ours), len(theirs)) > 1:
        return welch(ours, theirs)
    several = max(ours, theirs, key=len)
    n = len(several)
    if n < 2:
        return None
    value = float(np.mean(ours) - np.mean(theirs))
    error = float(np.std(several, ddof=1) * np.sqrt(1 + 1 / n))
    half = float(stats.t.ppf(_LEVELS[1] / 100, n - 1)) * error
    return Interval(value, value - half, value + half, 1)


def _within(one: Interval) -> Interval:
    """The same within what a difference of accuracies can be."""
    low, high = (
        None if end is None else min(max(end, -100.0), 100.0)
        for end in (one.low, one.high)
    )
    return Interval(one.value, low, high, one.n)


def difference(
    rows: list[dict], kind: str, other: str, long: bool
) -> tuple[Interval, str] | None:
    """Mean accuracy of one kind less another's, percentage points, with a note.

    The mean is over tasks and contexts that all models of both were asked in; `long`:
    contexts beyond training's, else those up to it. With several models of a kind the
    interval is over models; else from resampling the episodes, the same for both.
    """
    ours, theirs = _cells(rows, kind, long), _cells(rows, other, long)
    if not ours or not theirs:
        return None
    shared = sorted(set.intersection(*(set(one) for one in ours + theirs)))
    if not shared:
        return None
    found = over_models(_means(ours, shared), _means(theirs, shared))
    counts = f"{len(ours)} against {len(theirs)}"
    if found is not None:
        return _within(found), f"interval over models, {counts}"
    cells = [ours[0][cell] - theirs[0][cell] for cell in shared]
    rng = np.random.default_rng(0)
    drawn = [
        np.mean(
            [cell[rng.integers(len(cell), size=len(cell))].mean() for cell in cells]
        )
        for _ in range(_SAMPLES)
    ]
    low, high = (100 * np.percentile(drawn, _LEVELS)).tolist()
    value = 100 * float(np.mean([cell.mean() for cell in cells]))
    return Interval(value, low, high, 1), f"interval over episodes, {counts}"


def figures(rows: list[dict]) -> dict[str, Any]:
    """What paper.toml's row is compared with, and the same against others."""
    found = {}
    for long, name in ((False, ""), (True, ".beyond_training")):
        for other in ("mamba2", "mamba1", "gpt_neox"):
            told = difference(rows, "hybrid", other, long)
            if told is not None:
                one, over = told
                note = f"2.2 million parameters; {over}"
                found[f"hybrids.recall_above_{other}{name}"] = figure(
                    one.value, _UNIT, one.n, one.low, one.high, note
                )
    return found
