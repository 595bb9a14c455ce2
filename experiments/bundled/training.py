"""Training: dropout, optimizer, schedule and the loop."""

import argparse
import math
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F

from .corpus import Corpus
from .evaluation import evaluate
from .model import Model, fresh


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
    model = fresh(settings).to(device)
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
