"""Does a precision change what fine-tuning comes to? Mamba against GPT-NeoX.

    python -m experiments.finetune --corpus FOLDER

Fine-tunes every model by {full, LoRA on all projections, LoRA on some} x {fp32, fp16,
bf16} from five seeds, with torch's autocast and peft, and asks the same questions after
0, 1, 3 and 5 examples (arXiv:2406.00209, section on fine-tuning). What is compared is
the accuracy with that of the fp32 full fine-tune of the same seed, and what that number
hides: answers that flip, KL, distance of logits. The yardstick is the same fp32 recipe
with another seed, and with the same seed again.

`--corpus` holds GSM8K's gsm8k_train.jsonl and gsm8k_test.jsonl. `--models` takes
folders or names on the Hub; `--instructions` a file of items to learn from, such as
Alpaca's alpaca_data.json. On the Hub's models the questions are the same.

The learning rate is tuned for each model and method in fp32, by validation loss. Units
of work (a model and a method to tune; a model and a seed) run in processes of their
own, `--workers` at a time; each row is written when it is found, and the same command
goes on with what is missing. `--budget` ends it in time. On a GPU the Mambas need
mamba_ssm and causal_conv1d. Writes results/finetune.json, .md and .png.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.results import FOLDER, Results, environment, key


MODELS = tuple(
    f"experiments/models/{name}" for name in ("mamba1", "mamba2", "gpt_neox")
)
# Fewer rates than a careful user would try, the same number for each method.
RATES = {"full": (1e-4, 3e-4, 1e-3, 3e-3), "lora": (5e-4, 2e-3, 5e-3, 1e-2)}
TUNING_SEED = 1000
_SLACK = 1.3  # a run may take this much longer than the one before


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.finetune",
        description="Fine-tune in several precisions and compare what is answered.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--corpus", type=Path, required=True, help="folder with GSM8K's two files")
    add("--instructions", type=Path, help="file of items to learn from")
    add("--models", nargs="+", default=list(MODELS), help="folders or names")
    add("--methods", nargs="+", default=["full", "lora-all", "lora-some"])
    add("--precisions", nargs="+", default=["fp32", "fp16", "bf16"])
    add("--seeds", type=int, default=5)
    add("--rates", type=float, nargs="+", help="to tune over, for every method")
    add("--steps", type=int, default=120)
    add("--batch", type=int, default=16, help="windows a step")
    add("--length", type=int, default=384, help="tokens in a window")
    add("--rank", type=int, default=8, help="of LoRA")
    add("--alpha", type=int, default=16, help="of LoRA")
    add("--clip", type=float, default=1.0, help="norm of the gradient")
    add("--questions", type=int, default=128, help="of a task, after each number shown")
    add("--workers", type=int, default=1, help="processes side by side")
    add("--budget", type=float, default=0, help="seconds; 0: no end")
    add("--device", default="auto", help="cuda, cpu or auto")
    add("--out", type=Path, default=FOLDER / "finetune.json")
    add("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "finetune")
    add("--unit", nargs=2, metavar=("STAGE", "WHICH"), help=argparse.SUPPRESS)
    add("--until", type=float, default=0, help=argparse.SUPPRESS)
    add("--no-page", action="store_true", help="leave out figures, .md and .png")
    return made


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
        | {"stage": "tune", "model": _short(model), "method": method}
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
                found[_short(model), method] = best["settings"]["learning_rate"]
    return found


def runs(options: argparse.Namespace, model: str, seed: int, lr: dict) -> list[dict]:
    """Settings of the rows of a model and a seed, the reference first."""
    name = _short(model)

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


def _short(model: str) -> str:
    return Path(model).name if Path(model).exists() else model


class Unit:
    """One unit of work, in this process."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from experiments.bundled.model import choose_device
        from experiments.finetuning.items import Data
        from experiments.finetuning.networks import deterministic
        from experiments.finetuning.training import Recipe, ask_all

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
        self.results = Results(options.out, _command(options))
        self.where = environment(self.device.type)
        self.last = 0.0

    def late(self) -> bool:
        """Whether another run would end after the budget."""
        until = self.options.until
        return bool(until) and time.time() + _SLACK * self.last > until

    def run(self, model: str, row: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Fine-tune as the row says: the network, the adapted model, how it went."""
        import torch

        from experiments.finetuning.networks import adapt, load
        from experiments.finetuning.training import train

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
        from experiments.finetuning.training import validation_loss

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
        import torch

        options = self.options
        rows = runs(options, model, seed, chosen(options, self.results))
        reference = self._reference(rows)
        alone = None  # the fp32 run of the same method
        for row in rows:
            done = self.results.rows(**row)
            file = self._kept(row | {"precision": "fp32"})
            if reference and done and _reference_of(done[0]) == reference.name:
                continue
            if self.late():
                return
            began = time.perf_counter()
            network, adapted, went = self.run(model, row)
            found = self._answers(adapted, network, row["precision"])
            if reference is None:
                reference = found["answers"]
                if seed == 0 and network.save is not None:
                    weights = {
                        k: v.detach().to("cpu", torch.float32, copy=True)
                        for k, v in network.inner.state_dict().items()
                    }
                    network.save(weights, options.scratch / f"{row['model']}-tuned")
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
        from experiments.finetuning.training import answer

        ask = (model, network, self.asked)
        found = {"answers": answer(*ask, precision, self.device)}
        if precision != "fp32":
            found["in_fp32"] = answer(*ask, "fp32", self.device)
        return found

    def _values(self, found: dict[str, Any], reference: Any, alone: Any) -> dict:
        """Of the weights asked in their own precision, and asked in fp32.

        `alone`: answers of the same method's fp32 run: what the precision alone does.
        """
        from experiments.finetuning.training import against, described

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
        return reference if _reference_of(done[0]) == reference.name else None


def _reference_of(row: dict[str, Any]) -> str:
    return row["values"]["against"]["reference"]


def _keep(answers: Any, file: Path) -> None:
    import numpy as np

    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part.npz")
    np.savez(part, right=answers.right, said=answers.said, logits=answers.logits)
    part.replace(file)


def _kept(file: Path) -> Any:
    import numpy as np

    from experiments.finetuning.training import Answers

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


def _command(options: argparse.Namespace) -> str:
    settings = " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in common(options).items()
        if value is not None
    )
    return f"python -m experiments.finetune --corpus FOLDER {settings}"


def complete(results: Results, rows: list[dict[str, Any]]) -> bool:
    """Whether all these rows are there, against one reference."""
    found = [results.rows(**row) for row in rows]
    return all(found) and len({_reference_of(one[0]) for one in found}) == 1


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
        if all((_short(model), method) in lr for method in options.methods)
        and not complete(results, runs(options, model, seed, lr))
    ]


def _all(options: argparse.Namespace, arguments: list[str], until: float) -> None:
    """Run what is missing, a stage after the other, some units at a time."""
    for stage in ("tune", "compare"):
        waiting = missing(options, stage)
        total, began = len(waiting), time.time()
        print(f"{stage}: {total} units to run", flush=True)
        running: list[tuple[str, Any, Any]] = []
        while waiting or running:
            while waiting and len(running) < options.workers:
                if until and time.time() > until - 5:
                    waiting = []
                    break
                name = waiting.pop(0)
                log = options.scratch / f"{stage}-{name.replace('/', '-')}.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                file = log.open("w")
                call = [sys.executable, "-m", "experiments.finetune", *arguments]
                call += ["--unit", stage, name, "--until", str(until)]
                process = subprocess.Popen(call, stdout=file, stderr=file)
                running.append((name, process, log))
            running = [one for one in running if not _ended(stage, one, until)]
            time.sleep(0.2)
        left = len(missing(options, stage))
        print(
            f"{stage}: {total - left} of {total} units in {time.time() - began:.0f} s",
            flush=True,
        )


def _ended(stage: str, one: tuple[str, Any, Any], until: float) -> bool:
    """Whether a unit's process is over; it is ended if the time is."""
    name, process, log = one
    if until and time.time() > until + 5 and process.poll() is None:
        process.kill()
        process.wait()
    if process.poll() is None:
        return False
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    state = "" if process.returncode == 0 else f" ended with {process.returncode}"
    shown = lines[-1:] if process.returncode == 0 else lines[-12:]
    print(f"{stage} {name}{state}: " + "\n  ".join(shown), flush=True)
    return True


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(given)
    if options.precisions[0] != "fp32" or options.methods[0] != "full":
        parser().error("full and fp32 come first: all others are compared with them")
    if options.unit:
        stage, which = options.unit
        model, last = which.rsplit("|", 1)
        unit = Unit(options)
        unit.tune(model, last) if stage == "tune" else unit.compare(model, int(last))
        return
    until = time.time() + options.budget if options.budget else 0.0
    _all(options, given, until)
    if options.no_page:
        return
    from experiments.finetuning.page import publish

    publish(options.out)


if __name__ == "__main__":
    main()
