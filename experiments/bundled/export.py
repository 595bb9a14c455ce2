"""The folder that ships: written by a run, measured again, its card written again."""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

from .card import card
from .corpus import SPLIT, Corpus
from .environment import environment
from .evaluation import CONTEXT, OPENING, WINDOW, bits_per_byte, evaluate, opening
from .model import choose_device, load
from .training import train


LIMIT = 5_000_000  # bytes in all that may ship


def run(options: argparse.Namespace) -> None:
    """Train, save, read the files back, and judge what was read."""
    device = choose_device(options.device)
    corpus = Corpus.read(options.corpus)
    options.out.mkdir(parents=True, exist_ok=True)
    model, outcome = train(corpus, options, device)
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".part-") as folder:
        part = Path(folder)
        model.cpu().save_pretrained(part)
        (part / "generation_config.json").unlink(missing_ok=True)
        (part / "heldout.txt").write_bytes(corpus.held_out_text())
        saved = load(part).to(device)
        score, each, scored = evaluate(
            saved,
            corpus.texts("held_out", options.eval_bytes),
            device,
            options.eval_batch,
        )
        described = corpus.describe()
        for row, bits in zip(described["documents"]["held_out"], each, strict=True):
            row["bits_per_byte"] = round(bits, 4)
        record = {
            "name": "mamba1-bytes",
            "licence": "Apache-2.0",
            "parameters": sum(p.numel() for p in saved.parameters()),
            "config": {
                "hidden_size": options.hidden,
                "num_hidden_layers": options.layers,
                "state_size": 16,
                "vocab_size": 256,
            },
            "held_out_bits_per_byte": round(score, 4),
            "evaluation": {
                "dtype": "float32",
                "bytes_scored": scored,
                "context_at_least": CONTEXT,
                "window": WINDOW,
                "opening_bytes": OPENING,
                "opening_bits_per_byte": round(
                    opening(saved, corpus.held_out_text(), device), 4
                ),
            },
            "data": described,
            "training": {
                "command": _command(options),
                "seed": options.seed,
                "steps": options.steps,
                "batch": options.batch,
                "length": options.length,
                "optimizer": "AdamW, betas 0.9 and 0.95",
                "learning_rate": options.learning_rate,
                "weight_decay": options.weight_decay,
                "dropout": options.dropout,
                "clip": options.clip,
                "arithmetic": "bf16 autocast, fp32 weights"
                if device.type == "cuda"
                else "fp32",
                "note": options.note,
                **outcome,
            },
            "environment": environment(device),
            "files": [
                {
                    "name": name,
                    "bytes": (part / name).stat().st_size,
                    "sha256": hashlib.sha256((part / name).read_bytes()).hexdigest(),
                }
                for name in ("config.json", "model.safetensors", "heldout.txt")
            ],
        }
        (part / "training.json").write_text(json.dumps(record, indent=1) + "\n")
        (part / "README.md").write_text(card(record))
        total = sum(file.stat().st_size for file in part.iterdir())
        if total > LIMIT:
            print(f"warning: {total:,} bytes, over {LIMIT:,}", file=sys.stderr)
        for file in sorted(part.iterdir()):
            file.chmod(0o644)
            os.replace(file, options.out / file.name)
    print(f"held-out bits per byte: {score:.4f}  ({options.out})")


def _command(options: argparse.Namespace) -> str:
    settings = " ".join(
        f"--{name.replace('_', '-')} {getattr(options, name)}"
        for name in (
            *("steps", "batch", "length", "hidden", "layers"),
            *("learning_rate", "weight_decay", "dropout", "seed"),
        )
    )
    return (
        f"python -m experiments.train_bundled --corpus FOLDER --out FOLDER {settings}"
    )


def measure_again(options: argparse.Namespace) -> None:
    """Score a finished folder's model on the held-out documents again."""
    device = choose_device(options.device)
    corpus = Corpus.read(options.corpus)
    model = load(options.evaluate).to(device)
    bits, scored = 0.0, 0
    texts = corpus.texts("held_out", options.eval_bytes)
    for document, text in zip(SPLIT["held_out"], texts, strict=True):
        more, count = bits_per_byte(model, text, device, options.eval_batch)
        bits, scored = bits + more, scored + count
        print(
            f"{more / count:.4f}  {count:,} bytes  {document.title}",
            file=sys.stderr,
            flush=True,
        )
    print(f"held-out bits per byte: {bits / scored:.4f}  ({scored:,} bytes)")
    if options.record:
        file = options.evaluate / "training.json"
        record = json.loads(file.read_text())
        where = environment(device)
        record["evaluation"]["again"] = {
            "bits_per_byte": round(bits / scored, 4),
            "bytes_scored": scored,
            **{name: where[name] for name in ("device", "torch", "transformers")},
        }
        _replace(file, json.dumps(record, indent=1) + "\n")
        _replace(options.evaluate / "README.md", card(record))


def card_again(options: argparse.Namespace) -> None:
    """Write a finished folder's card again, with the runs compared with it."""
    file = options.card / "training.json"
    record = json.loads(file.read_text())
    if options.against:
        others = [
            json.loads((f / "training.json").read_text()) for f in options.against
        ]
        runs = [record, *others]
        runs.sort(key=lambda run: run["training"]["validation_bits_per_byte"])
        if runs[0] is not record:
            raise SystemExit(f"error: {options.card} is not the best in validation")
        record["runs_compared"] = [
            {
                "command": run["training"]["command"],
                "parameters": run["parameters"],
                "validation_bits_per_byte": run["training"]["validation_bits_per_byte"],
                "held_out_bits_per_byte": run["held_out_bits_per_byte"],
            }
            for run in runs
        ]
    _replace(file, json.dumps(record, indent=1) + "\n")
    _replace(options.card / "README.md", card(record))


def _replace(file: Path, text: str) -> None:
    part = file.with_name(f".part-{file.name}")
    part.write_text(text)
    os.replace(part, file)
