"""The model card, made from training.json."""

from typing import Any


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
