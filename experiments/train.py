"""Train one of seven byte-level language models of equal size, to measure rounding on.

    python -m experiments.train --kind mamba1 --corpus FOLDER --out FOLDER

`--kind` is mamba1, mamba2, mamba3, gpt_neox, gated_delta (Qwen3-Next), kimi_delta (Kimi
Linear; both of delta rules and MLPs) or hybrid (Mamba-2, attention and MLPs).
All have the same vocabulary (bytes) and numbers of parameters within 2 %, and read the
same batches in the same order: text, and tasks that are solved from the context
(`trained/tasks.py`). Their width is the same, but the hybrid's: it is deeper.

`--corpus` holds the three plain files that `train_bundled` takes, and the same
documents are held out. `--out` gets `config.json` and `model.safetensors` (mamba_ssm's
layout for the Mambas, transformers' for the others; fp32, or with `--matrices bf16`
half the size), `training.json` and `README.md`.

A run can be cut at any moment: it goes on from its last validation when the same
command is given again. With `--seconds` it saves and leaves after that time, with
status 0. With `--finish` a cut run trains no more: its best weights are judged and
written as they are.

The Mambas need an NVIDIA GPU with mamba_ssm and causal_conv1d, and delta rules train
many times faster where there is fla-core. On a CPU all but mamba3 run through
transformers' plain torch code, correctly and thousands of times slower: try
`--width 32 --layers 2 --steps 20 --batch 4 --length 256 --eval-bytes 512`.
"""

import argparse
import sys
import time
from pathlib import Path

from experiments.bundled.corpus import FILES
from studies.study import Study


LEARNING_RATE = {
    "mamba1": 3e-3,
    "mamba2": 3e-3,
    "mamba3": 3e-3,
    "gpt_neox": 2e-3,
    "gated_delta": 3e-3,
    "kimi_delta": 3e-3,
    "hybrid": 3e-3,
}
STUDY = Study(
    "experiments.train",
    "minutes on an H200",
    modules=("torch", "transformers"),
    more="the corpus; for Mambas mamba_ssm and causal_conv1d",
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = STUDY.parser("Train one of seven small language models of equal size.")
    add = made.add_argument
    add("--kind", choices=tuple(LEARNING_RATE), required=True)
    add("--corpus", type=Path, required=True, help=f"folder with {', '.join(FILES)}")
    add("--out", type=Path, required=True, help="folder for the model")
    add("--steps", type=int, default=1500)
    add("--batch", type=int, default=64, help="windows a step")
    add("--length", type=int, default=1024, help="bytes in a window")
    add("--tasks", type=float, default=0.3, help="share of the windows that are tasks")
    add("--width", type=int, default=256, help="of the models; a multiple of 16")
    add(
        "--layers",
        type=int,
        default=5,
        help="of Mambas and delta rules; GPT-NeoX gets 4/5, the hybrid 7",
    )
    add("--learning-rate", type=float, help="at its peak; the kind's own if not given")
    add("--weight-decay", type=float, default=0.1)
    add("--dropout", type=float, default=0.1)
    add("--clip", type=float, default=1.0, help="norm of the gradient")
    add("--every", type=int, default=100, help="steps between validations")
    add("--seconds", type=float, default=0, help="save and leave then; 0: never")
    add("--eval-bytes", type=int, default=0, help="of each document; 0: all of it")
    add("--eval-windows", type=int, default=16, help="of each task, in validation")
    add("--eval-batch", type=int, default=8, help="windows evaluated at a time")
    add("--finish", action="store_true", help="write what a cut run has, as it is")
    add(
        "--matrices",
        choices=("fp32", "bf16"),
        default="fp32",
        help="format that matrices are kept in; judged as they are kept",
    )
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="cuda, cpu or auto")
    return made


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what cannot be trained, before anything is read."""
    for name in ("steps", "batch", "layers", "every", "eval_windows", "eval_batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    if options.length < 256:
        parser.error("--length must be 256 or more: an episode has to fit")
    if options.width < 16 or options.width % 16:
        parser.error("--width must be a multiple of 16")
    if not 0 <= options.tasks < 1 or not 0 <= options.dropout < 1:
        parser.error("--tasks and --dropout must be from 0 to less than 1")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    started = time.monotonic()
    made = parser()
    options = made.parse_args(arguments)
    _check(made, options)
    STUDY.begin(options.out / "model")

    import torch

    from experiments.bundled.corpus import Corpus
    from experiments.bundled.model import choose_device
    from experiments.trained.export import finish
    from experiments.trained.loop import Settings, cut, train
    from experiments.trained.networks import fresh
    from experiments.trained.shapes import equal_shapes, hybrid_shape
    from studies.problems import Problem

    if options.device == "cuda" and not torch.cuda.is_available():
        raise Problem("torch sees no NVIDIA GPU", "use --device cpu")
    device = choose_device(options.device)
    if options.kind == "hybrid":
        shape = hybrid_shape(options.width)
    else:
        shape = equal_shapes(options.width, options.layers)[options.kind]
    chosen = options.learning_rate or LEARNING_RATE[options.kind]
    settings = Settings(
        kind=options.kind,
        width=options.width,
        layers=options.layers,
        steps=options.steps,
        batch=options.batch,
        length=options.length,
        share=options.tasks,
        learning_rate=chosen,
        weight_decay=options.weight_decay,
        dropout=options.dropout,
        clip=options.clip,
        seed=options.seed,
        every=options.every,
        eval_bytes=options.eval_bytes,
        eval_windows=options.eval_windows,
    )
    corpus = Corpus.read(options.corpus)
    options.out.mkdir(parents=True, exist_ok=True)

    def leave(step: int) -> bool:
        late = time.monotonic() - started > options.seconds
        return bool(options.seconds) and late

    if options.finish:
        outcome = cut(settings, options.out)
        if outcome is None:
            raise Problem(
                f"{options.out} holds no cut run that was validated",
                "leave out --finish to train",
            )
    else:
        outcome = train(
            corpus, shape, settings, options.out, device, leave, options.eval_batch
        )
    if outcome is None:
        print(f"saved in {options.out}; run again to go on", file=sys.stderr)
        return
    network = fresh(shape, 0.0, device)
    record = finish(
        corpus,
        network,
        settings,
        outcome,
        _command(options, chosen),
        options.out,
        device,
        options.eval_batch,
        options.matrices,
    )
    score = record["held_out_bits_per_byte"]
    shares = ", ".join(
        f"{name} {one['accuracy']:.3f}"
        for name, one in record["held_out_tasks"].items()
    )
    print(f"{options.kind}: held-out bits per byte {score:.4f}, accuracy {shares}")


def _command(options: argparse.Namespace, learning_rate: float) -> str:
    names = ("steps", "batch", "length", "tasks", "width", "layers", "weight_decay")
    names += ("dropout", "clip", "every", "seed")
    names += ("matrices",) if options.matrices != "fp32" else ()
    settings = " ".join(
        f"--{name.replace('_', '-')} {getattr(options, name)}" for name in names
    )
    return (
        f"python -m experiments.train --kind {options.kind} --corpus FOLDER"
        f" --out FOLDER {settings} --learning-rate {learning_rate}"
    )


if __name__ == "__main__":
    main()
