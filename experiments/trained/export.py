"""The finished folder: checkpoint, training.json and model card."""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from experiments.bundled.corpus import Corpus
from experiments.bundled.environment import environment
from experiments.bundled.evaluation import evaluate

from . import resume, tasks
from .card import card
from .delta import class_name, delta_config
from .loop import Outcome, Settings
from .networks import Network, gpt_neox_config, mamba_ssm_config
from .scores import task_scores
from .shapes import VOCABULARY, Shape


LIMIT = 16 * 1024 * 1024  # bytes of a file
_TIED = {"gpt_neox": "embed_out.weight"}


def write_checkpoint(
    folder: Path, shape: Shape, weights: dict[str, torch.Tensor]
) -> None:
    """config.json and model.safetensors, in mamba_ssm's or transformers' layout.

    mamba_ssm stores the tied head beside the embedding, transformers does not.
    """
    if shape.kind == "gpt_neox":
        from transformers import GPTNeoXConfig

        config = gpt_neox_config(GPTNeoXConfig, shape).to_dict()
        config["architectures"] = ["GPTNeoXForCausalLM"]
        config["dtype"] = "float32"
        weights = {k: v for k, v in weights.items() if k != _TIED["gpt_neox"]}
    elif shape.kind in ("gated_delta", "kimi_delta"):
        config = delta_config(shape).to_dict()
        config["architectures"] = [class_name(shape)]
        config["dtype"] = "float32"
    else:
        config = mamba_ssm_config(shape)
    config["lyapunov_tokenizer"] = "bytes"
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text)
    weights = {name: value.clone() for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def rounded_matrices(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights with the matrices in bf16, as autocast takes them in any case.

    Vectors (norms, biases, `A_log`, `dt_bias`, `D`) and convolutions stay in fp32.
    """
    return {
        name: value.to(torch.bfloat16) if value.ndim == 2 else value
        for name, value in weights.items()
    }


def finish(
    corpus: Corpus,
    network: Network,
    settings: Settings,
    outcome: Outcome,
    command: str,
    folder: Path,
    device: torch.device,
    eval_batch: int = 8,
    matrices: str = "fp32",
) -> dict[str, Any]:
    """Judge the best weights on what was held out, and write the folder.

    Returns what training.json holds. `command`: what was typed, for the card.
    `matrices`: fp32 or bf16, the format they are kept in; the rounded ones are judged.
    """
    shape = network.shape
    best = rounded_matrices(outcome.best) if matrices == "bf16" else outcome.best
    network.restore(best)
    windows = 4 * settings.eval_windows
    score, each, scored = evaluate(
        network,
        corpus.texts("held_out", settings.eval_bytes),
        device,
        eval_batch,
        settings.context,
    )
    by_task = task_scores(
        network, "held_out", windows, settings.length, device, eval_batch
    )
    described = corpus.describe()
    for row, bits in zip(described["documents"]["held_out"], each, strict=True):
        row["bits_per_byte"] = round(bits, 4)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as name:
        part = Path(name)
        write_checkpoint(part, shape, best)
        record = {
            "name": f"{shape.kind}-trained",
            "kind": shape.kind,
            "licence": "Apache-2.0",
            "parameters": {
                "without_embedding": shape.parameters(),
                "embedding": VOCABULARY * shape.width,
            },
            "shape": vars(shape),
            "matrices": matrices,
            "held_out_bits_per_byte": round(score, 4),
            "held_out_tasks": {
                name: {**one.described(), "chance": tasks.CHANCE[name]}
                for name, one in by_task.items()
            },
            "evaluation": {
                "arithmetic": _arithmetic(device),
                "bytes_scored": scored,
                "context_at_least": settings.context,
                "window": 2 * settings.context,
                "task_windows": windows,
            },
            "data": described,
            "training": {
                "command": command,
                **vars(settings),
                "optimizer": "AdamW, betas 0.9 and 0.95",
                "arithmetic": _arithmetic(device),
                "library": network.library,
                "tokens": outcome.step * settings.batch * settings.length,
                "steps_done": outcome.step,
                "seconds": round(outcome.seconds, 1),
                "kept_step": outcome.best_step,
                "validation_score": round(outcome.best_score, 4),
                "history": outcome.history,
            },
            "environment": {**environment(device), **_more(device)},
            "files": [
                {
                    "name": file,
                    "bytes": (part / file).stat().st_size,
                    "sha256": hashlib.sha256((part / file).read_bytes()).hexdigest(),
                }
                for file in ("config.json", "model.safetensors")
            ],
        }
        for file in record["files"]:
            if file["bytes"] > LIMIT:
                raise ValueError(f"{file['name']}: {file['bytes']:,} bytes")
        (part / "training.json").write_text(json.dumps(record, indent=1) + "\n")
        (part / "README.md").write_text(card(record))
        for file in sorted(part.iterdir()):
            file.chmod(0o644)
            os.replace(file, folder / file.name)
    (folder / resume.NAME).unlink(missing_ok=True)
    return record


def _arithmetic(device: torch.device) -> str:
    return "bf16 autocast, fp32 weights" if device.type == "cuda" else "fp32"


def _more(device: torch.device) -> dict[str, Any]:
    """Driver, Triton, and a digest of this folder's own code."""
    import subprocess

    found: dict[str, Any] = {"driver": None, "triton": None, "cuda": torch.version.cuda}
    with suppress(metadata.PackageNotFoundError):
        found["fla"] = metadata.version("fla-core")
    if device.type == "cuda":
        import triton

        found["triton"] = triton.__version__
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(asked, capture_output=True, text=True).stdout
            found["driver"] = answer.split("\n")[0].strip() or None
        except OSError:
            pass
    here = Path(__file__).parent
    code = b"".join(
        file.read_bytes()
        for file in [here.with_name("train.py"), *sorted(here.glob("*.py"))]
    )
    found["script_sha256"] = hashlib.sha256(code).hexdigest()
    return found
