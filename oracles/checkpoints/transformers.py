"""Small random models of transformers, their logits, and how roundings move them."""

import math
import os
from pathlib import Path

import numpy as np

from oracles.tolerances import gamma


os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

U32 = 2.0**-24
NUDGE = 2.0**-14
TEXT = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}
"""The text part of models that read pictures too."""


def make(model_type: str, seed: int = 0, **settings):
    """A model of transformers in fp32, no parameter at its trivial first value."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(TEXT.get(model_type, model_type), **settings)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    redraw(network)
    return network


def redraw(network) -> None:
    """Matrices anew, vectors (norms, biases, D, A_log) away from where they begin.

    Delta rules begin without memory: their rates are drawn where decays are near 1, as
    RWKV's are.
    """
    import torch

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            drawn = torch.randn_like(parameter)
            if "attn." in name and name.endswith("A_log"):
                share = torch.special.ndtr(drawn)
                parameter.copy_(torch.log(0.02 + 0.28 * share))
            elif "attn." in name and name.endswith("dt_bias"):
                parameter.copy_(drawn - 1)
            elif name.endswith("time_decay"):
                parameter.copy_(drawn - 2)
            elif name.endswith("fgate_preact.bias"):
                parameter.copy_(drawn + 4)
            elif name.endswith("igate_preact.bias"):
                parameter.copy_(drawn)
            elif "time_mix" in name:
                parameter.copy_(torch.special.ndtr(drawn))
            elif parameter.dim() < 2:
                parameter.add_(0.3 * drawn)
            else:
                parameter.copy_(drawn / math.sqrt(parameter.shape[-1]))
        for name, buffer in network.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn_like(buffer))


def save(network, folder: Path, dtype: str = "float32") -> Path:
    """As `save_pretrained` writes it, in another type if asked for."""
    import torch

    network.to(getattr(torch, dtype)).save_pretrained(folder)
    network.to(torch.float32)
    return folder


def logits(network, tokens) -> np.ndarray:
    """The library's own fp32 forward, (seq, vocab)."""
    import torch

    with torch.no_grad():
        out = network(torch.tensor(np.asarray(tokens))[None], use_cache=False)
    return out.logits[0].double().numpy()


def condition(network, tokens, draws: int = 2) -> float:
    """How far logits move per relative error of every intermediate, by trying.

    What each module puts out, and each parameter, is moved by +-NUDGE of itself; the
    largest of a few draws, twice, stands for any errors of that size.
    """
    import torch

    plain = logits(network, tokens)
    worst = 0.0
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)

        def signs(x, generator=generator):
            return 2.0 * torch.randint(0, 2, x.shape, generator=generator) - 1.0

        def nudge(module, inputs, output, signs=signs):
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                return output * (1 + NUDGE * signs(output))
            return None

        leaves = [m for m in network.modules() if not list(m.children())]
        handles = [m.register_forward_hook(nudge) for m in leaves]
        kept = [p.detach().clone() for p in network.parameters()]
        try:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.mul_(1 + NUDGE * signs(parameter))
            moved = logits(network, tokens)
        finally:
            for handle in handles:
                handle.remove()
            with torch.no_grad():
                for parameter, before in zip(network.parameters(), kept, strict=True):
                    parameter.copy_(before)
        worst = max(worst, np.abs(moved - plain).max() / NUDGE)
    return 2 * worst


def roundings(network, seq: int) -> int:
    """Most roundings between two nudges: the longest sum of products, and a scan.

    An element of an output is a sum over the columns of a matrix; a state takes two
    roundings a token, of which decays forget all but some tens.
    """
    longest = max(p.shape[-1] for p in network.parameters() if p.dim() > 1)
    return 16 + longest + 2 * min(seq, 32)


def tolerance(network, tokens, unit: float = U32) -> float:
    """Largest distance of two forwards that round differently, at `unit`."""
    return condition(network, tokens) * gamma(roundings(network, len(tokens)), unit)
