"""What the rows of fine-tuning say: divergences, their yardsticks and intervals.

The published metric: the absolute difference of accuracy, in percentage points, from
the fp32 full fine-tune, averaged over shots (and here over seeds). Two runs that turn
as many answers right as wrong have none; by chance they rarely do, so that changed
answers without any preference still make some (`intervals.by_chance`), the less the
more questions there are. Whatever the metric is beyond that is a change of accuracy.
Beside it stand the share of answers that differ, KL, and the distance of the logits.

The published metric has the *full* fine-tune as reference for LoRA, too, and counts
what the method does beside what the precision does. `alone`: against the fp32 run of
the same method instead.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .intervals import Interval, by_chance, difference, mean, ratio
from .items import SHOTS, TASKS


HALF = ("fp16", "bf16")
Pair = tuple[np.ndarray, np.ndarray]


def right(values: dict[str, Any], questions: int) -> dict[str, np.ndarray]:
    """By task: whether each answer was right, shots x questions."""
    data = np.frombuffer(bytes.fromhex(values["right"]), np.uint8)
    shape = (len(TASKS), len(SHOTS), questions)
    bits = np.unpackbits(data)[: np.prod(shape)].reshape(shape).astype(bool)
    return dict(zip(TASKS, bits, strict=True))


def of(rows: list[dict], **settings: Any) -> list[dict]:
    """Rows whose settings hold these."""
    wanted = settings.items()
    return [row for row in rows if wanted <= row["settings"].items()]


def pairs(
    rows: list[dict], task: str, alone: bool = False, **settings: Any
) -> dict[int, Pair]:
    """By seed: answers of a run, and of the run that it is compared with.

    That is the fp32 full fine-tune whose answers the row names as its reference, or
    with `alone` the fp32 run of the same method against that reference.

    **Returns:**

    Pairs of arrays, shots x questions. Seeds whose reference is not there are left out.
    """
    found = {}
    for row in of(rows, **settings):
        own = row["settings"]
        same = {"model": own["model"], "seed": own["seed"], "precision": "fp32"}
        if alone:
            candidates = of(rows, stage="tuned", method=own["method"], **same)
            base = [r for r in candidates if _reference(r) == _reference(row)]
        else:
            # "again" is the full fine-tune of this seed, too
            candidates = of(rows, method="full", **same)
            base = [r for r in candidates if r["settings"]["stage"] != "noise"
                    and r["values"]["answers"] == _reference(row)]  # fmt: skip
        if base:
            mine, theirs = (right(one["values"], own["questions"])[task]
                            for one in (row, base[0]))  # fmt: skip
            found[own["seed"]] = (mine, theirs)
    return found


def _reference(row: dict) -> str:
    return row["values"]["against"]["reference"]


def absolute(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The published metric of one run, in percentage points."""
    return 100 * float(np.abs(mine.mean(-1) - theirs.mean(-1)).mean())


def chance(mine: np.ndarray, theirs: np.ndarray) -> float:
    """What the metric would be if the changed answers had no preference."""
    return by_chance((mine != theirs).sum(-1), mine.shape[-1])


def changed(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The share of answers that turned from wrong to right or from right to wrong."""
    return float((mine != theirs).mean())


def seeds(
    rows: list[dict],
    cells: Sequence[dict[str, Any]],
    what: Callable[[np.ndarray, np.ndarray], float] = absolute,
    alone: bool = False,
) -> dict[int, float]:
    """By seed: the mean of a metric over tasks and cells.

    **Arguments:**

    - `cells`: settings of runs: each names one run of a seed. Seeds that lack one of
      them are left out.
    - `what`: of the answers of a run and its reference.
    """
    both = [pairs(rows, task, alone, **cell) for cell in cells for task in TASKS]
    if not both:
        return {}
    whole = set.intersection(*(set(one) for one in both))
    return {
        seed: float(np.mean([what(*one[seed]) for one in both]))
        for seed in sorted(whole)
    }


def tuned(
    rows: list[dict], model: str, precisions: Sequence[str], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """Settings of a model's fine-tunes in these precisions, by these methods."""
    return [
        {"stage": "tuned", "model": model, "method": method, "precision": precision}
        for method in methods
        for precision in precisions
    ]


def methods_of(rows: list[dict], *models: str) -> list[str]:
    """Methods that all these models were fine-tuned by, in both half precisions.

    Others would set one model's LoRA against another's full fine-tune.
    """
    every = dict.fromkeys(row["settings"]["method"] for row in rows)
    return [
        method
        for method in every
        if all(
            of(rows, stage="tuned", model=model, method=method, precision=precision)
            for model in models
            for precision in HALF
        )
    ]


def hidden(rows: list[dict], task: str, what: str, **settings: Any) -> list[float]:
    """`flips`, `kl` or `rel_l2` of each run against its reference."""
    return _inner(rows, "against", task, what, **settings)


def alone(rows: list[dict], task: str, what: str, **kept: Any) -> list[float]:
    """The same of half-precision runs against fp32 runs of the same method."""
    return _inner(rows, "alone", task, what, **kept)


def asked_in_fp32(rows: list[dict], task: str, what: str, **kept: Any) -> list[float]:
    """The same of half-precision runs against their own weights asked in fp32."""
    return _inner(rows, "asked_in_fp32", task, what, **kept)


def _inner(rows: list[dict], which: str, task: str, what: str, **kept: Any):
    found = [row["values"] for row in of(rows, **kept)]
    return [values[which][task][what] for values in found if which in values]


def cells(rows: list[dict]) -> list[dict[str, Any]]:
    """A line for each model, recipe and task: the metric and what it hides."""
    names = ("stage", "model", "method", "precision")
    kinds = dict.fromkeys(
        tuple(row["settings"][name] for name in names)
        for row in rows
        if row["settings"]["stage"] != "tune"
    )
    found = []
    for kind in kinds:
        settings: dict[str, Any] = dict(zip(names, kind, strict=True))
        if kind == ("tuned", kind[1], "full", "fp32"):
            continue
        for task in TASKS:
            both = pairs(rows, task, **settings)
            if both:
                found.append(_line(rows, settings, task, both))
    order = list(dict.fromkeys(row["settings"]["model"] for row in rows))
    return sorted(found, key=lambda line: order.index(line["model"]))


def _line(
    rows: list[dict], settings: dict[str, Any], task: str, both: dict[int, Pair]
) -> dict[str, Any]:
    line: dict[str, Any] = settings | {"task": task, "seeds": len(both)}
    accuracies = np.array([[a.mean(), b.mean()] for a, b in both.values()])
    line["accuracy"], line["accuracy_fp32_full"] = (100 * accuracies.mean(0)).tolist()
    own = pairs(rows, task, alone=True, **settings)
    for name, pair in (("", both), ("_alone", own)):
        for key, what in (
            ("divergence", absolute),
            ("by_chance", chance),
            ("changed", changed),
        ):
            values = [what(*one) for one in pair.values()]
            line[key + name] = _told(mean(values, least=0))
    for what in ("flips", "kl", "rel_l2"):
        line[what] = _told(mean(hidden(rows, task, what, **settings), least=0))
        if settings["precision"] != "fp32":
            only = alone(rows, task, what, **settings)
            line[f"{what}_alone"] = _told(mean(only, least=0))
            inside = asked_in_fp32(rows, task, what, **settings)
            line[f"{what}_of_asking"] = _told(mean(inside, least=0))
    line["skipped_steps"] = sum(
        row["values"]["skipped"] for row in of(rows, **settings)
    )
    return line


def _told(interval: Interval | None) -> dict | None:
    return interval.described() if interval else None


def stability(rows: list[dict], transformer: str = "gpt_neox") -> list[dict[str, Any]]:
    """For each Mamba: does the Transformer diverge more? With intervals.

    Over the methods that both were fine-tuned by, fp16 and bf16, both tasks:

    - `difference`: of the published metric, Transformer less Mamba, percentage points;
      positive if Mamba is more stable.
    - `precision_alone`: the same, each run against the fp32 run of its own method.
    - `beyond_chance`: of that, less what changed answers make by chance.
    - `beyond_noise`: `difference` after each model's own divergence between seeds.
    - `kl_ratio`: KL from the fp32 run of the same method, the Transformer's over
      Mamba's (geometric means over seeds); above 1 if Mamba is more stable;
      `kl_ratio_of_asking`: from the same weights asked in fp32.
    """
    found = []
    for model in dict.fromkeys(row["settings"]["model"] for row in rows):
        methods = methods_of(rows, transformer, model)
        if model == transformer or not methods:
            continue
        line: dict[str, Any] = {
            "model": model, "against": transformer, "methods": methods
        }  # fmt: skip
        runs = [tuned(rows, name, HALF, methods) for name in (transformer, model)]
        told = [seeds(rows, cells) for cells in runs]
        own = [seeds(rows, cells, alone=True) for cells in runs]
        luck = [seeds(rows, cells, chance, alone=True) for cells in runs]
        noise = [
            seeds(rows, [{"stage": "noise", "model": name}])
            for name in (transformer, model)
        ]
        values: dict[str, list[list[float]]] = {
            "difference": [list(one.values()) for one in told],
            "precision_alone": [list(one.values()) for one in own],
            "beyond_chance": [_less(*two) for two in zip(own, luck, strict=True)],
            "beyond_noise": [_less(*two) for two in zip(told, noise, strict=True)],
        }
        for key, (theirs, mine) in values.items():
            interval = difference(theirs, mine)
            line[key] = _told(interval)
            name = "verdict" if key == "difference" else f"verdict_{key}"
            line[name] = _words(interval)
        for task in TASKS:
            for key, which in (("kl_ratio", alone), ("kl_ratio_of_asking",
                                                     asked_in_fp32)):  # fmt: skip
                kl = [_kl(rows, cells, task, which) for cells in runs]
                line[f"{key} {task}"] = _told(ratio(*kl))
        found.append(line)
    return found


def _less(one: dict[int, float], other: dict[int, float]) -> list[float]:
    return [one[seed] - other[seed] for seed in one if seed in other]


def _kl(
    rows: list[dict], cells: list[dict[str, Any]], task: str, of_what: Any
) -> list[float]:
    """Of each seed, averaged over methods and precisions."""
    every = sorted({row["settings"]["seed"] for row in of(rows, stage="tuned")})
    found = []
    for seed in every:
        values = [v for cell in cells for v in of_what(rows, task, "kl", seed=seed,
                                                       **cell)]  # fmt: skip
        if values:
            found.append(float(np.mean(values)))
    return found


def _words(interval: Interval | None) -> str:
    if interval is None:
        return "no runs"
    return {
        "more": "Mamba is more stable",
        "less": "Mamba is less stable",
        "not told apart": "not told apart",
    }[interval.verdict]
