"""Which rows fine-tuning is to find: settings of runs, and which are missing."""

import argparse
import json
from pathlib import Path
from typing import Any

from experiments.results import Results
from studies.problems import Problem


MODELS = tuple(
    f"experiments/models/{name}" for name in ("mamba1", "mamba2", "gpt_neox")
)
# Fewer rates than a careful user would try, the same number for each method.
RATES = {"full": (1e-4, 3e-4, 1e-3, 3e-3), "lora": (5e-4, 2e-3, 5e-3, 1e-2)}
TUNING_SEED = 1000


def common(options: argparse.Namespace) -> dict[str, Any]:
    """Settings that all rows of this command have."""
    return {
        "steps": options.steps,
        "batch": options.batch,
        "length": options.length,
        "rank": options.rank,
        "alpha": options.alpha,
        "clip": options.clip,
        "questions": options.questions,
        "instructions": options.instructions.name if options.instructions else None,
    }


def rates(options: argparse.Namespace, method: str) -> list[float]:
    """Learning rates to choose from."""
    if options.rates:
        return list(options.rates)
    return list(RATES["full" if method == "full" else "lora"])


def tuning(options: argparse.Namespace, model: str, method: str) -> list[dict]:
    """Settings of the rows that tune a model and method."""
    return [
        common(options)
        | {"stage": "tune", "model": short(model), "method": method}
        | {"precision": "fp32", "seed": TUNING_SEED, "learning_rate": rate}
        for rate in rates(options, method)
    ]


def chosen(options: argparse.Namespace, results: Results) -> dict[tuple[str, str], Any]:
    """The learning rate of each model and method that is tuned, and its loss."""
    found = {}
    for model in options.models:
        for method in options.methods:
            rows = [
                row
                for wanted in tuning(options, model, method)
                for row in results.rows(**wanted)
            ]
            good = [r for r in rows if r["values"]["validation_loss"] is not None]
            if len(rows) == len(rates(options, method)):
                if not good:
                    raise SystemExit(
                        f"error: {model}, {method}: no loss was finite\n"
                        "hint: give smaller --rates, and another --out"
                    )
                best = min(good, key=lambda row: row["values"]["validation_loss"])
                found[short(model), method] = best["settings"]["learning_rate"]
    return found


def runs(options: argparse.Namespace, model: str, seed: int, lr: dict) -> list[dict]:
    """Settings of the rows of a model and a seed, the reference first."""
    name = short(model)

    def row(stage: str, method: str, precision: str, with_seed: int) -> dict:
        return common(options) | {
            "stage": stage,
            "model": name,
            "method": method,
            "precision": precision,
            "seed": seed,
            "run_seed": with_seed,
            "learning_rate": lr[name, method],
        }

    found = [
        row("tuned", method, precision, seed)
        for method in options.methods
        for precision in options.precisions
    ]
    # the yardsticks: again, where the kernels add in no fixed order, and other data
    at = len(options.precisions)
    found[at:at] = [
        row("noise", "full", "fp32", seed + 500),
        row("again", "full", "fp32", seed),
    ]
    return found


def short(model: str) -> str:
    """A model's name in the rows: a folder's last part."""
    return Path(model).name if Path(model).exists() else model


def settings_of(name: str) -> dict[str, Any] | None:
    """config.json of a folder that experiments.train wrote; None of any other model."""
    try:
        settings = json.loads((Path(name) / "config.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return settings if settings.get("lyapunov_tokenizer") == "bytes" else None


def not_loaded(name: str, error: Exception) -> Problem:
    """What to say of a name that neither folder nor library has."""
    told = str(error).strip().splitlines()
    return Problem(
        f"{name} cannot be loaded ({told[0] if told else type(error).__name__})",
        "give folders of experiments.train, or names that transformers knows",
    )


def reference_of(row: dict[str, Any]) -> str:
    """The name of the answers that a row was compared with."""
    return row["values"]["against"]["reference"]


def command(options: argparse.Namespace) -> str:
    """How these rows are had, for the results file."""
    settings = " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in common(options).items()
        if value is not None
    )
    return f"python -m experiments.finetune --corpus FOLDER {settings}"


def complete(results: Results, rows: list[dict[str, Any]]) -> bool:
    """Whether all these rows are there, against one reference."""
    found = [results.rows(**row) for row in rows]
    return all(found) and len({reference_of(one[0]) for one in found}) == 1


def missing(options: argparse.Namespace, stage: str) -> list[str]:
    """Names of a stage's units that have rows to find."""
    results = Results(options.out)
    if stage == "tune":
        return [
            f"{model}|{method}"
            for method in options.methods
            for model in options.models
            if not all(map(results.has, tuning(options, model, method)))
        ]
    lr = chosen(options, results)
    return [
        f"{model}|{seed}"
        for seed in range(options.seeds)
        for model in options.models
        if all((short(model), method) in lr for method in options.methods)
        and not complete(results, runs(options, model, seed, lr))
    ]
