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
mamba_ssm and causal_conv1d. Writes finetune.json, .md and .png.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.finetuning.plan import MODELS, missing
from experiments.results import FOLDER
from studies.study import Study


STUDY = Study(
    "experiments.finetune",
    "an hour of processes beside an H200",
    FOLDER / "finetune.json",
    ("torch", "transformers", "peft"),
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = STUDY.parser("Fine-tune in several precisions and compare what is answered.")
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
    add("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "finetune")
    add("--unit", nargs=2, metavar=("STAGE", "WHICH"), help=argparse.SUPPRESS)
    add("--until", type=float, default=0, help=argparse.SUPPRESS)
    add("--no-page", action="store_true", help="leave out figures, .md and .png")
    return made


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
    STUDY.begin(options.out)
    if options.precisions[0] != "fp32" or options.methods[0] != "full":
        parser().error("full and fp32 come first: all others are compared with them")
    if options.unit:
        stage, which = options.unit
        model, last = which.rsplit("|", 1)
        from experiments.finetuning.unit import Unit

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
