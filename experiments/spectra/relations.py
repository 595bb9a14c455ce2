"""What goes with a checkpoint's divergence: rank correlations, with intervals."""

from typing import Any

import numpy as np
from scipy.stats import rankdata


PREDICTORS = {
    "largest exponent": lambda v: max(layer["max"] for layer in v["layers"]),
    "mean of layers' largest": lambda v: float(
        np.mean([layer["max"] for layer in v["layers"]])
    ),
    "median memory": lambda v: float(
        np.mean([layer["memory_p50"] for layer in v["layers"]])
    ),
    "largest dt": lambda v: max(layer["dt_max"] for layer in v["layers"]),
}
MEASURED = {"rel_l2": "distance of logits", "kl_mean": "KL"}
_SAMPLES, _LEVELS = 2000, (2.5, 97.5)
_LEAST = 10  # checkpoints: resampling fewer says nothing of their ranks


def correlation(x: np.ndarray, y: np.ndarray) -> dict[str, Any] | None:
    """Spearman's rank correlation and its 95 % interval, from resampling checkpoints.

    None for fewer than ten, or where one of the two does not vary.
    """
    if len(x) < _LEAST or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(x), size=(_SAMPLES, len(x)))
    drawn = _rho(x[chosen], y[chosen])
    # of samples in which one of the two does not vary there is none
    low, high = np.percentile(drawn[np.isfinite(drawn)], _LEVELS)
    return {"rho": float(_rho(x, y)), "low": low, "high": high, "n": len(x)}


def _rho(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's, along the last axis: Pearson's of the ranks; nan if none varies."""
    ranks = [rankdata(side, axis=-1) for side in (x, y)]
    one, other = (r - r.mean(-1, keepdims=True) for r in ranks)
    size = np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
    return (one * other).sum(-1) / np.where(size > 0, size, np.nan)


def relations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every predictor against every measure, over all checkpoints and by model."""
    models = list(dict.fromkeys(row["settings"]["model"] for row in rows))
    found = []
    for precision in ("bf16", "fp16"):
        for measure in MEASURED:
            for name in (*PREDICTORS, "predicted by lyapunov-check"):
                line: dict[str, Any] = {"precision": precision, "measure": measure}
                line["predictor"] = name
                for model in ("all", *models):
                    pairs = [
                        (_predictor(name, row, precision), told)
                        for row in rows
                        if model in ("all", row["settings"]["model"])
                        and (told := row["values"]["precisions"][precision][measure])
                        is not None
                    ]
                    x, y = _columns(pairs)
                    line[model] = correlation(x, y)
                found.append(line)
    return found


def _columns(pairs: list[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Predictors and measures, without those that have no prediction."""
    whole = [pair for pair in pairs if pair[0] is not None]
    both = np.array(whole, float).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _predictor(name: str, row: dict[str, Any], precision: str) -> float | None:
    values = row["values"]
    if name in PREDICTORS:
        return PREDICTORS[name](values)
    return values["precisions"][precision]["sigma_t3"]


def largest(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The largest exponent of all, with the 95 % interval of its error over tokens."""
    layers = [
        (layer["max"], layer["stderr"], row["settings"])
        for row in rows
        for layer in row["values"]["layers"]
    ]
    if not layers:
        return None
    value, error, settings = max(layers, key=lambda one: one[0])
    half = 1.96 * error if error is not None else None
    return {
        "value": value,
        "low": None if half is None else value - half,
        "high": None if half is None else value + half,
        "n": len(layers),
        "settings": settings,
    }
