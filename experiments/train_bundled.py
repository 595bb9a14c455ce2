"""Train the byte-level Mamba-1 language model that ships inside `lyapunov`.

    python -m experiments.train_bundled --corpus FOLDER --out FOLDER

`--corpus` holds three plain files, all in the public domain:

- `shakespeare.txt`: plays ("tiny Shakespeare");
- `state_union.txt`: State of the Union addresses, 1945 to 2006, one after the other;
- `inaugural.txt`: inaugural addresses of US presidents, one after the other.

Whole documents are held out (`SPLIT` in `bundled/corpus.py`), found by their opening
words: the model is chosen by its validation documents and judged once, at the end, by
its held-out ones.
`--out` gets `config.json` and `model.safetensors` as transformers writes them,
`heldout.txt` (held-out English to try the model on), `training.json` (all that is known
about the run) and `README.md` (the model card, made from `training.json`).

With `mamba_ssm` and `causal_conv1d` installed transformers uses their CUDA kernels, and
the default run takes minutes on a data-centre GPU. Without them, or on a CPU, the same
script runs through transformers' plain torch code, correctly and thousands of times
slower: try `--steps 20 --batch 2 --length 128 --eval-bytes 2048` there.

Two more uses: `--evaluate` measures a finished folder again on all held-out documents,
`--card` writes its README.md again from its training.json and, with `--against`, first
adds the runs that were compared with it.
"""

import argparse
from pathlib import Path

from experiments.bundled.corpus import FILES
from experiments.bundled.export import card_again, measure_again, run
from studies.study import Study


STUDY = Study(
    "experiments.train_bundled",
    "minutes on an H200",
    modules=("torch", "transformers"),
    more="the corpus",
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = STUDY.parser("Train the byte-level Mamba-1 model that ships with lyapunov.")
    add = made.add_argument
    add("--corpus", type=Path, help=f"folder with {', '.join(FILES)}")
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="train; folder for the model")
    what.add_argument("--evaluate", type=Path, help="measure this model again")
    what.add_argument("--card", type=Path, help="write this model's card again")
    add("--steps", type=int, default=3000)
    add("--batch", type=int, default=64, help="windows a step")
    add("--length", type=int, default=1024, help="bytes in a window")
    add("--hidden", type=int, default=128, help="width of the model")
    add("--layers", type=int, default=9)
    add("--learning-rate", type=float, default=4e-3, help="at its peak")
    add("--weight-decay", type=float, default=0.1)
    add("--dropout", type=float, default=0.1)
    add("--clip", type=float, default=1.0, help="norm of the gradient")
    add("--every", type=int, default=100, help="steps between validations")
    add("--eval-batch", type=int, default=8, help="windows evaluated at a time")
    add("--eval-bytes", type=int, default=0, help="of each document; 0: all of it")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="cuda, cpu or auto")
    add("--record", action="store_true", help="with --evaluate: write it down, too")
    add("--note", default="", help="a remark on the run, for the card")
    add("--against", type=Path, nargs="+", help="with --card: runs not chosen")
    return made


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    made = parser()
    options = made.parse_args(arguments)
    STUDY.begin()
    if options.card:
        card_again(options)
        return
    if options.corpus is None:
        made.error("--corpus is needed")
    if options.evaluate:
        measure_again(options)
    else:
        run(options)


if __name__ == "__main__":
    main()
