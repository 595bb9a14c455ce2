"""What the rows of fine-tuning say: divergences, their yardsticks and intervals.

The published metric: the absolute difference of accuracy, in percentage points, from
the fp32 full fine-tune, averaged over shots (and here over seeds). It is never
negative, and two recipes that flip as many answers to right as to wrong have none. So
beside it stand the share of answers that differ, KL, and the distance of the logits.

Intervals are of 95 %, from resampling seeds and questions. The same questions are asked
of every run: they are resampled together. An absolute difference of few seeds is biased
upwards, in the intervals too; a difference between two models much less so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .items import SHOTS, TASKS


_SAMPLES = 1000
_LEVELS = (2.5, 97.5)
NOISE = ("noise", "again")


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; `n`: seeds behind it."""

    value: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> str:
        """Whether it is above or below nothing, as far as the interval tells."""
        if self.low > 0:
            return "more"
        return "less" if self.high < 0 else "not told apart"

    def described(self) -> dict[str, float | int]:
        """For a results file."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


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
) -> tuple[np.ndarray, np.ndarray]:
    """Answers of runs and of the fp32 full fine-tune of the same seed.

    `alone`: of the fp32 run of the same method instead: what precision alone does.

    **Returns:**

    Two arrays, seeds x shots x questions.
    """
    mine, theirs = [], []
    for row in of(rows, **settings):
        own = row["settings"]
        base = of(
            rows,
            stage="tuned",
            model=own["model"],
            method=own["method"] if alone else "full",
            precision="fp32",
            seed=own["seed"],
        )
        if base and _reference(base[0]) == _reference(row):
            mine.append(right(row["values"], own["questions"])[task])
            theirs.append(right(base[0]["values"], own["questions"])[task])
    return np.array(mine), np.array(theirs)


def _reference(row: dict) -> str:
    return row["values"]["against"]["reference"]


def absolute(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The published metric, in percentage points."""
    difference = mine.mean(-1) - theirs.mean(-1)
    return 100 * float(np.abs(difference).mean())


def bootstrap(
    groups: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
    weights: Sequence[float],
    seed: int = 0,
) -> Interval | None:
    """A weighted sum of the metric over groups, and its interval.

    **Arguments:**

    - `groups`: each of one model: its comparisons, whose metrics are averaged; all
      groups were asked the same questions. A model's seeds are resampled together.
    - `weights`: of the groups: (1, -1) is a difference of two models.
    """
    if any(not group or any(not len(a) for a, _ in group) for group in groups):
        return None

    def total(seeds: Sequence[Any], asked: Any) -> float:
        return sum(
            weight
            * float(np.mean([absolute(a[s][..., asked], b[s][..., asked])
                             for a, b in group]))
            for weight, group, s in zip(weights, groups, seeds, strict=True)
        )  # fmt: skip

    rng = np.random.default_rng(seed)
    least = min(len(a) for group in groups for a, _ in group)
    sizes = [min(len(a) for a, _ in group) for group in groups]
    n = groups[0][0][0].shape[-1]
    value = total([np.arange(size) for size in sizes], np.arange(n))
    drawn = [
        total(
            [rng.integers(size, size=size) for size in sizes], rng.integers(n, size=n)
        )
        for _ in range(_SAMPLES)
    ]
    low, high = np.percentile(drawn, _LEVELS)
    return Interval(value, float(low), float(high), least)


def mean(values: Sequence[float], seed: int = 0) -> Interval | None:
    """A mean over seeds and its interval, from resampling seeds."""
    kept = np.array([v for v in values if v is not None], float)
    if not len(kept):
        return None
    rng = np.random.default_rng(seed)
    drawn = kept[rng.integers(len(kept), size=(_SAMPLES, len(kept)))].mean(-1)
    low, high = np.percentile(drawn, _LEVELS)
    return Interval(float(kept.mean()), float(low), float(high), len(kept))


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """The ratio of two means; for its interval seeds of each are resampled."""
    a, b = (np.array([v for v in x if v is not None], float) for x in (mine, theirs))
    if not len(a) or not len(b) or not b.mean():
        return None
    rng = np.random.default_rng(0)
    top = a[rng.integers(len(a), size=(_SAMPLES, len(a)))].mean(-1)
    bottom = b[rng.integers(len(b), size=(_SAMPLES, len(b)))].mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.nanpercentile(top / bottom, _LEVELS)
    value = float(a.mean() / b.mean())
    return Interval(value, float(low), float(high), min(len(a), len(b)))


def hidden(rows: list[dict], task: str, what: str, **settings: Any) -> list[float]:
    """`flips`, `kl` or `rel_l2` of each run against its reference."""
    return [row["values"]["against"][task][what] for row in of(rows, **settings)]


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
            if not len(both[0]):
                continue
            line: dict[str, Any] = settings | {"task": task, "seeds": len(both[0])}
            line["accuracy"] = 100 * float(both[0].mean())
            line["accuracy_fp32_full"] = 100 * float(both[1].mean())
            line["divergence"] = _told(bootstrap([[both]], [1.0]))
            same = pairs(rows, task, alone=True, **settings)
            line["divergence_alone"] = _told(bootstrap([[same]], [1.0]))
            for what in ("flips", "kl", "rel_l2"):
                line[what] = _told(mean(hidden(rows, task, what, **settings)))
                if settings["precision"] != "fp32":
                    only = alone(rows, task, what, **settings)
                    line[f"{what}_alone"] = _told(mean(only))
                    inside = asked_in_fp32(rows, task, what, **settings)
                    line[f"{what}_of_asking"] = _told(mean(inside))
            line["skipped_steps"] = sum(
                row["values"]["skipped"] for row in of(rows, **settings)
            )
            found.append(line)
    order = list(dict.fromkeys(row["settings"]["model"] for row in rows))
    return sorted(found, key=lambda line: order.index(line["model"]))


def _told(interval: Interval | None) -> dict | None:
    return interval.described() if interval else None


def averaged(
    rows: list[dict], model: str, methods: Sequence[str], precisions: Sequence[str]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """All comparisons of a model's tuned runs in these precisions, on both tasks."""
    settings: dict[str, Any] = {"stage": "tuned", "model": model}
    found = [
        pairs(rows, task, method=method, precision=precision, **settings)
        for task in TASKS
        for method in methods
        for precision in precisions
    ]
    return [both for both in found if len(both[0])]


def noise(rows: list[dict], model: str, stage: str) -> list:
    """The same for a yardstick: another seed ("noise"), the same again ("again")."""
    found = [pairs(rows, task, stage=stage, model=model) for task in TASKS]
    return [both for both in found if len(both[0])]


def stability(rows: list[dict], transformer: str = "gpt_neox") -> list[dict[str, Any]]:
    """For each Mamba: does the Transformer diverge more? With intervals.

    - `difference`: of the published metric, Transformer less Mamba, percentage points;
      positive if Mamba is more stable.
    - `beyond_noise`: the same after each model's own divergence between seeds.
    - `kl_ratio`: mean KL, from the fp32 run of the same method, of the Transformer
      over Mamba's; above 1 if Mamba is more stable; `kl_ratio_of_asking`: from the same
      weights asked in fp32.
    """
    models = dict.fromkeys(row["settings"]["model"] for row in rows)
    methods = list(dict.fromkeys(row["settings"]["method"] for row in rows))
    half = ("fp16", "bf16")
    theirs = averaged(rows, transformer, methods, half)
    found = []
    for model in models:
        mine = averaged(rows, model, methods, half)
        if model == transformer or not mine or not theirs:
            continue
        line: dict[str, Any] = {"model": model, "against": transformer}
        difference = bootstrap([theirs, mine], [1, -1])
        line["difference"] = _told(difference)
        line["verdict"] = _words(difference)
        noises = [noise(rows, name, "noise") for name in (transformer, model)]
        beyond = bootstrap([theirs, mine, *noises], [1, -1, -1, 1])
        line["beyond_noise"] = _told(beyond)
        line["verdict_beyond_noise"] = _words(beyond)
        for task in TASKS:
            kl = [_kl(rows, name, half, task, alone) for name in (transformer, model)]
            line[f"kl_ratio {task}"] = _told(ratio(*kl))
            kl = [
                _kl(rows, name, half, task, asked_in_fp32)
                for name in (transformer, model)
            ]
            line[f"kl_ratio_of_asking {task}"] = _told(ratio(*kl))
        found.append(line)
    return found


def _kl(rows: list[dict], model: str, half: Sequence[str], task: str, of_what: Any):
    """Of each seed, averaged over methods and precisions."""
    seeds = sorted({row["settings"]["seed"] for row in of(rows, stage="tuned")})
    found = []
    for seed in seeds:
        values = [
            value
            for precision in half
            for value in of_what(
                rows,
                task,
                "kl",
                stage="tuned",
                model=model,
                seed=seed,
                precision=precision,
            )
        ]
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
