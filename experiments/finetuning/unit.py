"""One unit of fine-tuning: a model and method to tune, or a model and a seed."""

import argparse
import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.bundled.model import choose_device
from experiments.results import Results, environment, key

from .items import Data
from .networks import adapt, deterministic, load
from .plan import chosen, command, common, reference_of, runs, tuning
from .training import (
    Answers,
    Recipe,
    against,
    answer,
    ask_all,
    described,
    train,
    validation_loss,
)


_SLACK = 1.3  # a run may take this much longer than the longest before


class Unit:
    """One unit of work, in this process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = choose_device(options.device)
        if self.device.type == "cuda":
            deterministic()
        if options.workers > 1:
            torch.set_num_threads(1)
        self.data = (
            Data.of_instructions(options.corpus, options.instructions)
            if options.instructions
            else Data.read(options.corpus)
        )
        self.asked = ask_all(self.data, options.questions)
        fields = Recipe.__dataclass_fields__
        given = {k: v for k, v in common(options).items() if k in fields}
        self.recipe = Recipe(learning_rate=0.0, **given)
        self.results = Results(options.out, command(options))
        self.where = environment(self.device.type)
        self.last = 0.0

    def late(self) -> bool:
        """Whether another run would end after the budget."""
        until = self.options.until
        return bool(until) and time.time() + _SLACK * self.last > until

    def run(self, model: str, row: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Fine-tune as the row says: the network, the adapted model, how it went."""
        began = time.perf_counter()
        seed = row.get("run_seed", row["seed"])
        torch.manual_seed(seed)
        network = load(model, self.device)
        recipe = replace(self.recipe, learning_rate=row["learning_rate"])
        adapted = adapt(network, row["method"], recipe.rank, recipe.alpha)
        went = train(
            adapted, network, self.data, recipe, row["precision"], seed, self.device
        )
        self.last = max(self.last, time.perf_counter() - began)
        return network, adapted, went

    def tune(self, model: str, method: str) -> None:
        """Try the learning rates that were not tried."""
        for row in tuning(self.options, model, method):
            if self.results.has(row):
                continue
            if self.late():
                return
            began = time.perf_counter()
            network, adapted, went = self.run(model, row)
            recipe = self.recipe
            loss = validation_loss(adapted, network, self.data, recipe, self.device)
            spent = time.perf_counter() - began
            values = {"validation_loss": loss, "losses": _thinned(went.losses)}
            self.results.add(row, values, spent, self.where)
            _say(row, f"validation {loss:.4f}", spent)

    def compare(self, model: str, seed: int) -> None:
        """All the runs of a model and a seed, against its fp32 full fine-tune."""
        options = self.options
        rows = runs(options, model, seed, chosen(options, self.results))
        reference = self._reference(rows)
        alone = None  # the fp32 run of the same method
        for row in rows:
            done = self.results.rows(**row)
            file = self._kept(row | {"precision": "fp32"})
            lost = row["stage"] == "tuned" and row["precision"] == "fp32"
            lost = lost and not file.exists()
            same = reference and done and reference_of(done[0]) == reference.name
            if same and not lost:
                continue
            if self.late():
                return
            began = time.perf_counter()
            network, adapted, went = self.run(model, row)
            found = self._answers(adapted, network, row["precision"])
            if reference is None:
                reference = found["answers"]
                if network.save is not None:
                    weights = {
                        k: v.detach().to("cpu", torch.float32, copy=True)
                        for k, v in network.inner.state_dict().items()
                    }
                    name = f"{row['model']}-tuned-{seed}"
                    network.save(weights, options.scratch / name)
            if row["stage"] == "tuned":
                if row["precision"] == "fp32":
                    _keep(found["answers"], file)
                alone = _kept(file)
            values = self._values(found, reference, alone)
            values |= {"skipped": went.skipped, "losses": _thinned(went.losses)}
            values |= {"training_seconds": round(went.seconds, 2)}
            spent = time.perf_counter() - began
            self.results.add(row, values, spent, self.where)
            means = [values["against"][task] for task in ("instructions", "choices")]
            _say(row, " ".join(f"flips {one['flips']:.3f}" for one in means), spent)

    def _answers(self, model: Any, network: Any, precision: str) -> dict[str, Any]:
        ask = (model, network, self.asked)
        found = {"answers": answer(*ask, precision, self.device)}
        if precision != "fp32":
            found["in_fp32"] = answer(*ask, "fp32", self.device)
        return found

    def _values(self, found: dict[str, Any], reference: Any, alone: Any) -> dict:
        """Of the weights asked in their own precision, and asked in fp32.

        `alone`: answers of the same method's fp32 run: what the precision alone does.
        """
        values = described(found["answers"], self.asked)
        values["against"] = against(found["answers"], reference, self.asked)
        if "in_fp32" in found:
            values["alone"] = against(found["answers"], alone, self.asked)
            values["in_fp32"] = described(found["in_fp32"], self.asked)
            values["in_fp32"]["against"] = against(
                found["in_fp32"], reference, self.asked
            )
            values["asked_in_fp32"] = against(
                found["answers"], found["in_fp32"], self.asked
            )
        return values

    def _kept(self, row: dict) -> Path:
        """Where a run's answers are kept for others to be compared with."""
        name = hashlib.sha256(key(row).encode()).hexdigest()[:16]
        return self.options.scratch / f"answers-{name}.npz"

    def _reference(self, rows: list[dict]) -> Any:
        """The reference's answers of an earlier call, if they are still at hand.

        If they are not, the unit begins anew: on CUDA the same run does not come to the
        same weights again, and rows of one unit must have one reference. A unit whose
        rows are all there is not run at all.
        """
        file = self._kept(rows[0])
        done = self.results.rows(**rows[0])
        if not file.exists() or not done:
            return None
        reference = _kept(file)
        return reference if reference_of(done[0]) == reference.name else None


def _keep(answers: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part.npz")
    np.savez(part, right=answers.right, said=answers.said, logits=answers.logits)
    part.replace(file)


def _kept(file: Path) -> Any:
    with np.load(file) as held:
        return Answers(held["right"], held["said"].tolist(), held["logits"])


def _thinned(losses: list[float]) -> list[float]:
    """A dozen of the losses, the last one among them."""
    every = max(1, len(losses) // 12)
    return [round(loss, 4) for loss in losses[::-1][::every][::-1]]


def _say(row: dict[str, Any], words: str, seconds: float) -> None:
    names = ("stage", "model", "method", "precision", "seed", "learning_rate")
    told = " ".join(str(row[name]) for name in names)
    print(f"{told}: {words}, {seconds:.1f} s", flush=True)
