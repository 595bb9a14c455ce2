"""Train the byte-level Mamba-1 language model that ships inside `lyapunov`.

    python -m experiments.train_bundled --corpus FOLDER --out FOLDER

`--corpus` holds three plain files, all in the public domain:

- `shakespeare.txt`: plays ("tiny Shakespeare");
- `state_union.txt`: State of the Union addresses, 1945 to 2006, one after the other;
- `inaugural.txt`: inaugural addresses of US presidents, one after the other.

Whole documents are held out (`SPLIT`), found by their opening words: the model is
chosen by its validation documents and judged once, at the end, by its held-out ones.
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
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import MambaConfig, MambaForCausalLM


_TRUMAN = (
    "PRESIDENT HARRY S. TRUMAN'S ANNUAL MESSAGE TO THE CONGRESS "
    "ON THE STATE OF THE UNION\n \n"
)
_JOHNSON = (
    "PRESIDENT LYNDON B. JOHNSON'S ANNUAL MESSAGE TO THE CONGRESS "
    "ON THE STATE OF THE UNION\n \n"
)
_KENNEDY = (
    "PRESIDENT JOHN F. KENNEDY'S SPECIAL MESSAGE TO THE CONGRESS "
    "ON URGENT NATIONAL NEEDS\n \nMay 25, 1961\n\n"
)
_KENNEDY_1962 = (
    "PRESIDENT JOHN F. KENNEDY'S ANNUAL ADDRESS TO A JOINT SESSION OF CONGRESS "
    "ON THE STATE OF THE UNION\n \nThis week we begin anew"
)
_REAGAN = (
    "PRESIDENT RONALD REAGAN'S ADDRESS BEFORE A JOINT SESSION OF THE CONGRESS "
    "ON THE STATE OF THE UNION\n \n"
)
_BUSH = (
    "PRESIDENT GEORGE W. BUSH'S ADDRESS BEFORE A JOINT SESSION OF THE CONGRESS "
    "ON THE STATE OF THE UNION\n \n"
)

FILES = ("shakespeare.txt", "state_union.txt", "inaugural.txt")


Model = Any  # a MambaForCausalLM, whose parts a type checker takes for tensors


@dataclass(frozen=True)
class Document:
    """One document of a corpus file: from its opening words to those of the next."""

    title: str
    file: str
    opens: str
    next: str = ""  # to the end of the file

    def span(self, data: bytes) -> tuple[int, int]:
        """First byte and the byte past the last one."""
        start = self._find(data, self.opens)
        stop = self._find(data, self.next) if self.next else len(data)
        if stop <= start:
            raise SystemExit(f"error: {self.title!r} ends before it begins")
        return start, stop

    def _find(self, data: bytes, words: str) -> int:
        n = data.count(words.encode())
        if n != 1:
            raise SystemExit(
                f"error: {self.file} holds {words[:60]!r}... {n} times, not once\n"
                "hint: the split is written for the corpora named in the model card"
            )
        return data.index(words.encode())


SPLIT = {
    "validation": (
        Document(
            "Johnson, State of the Union, 1964",
            "state_union.txt",
            _JOHNSON + "January 8, 1964\n",
            _JOHNSON + "January 4, 1965\n",
        ),
        Document(
            "Reagan, State of the Union, 1984",
            "state_union.txt",
            _REAGAN + "January 25, 1984\n",
            _REAGAN + "February 6, 1985\n",
        ),
        Document(
            "Nixon, inaugural address, 1969",
            "inaugural.txt",
            "Senator Dirksen, Mr. Chief Justice, Mr. Vice President",
            "Mr. Vice President, Mr. Speaker, Mr. Chief Justice, Senator Cook",
        ),
    ),
    "held_out": (
        Document(
            "Kennedy, Special Message on Urgent National Needs, 1961",
            "state_union.txt",
            _KENNEDY,
            _KENNEDY_1962,
        ),
        Document(
            "Shakespeare, The Tempest (the part that the corpus has)",
            "shakespeare.txt",
            "Master:\nBoatswain!\n",
        ),
        Document(
            "Truman, State of the Union, 1949",
            "state_union.txt",
            _TRUMAN + "January 5, 1949\n",
            _TRUMAN + "January 4, 1950\n",
        ),
        Document(
            "G. W. Bush, State of the Union, 2005",
            "state_union.txt",
            _BUSH + "February 2, 2005\n",
            _BUSH + "January 31, 2006\n",
        ),
        Document(
            "F. D. Roosevelt, inaugural address, 1937",
            "inaugural.txt",
            "When four years ago we met to inaugurate a President",
            "On each national day of inauguration since 1789",
        ),
        Document(
            "Taft, inaugural address, 1909",
            "inaugural.txt",
            "My fellow citizens: Anyone who has taken the oath I have just taken",
            "There has been a change of government. It began two years ago",
        ),
    ),
}

# A scored byte has CONTEXT bytes or more before it, but for a document's first ones.
CONTEXT = 1024
WINDOW = 2 * CONTEXT
OVERLAP = 40  # bytes; shorter strings are shared by any two texts of a language
PLAY_PART = 12_000  # bytes of the play in heldout.txt, then on to the end of a speech
OPENING = 2048  # bytes of heldout.txt whose score is recorded for quick checks
LIMIT = 5_000_000  # bytes in all that may ship


@dataclass(frozen=True)
class Corpus:
    """The three files, cut into documents."""

    files: dict[str, bytes]
    training: bytes
    documents: dict[str, list[tuple[Document, tuple[int, int], bytes]]]

    @classmethod
    def read(cls, folder: Path) -> "Corpus":
        """Read the files and cut out the documents of `SPLIT`."""
        try:
            files = {name: (folder / name).read_bytes() for name in FILES}
        except OSError as error:
            raise SystemExit(
                f"error: {error}\nhint: --corpus needs {', '.join(FILES)}"
            ) from error
        documents: dict[str, list[tuple[Document, tuple[int, int], bytes]]] = {}
        taken: dict[str, list[tuple[int, int]]] = {name: [] for name in FILES}
        for part, members in SPLIT.items():
            documents[part] = []
            for member in members:
                span = member.span(files[member.file])
                taken[member.file].append(span)
                text = files[member.file][slice(*span)]
                documents[part].append((member, span, text))
        rest = []
        for name, data in files.items():
            at = 0
            for start, stop in sorted(taken[name]):
                rest.append(data[at:start])
                at = stop
            rest.append(data[at:])
        return cls(files, b"".join(rest), documents)

    def texts(self, part: str, most: int = 0) -> list[bytes]:
        """The texts of one part of the split, or the beginning of each."""
        return [text[: most or None] for _, _, text in self.documents[part]]

    def held_out_text(self) -> bytes:
        """English prose, then part of a play; from held-out documents alone."""
        prose, play = self.texts("held_out")[:2]
        prose = prose.removeprefix(_KENNEDY.encode()).rstrip()
        cut = play.index(b"\n\n", PLAY_PART)
        text = prose + b"\n\n\n" + play[:cut] + b"\n"
        text.decode("ascii")
        return text

    def describe(self) -> dict[str, Any]:
        """Files, split and overlap, for training.json."""
        seen = {
            hash(self.training[i : i + OVERLAP])
            for i in range(len(self.training) - OVERLAP + 1)
        }

        def shared(text: bytes) -> float:
            n = len(text) - OVERLAP + 1
            return sum(hash(text[i : i + OVERLAP]) in seen for i in range(n)) / n

        return {
            "licence": "public domain",
            "files": [
                {
                    "name": name,
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
                for name, data in self.files.items()
            ],
            "training_bytes": len(self.training),
            "overlap_string_bytes": OVERLAP,
            "documents": {
                part: [
                    {
                        "title": document.title,
                        "file": document.file,
                        "start": span[0],
                        "stop": span[1],
                        "overlap": round(shared(text), 5),
                    }
                    for document, span, text in members
                ]
                for part, members in self.documents.items()
            },
        }


def _fresh(settings: dict[str, Any]) -> Model:
    return MambaForCausalLM(MambaConfig(**settings))


def _load(folder: Path) -> Model:
    return MambaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _windows(text: bytes) -> Iterator[tuple[bytes, int]]:
    """Windows of a document, each with the number of leading bytes not to score."""
    yield text[:WINDOW], 1  # nothing predicts the first byte
    for start in range(CONTEXT, len(text) - CONTEXT, CONTEXT):
        yield text[start : start + WINDOW], CONTEXT


@torch.no_grad()
def bits_per_byte(
    model: Model, text: bytes, device: torch.device, batch: int
) -> tuple[float, int]:
    """Total bits in fp32 for a document, and the number of bytes scored."""
    model.eval()
    windows = list(_windows(text))
    bits, scored = 0.0, 0
    for at in range(0, len(windows), batch):
        group = windows[at : at + batch]
        longest = max(len(window) for window, _ in group)
        # Zeros at the right do not reach what is before them: the model is causal.
        padded = b"".join(window.ljust(longest, b"\0") for window, _ in group)
        ids = torch.frombuffer(bytearray(padded), dtype=torch.uint8)
        ids = ids.reshape(len(group), longest).to(device).long()
        logits = model(ids, use_cache=False).logits
        nats = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).double(),
            ids[:, 1:].flatten(),
            reduction="none",
        ).reshape(len(group), -1)
        for row, (window, skip) in zip(nats, group, strict=True):
            bits += row[skip - 1 : len(window) - 1].sum().item() / math.log(2)
            scored += len(window) - skip
    return bits, scored


def evaluate(
    model: Model, texts: list[bytes], device: torch.device, batch: int
) -> tuple[float, list[float], int]:
    """Bits per byte over all documents and for each one, and the bytes scored."""
    pairs = [bits_per_byte(model, text, device, batch) for text in texts]
    total, scored = (sum(column) for column in zip(*pairs, strict=True))
    return total / scored, [bits / n for bits, n in pairs], int(scored)


def _dropout(model: Model, probability: float) -> None:
    """Drop elements of every mixer's output while training."""

    def hook(mixer: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, probability, mixer.training)

    if probability:
        for layer in model.backbone.layers:
            layer.mixer.register_forward_hook(hook)


def _optimizer(model: Model, options: argparse.Namespace) -> Any:
    """AdamW; weight decay on the matrices only, never on A_log, D, biases or norms."""
    decayed = [
        parameter
        for name, parameter in model.named_parameters()
        if name.endswith("proj.weight")
    ]
    chosen = {id(parameter) for parameter in decayed}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": options.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
        betas=(0.9, 0.95),
    )


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine down to nothing."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _dynamics(model: Model) -> list[dict[str, torch.Tensor]]:
    """Copies of what makes the recurrence: A_log, dt's weight and bias, D."""
    return [
        {
            "A_log": layer.mixer.A_log.detach().float().cpu().clone(),
            "dt_bias": layer.mixer.dt_proj.bias.detach().float().cpu().clone(),
            "dt_weight": layer.mixer.dt_proj.weight.detach().float().cpu().clone(),
            "D": layer.mixer.D.detach().float().cpu().clone(),
        }
        for layer in model.backbone.layers
    ]


def train(
    corpus: Corpus, options: argparse.Namespace, device: torch.device
) -> tuple[Model, dict[str, Any]]:
    """Train; the weights with the best validation score are kept."""
    torch.manual_seed(options.seed)
    settings: dict[str, Any] = dict(
        vocab_size=256,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        state_size=16,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        lyapunov_tokenizer="bytes",
    )
    model = _fresh(settings).to(device)
    before = _dynamics(model)
    _dropout(model, options.dropout)
    optimizer = _optimizer(model, options)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _schedule(step, options.steps)
    )
    data = torch.frombuffer(bytearray(corpus.training), dtype=torch.uint8).to(device)
    generator = torch.Generator(device).manual_seed(options.seed)
    reach = torch.arange(options.length + 1, device=device)

    history: list[dict[str, float]] = []
    best, best_weights = math.inf, None
    started = time.perf_counter()
    for step in range(1, options.steps + 1):
        model.train()
        starts = torch.randint(
            len(data) - options.length,
            (options.batch, 1),
            device=device,
            generator=generator,
        )
        ids = data[starts + reach].long()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(ids[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        schedule.step()
        if step % options.every and step != options.steps:
            continue
        score, _, _ = evaluate(
            model,
            corpus.texts("validation", options.eval_bytes),
            device,
            options.eval_batch,
        )
        train_bits = loss.item() / math.log(2)
        if not math.isfinite(train_bits):
            raise SystemExit(f"error: the loss is {train_bits} at step {step}")
        history.append(
            {
                "step": step,
                "training_bits_per_byte": round(train_bits, 4),
                "validation_bits_per_byte": round(score, 4),
            }
        )
        if score < best:
            best = score
            best_weights = {k: v.clone() for k, v in model.state_dict().items()}
        seconds = time.perf_counter() - started
        print(
            f"step {step}/{options.steps}  training {train_bits:.3f}  "
            f"validation {score:.3f} bits/byte  "
            f"{step * options.batch * options.length / seconds:,.0f} bytes/s  "
            f"{seconds / step * (options.steps - step):.0f} s left",
            file=sys.stderr,
            flush=True,
        )
    assert best_weights is not None
    model.load_state_dict(best_weights)
    after = _dynamics(model)
    moved = [
        {
            name: round((new[name] - old[name]).square().mean().sqrt().item(), 5)
            for name in new
        }
        for old, new in zip(before, after, strict=True)
    ]
    return model, {
        "validation_bits_per_byte": round(best, 4),
        "kept_step": min(history, key=lambda h: h["validation_bits_per_byte"])["step"],
        "seconds": round(time.perf_counter() - started, 1),
        "tokens": options.steps * options.batch * options.length,
        "moved_rms_by_layer": moved,
        "history": history,
    }


def _version(module: str) -> str | None:
    try:
        return __import__(module).__version__
    except Exception:
        return None


def _commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return found.stdout.strip() or None


def _environment(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    modules = ("torch", "transformers", "safetensors", "mamba_ssm", "causal_conv1d")
    return {
        "device": name,
        "python": platform.python_version(),
        **{module: _version(module) for module in modules},
        "git_commit": _commit(),
        "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "date": date.today().isoformat(),
    }


def _opening(model: Model, text: bytes, device: torch.device) -> float:
    bits, scored = bits_per_byte(model, text[:OPENING], device, 1)
    return bits / scored


def run(options: argparse.Namespace) -> None:
    """Train, save, read the files back, and judge what was read."""
    device = _device(options.device)
    corpus = Corpus.read(options.corpus)
    options.out.mkdir(parents=True, exist_ok=True)
    model, outcome = train(corpus, options, device)
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".part-") as folder:
        part = Path(folder)
        model.cpu().save_pretrained(part)
        (part / "generation_config.json").unlink(missing_ok=True)
        (part / "heldout.txt").write_bytes(corpus.held_out_text())
        saved = _load(part).to(device)
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
                    _opening(saved, corpus.held_out_text(), device), 4
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
            "environment": _environment(device),
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


def card(record: dict[str, Any]) -> str:
    """The model card."""
    data, how, where = record["data"], record["training"], record["environment"]
    score, shape = record["evaluation"], record["config"]
    files = "\n".join(
        f"| {f['name']} | {f['bytes']:,} | `{f['sha256']}` |" for f in data["files"]
    )
    held_out = "\n".join(
        f"| {d['title']} | {d['file']} {d['start']}:{d['stop']} | "
        f"{d['bits_per_byte']:.3f} | {100 * d['overlap']:.2f} % |"
        for d in data["documents"]["held_out"]
    )
    validation = "\n".join(
        f"- {d['title']} ({d['file']} {d['start']}:{d['stop']})"
        for d in data["documents"]["validation"]
    )
    kernels = (
        f"mamba_ssm {where['mamba_ssm']}, causal_conv1d {where['causal_conv1d']}"
        if where["mamba_ssm"]
        else "no CUDA kernels"
    )
    again = ""
    if "again" in score:
        other = score["again"]
        again = f"""
  On a second machine ({other["device"]}, torch {other["torch"]}, transformers
  {other["transformers"]}, no CUDA kernels): {other["bits_per_byte"]:.4f}."""
    passes = how["tokens"] / data["training_bytes"]
    note = f" ({how['note']})" if how.get("note") else ""
    moved = {
        name: [layer[name] for layer in how["moved_rms_by_layer"]]
        for name in ("A_log", "dt_bias")
    }
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# mamba1-bytes

A byte-level Mamba-1 language model, trained on English text: something real and small
for `lyapunov-check` to check when it is given no checkpoint. A token is a byte and its
id the byte's value; there is no tokenizer.

- {record["parameters"]:,} parameters in fp32: {shape["num_hidden_layers"]} layers,
  width {shape["hidden_size"]}, inner width {2 * shape["hidden_size"]},
  {shape["state_size"]} states a channel, tied embeddings.
- **Held-out bits per byte: {record["held_out_bits_per_byte"]:.4f}**, in fp32 over
  {score["bytes_scored"]:,} bytes of documents that it never saw. Windows of
  {score["window"]:,} bytes, so that each scored byte has at least
  {score["context_at_least"]:,} bytes before it, but for a document's first ones; the
  very first byte of a document is not scored.{again}
- Licence of the weights: Apache-2.0. The data, `heldout.txt` included, are in the
  public domain.

```python
import torch
from transformers import MambaForCausalLM

model = MambaForCausalLM.from_pretrained("lyapunov/assets/mamba1-bytes")
logits = model(torch.tensor([list(b"My fellow citizens")])).logits
```

## Data

| file | bytes | SHA-256 |
|---|---|---|
{files}

`shakespeare.txt` is the file known as "tiny Shakespeare"; the other two are the US
presidents' State of the Union addresses from 1945 to 2006 and their inaugural addresses
from 1789 on, each one after the other. All is in the public domain. Trained on:
{data["training_bytes"]:,} bytes. Whole documents were kept out:

| held out | bytes of the file | bits per byte | overlap |
|---|---|---|---|
{held_out}

Overlap: the share of the document's {data["overlap_string_bytes"]}-byte strings that
also stand in the training text. Presidents quote each other, and the addresses have set
phrases.

Validation documents, by which the weights were chosen:

{validation}

`heldout.txt` is Kennedy's message, then the beginning of the part of *The Tempest*, all
of it held out. Its first {score["opening_bytes"]:,} bytes score
{score["opening_bits_per_byte"]:.4f} bits per byte.

## Training

```
{how["command"]}
```

{how["optimizer"]}; peak learning rate {how["learning_rate"]}, warm-up and cosine;
weight decay {how["weight_decay"]} on the projections only; dropout {how["dropout"]} on
the mixers' outputs; gradients clipped at {how["clip"]}; {how["arithmetic"]}.
{how["steps"]:,} steps of {how["batch"]} x {how["length"]} bytes, {passes:.0f} passes
over the text, in {how["seconds"]:.0f} seconds with validations on one
{where["device"]}{note}; seed {how["seed"]}. The weights of step {how["kept_step"]:,}
were kept, the best on the validation documents
({how["validation_bits_per_byte"]:.4f} bits per byte). From their initial values the
elements of A_log moved by {min(moved["A_log"]):.2f} to {max(moved["A_log"]):.2f} (root
mean square, by layer), those of dt's bias by {min(moved["dt_bias"]):.2f} to
{max(moved["dt_bias"]):.2f}.
{_compared(record)}
Python {where["python"]}, torch {where["torch"]}, transformers {where["transformers"]},
{kernels}; {where["date"]}.
The CUDA kernels add in no fixed order, so that another run with the same seed ends near
these weights, not at them. `training.json` has all of this for machines.

To measure the held-out documents again, on a CPU if need be:

```
python -m experiments.train_bundled --corpus FOLDER \\
  --evaluate lyapunov/assets/mamba1-bytes
```

## Limits

It writes text that looks like English and means nothing. It has read plays and the
speeches of presidents, four megabytes in all, with the opinions of their times. It is
no stand-in for a large model: widths, decays and activations grow with scale, and a
bound that is tight here may be loose there.
"""


def _device(name: str) -> torch.device:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _measure_again(options: argparse.Namespace) -> None:
    device = _device(options.device)
    corpus = Corpus.read(options.corpus)
    model = _load(options.evaluate).to(device)
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
        where = _environment(device)
        record["evaluation"]["again"] = {
            "bits_per_byte": round(bits / scored, 4),
            "bytes_scored": scored,
            **{name: where[name] for name in ("device", "torch", "transformers")},
        }
        _replace(file, json.dumps(record, indent=1) + "\n")
        _replace(options.evaluate / "README.md", card(record))


def _card_again(options: argparse.Namespace) -> None:
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


def _compared(record: dict[str, Any]) -> str:
    """The part of the card on the choice among several runs."""
    if "runs_compared" not in record:
        return ""
    rows = "\n".join(
        f"| `{run['command'].partition('--steps')[2].strip()}` "
        f"| {run['validation_bits_per_byte']:.4f} |"
        for run in record["runs_compared"]
    )
    return f"""
Chosen by the validation documents among these runs; held-out documents had no say:

| `--steps` and the rest of the command | validation, bits per byte |
|---|---|
{rows}
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train_bundled",
        description="Train the byte-level Mamba-1 model that ships with lyapunov.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--corpus", type=Path, help=f"folder with {', '.join(FILES)}")
    what = parser.add_mutually_exclusive_group(required=True)
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
    return parser


def main() -> None:
    """The command."""
    parser = _parser()
    options = parser.parse_args()
    if options.card:
        _card_again(options)
        return
    if options.corpus is None:
        parser.error("--corpus is needed")
    if options.evaluate:
        _measure_again(options)
    else:
        run(options)


if __name__ == "__main__":
    main()
