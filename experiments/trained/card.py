"""The model card, made from training.json."""

from typing import Any


_TITLES = {
    "mamba1": "Mamba-1",
    "mamba2": "Mamba-2",
    "mamba3": "Mamba-3 (SISO)",
    "gpt_neox": "GPT-NeoX",
    "gated_delta": "Gated DeltaNet (delta rules and MLPs)",
    "kimi_delta": "Kimi Delta Attention (delta rules and MLPs)",
    "hybrid": "hybrid (Mamba-2, attention and MLPs)",
}


_KDA = {
    "gated_delta": """;
the gradient is that of fla's chunk_kda, as fla refuses its own of a gate a head on this
card under this Triton; what is told of held-out text is of its own kernels""",
    "kimi_delta": "",
}


def card(record: dict[str, Any]) -> str:
    """README.md of a trained model."""
    how, where, shape = record["training"], record["environment"], record["shape"]
    data, kind = record["data"], record["kind"]
    count = record["parameters"]
    of_transformers = ("gpt_neox", "gated_delta", "kimi_delta")
    layout = "transformers" if kind in of_transformers else "mamba_ssm"
    rows = "\n".join(
        f"| {name} | {100 * one['accuracy']:.1f} % | {_chance(one['chance'])} "
        f"| {one['bits_per_answer_byte']:.3f} | {one['answers']:,} |"
        for name, one in record["held_out_tasks"].items()
    )
    shots = record["held_out_tasks"]["classify"].get("by_shots", {})
    by_shots = ", ".join(
        f"{100 * one['accuracy']:.1f} % after {n}"
        for n, one in shots.items()
        if n in ("1", "3", "5")
    )
    documents = "\n".join(
        f"| {d['title']} | {d['bits_per_byte']:.3f} |"
        for d in data["documents"]["held_out"]
    )
    kept = "fp32" if record["matrices"] == "fp32" else "matrices in bf16, the rest fp32"
    kernels = (
        f", mamba_ssm {where['mamba_ssm']}, causal_conv1d {where['causal_conv1d']}"
        if how["library"] == "mamba_ssm"
        else ""
    )
    if kind.endswith("_delta") and where.get("fla"):
        kernels = f", fla-core {where['fla']}, Triton {where['triton']}{_KDA[kind]}"
    return f"""---
license: apache-2.0
language: en
---

# {record["name"]}

A byte-level {_TITLES[kind]} language model, trained from scratch on English text and on
generated tasks that are solved from the context. One of several of equal size (mamba1,
mamba2, mamba3, gpt_neox, gated_delta, kimi_delta, hybrid), trained on the same batches
in the same order, to measure rounding on. A token is a byte, its id the byte's value.

- {count["without_embedding"]:,} parameters and {count["embedding"]:,} of the embedding,
  which is the head, too; {kept}. {shape["layers"]} layers of width {shape["width"]}.
- **Held-out bits per byte of text: {record["held_out_bits_per_byte"]:.4f}**
- Files in {layout}'s layout; `lyapunov.load(FOLDER)` takes them.
- Licence of the weights: Apache-2.0. The text is in the public domain.

| task | accuracy | chance | bits per answer byte | answers |
|---|---|---|---|---|
{rows}

An answer is right if all its bytes are the most likely ones, given those before.
Classification by examples of the class seen before: {by_shots}. The tasks are described
in `experiments/trained/tasks.py`; these episodes were never trained on.

| held-out document | bits per byte |
|---|---|
{documents}

## Training

```
{how["command"]}
```

{how["optimizer"]}; peak learning rate {how["learning_rate"]}, warm-up and cosine;
weight decay {how["weight_decay"]} on the projections only; dropout {how["dropout"]};
gradients clipped at {how["clip"]}; {how["arithmetic"]}. {how["steps_done"]:,} of
{how["steps"]:,} steps of {how["batch"]} x {how["length"]} bytes, of which
{100 * how["share"]:.0f} % are tasks, in {how["seconds"]:.0f} seconds on one
{where["device"]}; seed {how["seed"]}. The loss is over all bytes of text and over the
answers of tasks. The weights of step {how["kept_step"]:,} were kept, the best on
validation documents and tasks.

Python {where["python"]}, torch {where["torch"]},
transformers {where["transformers"]}{kernels}; {where["date"]}.
The CUDA kernels add in no fixed order, so that another run with the same seed ends near
these weights, not at them. `training.json` has all of this for machines, with the loss
curve.

## Limits

It has read plays and the speeches of presidents, four megabytes in all, with the
opinions of their times. It writes text that looks like English and means nothing.
"""


def _chance(share: float) -> str:
    return f"{100 * share:.1f} %" if share > 1e-3 else f"{share:.0e}"
