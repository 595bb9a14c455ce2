"""Ways to break fla's chunks of a delta rule, each seen in a kernel that shipped.

Every fault replaces a function that fla's chunk calls by one around it, and computes
anew nothing but what it changes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any


HOLDERS = {
    "gated_delta": "fla.ops.gated_delta_rule.chunk",
    "kimi_delta": "fla.ops.kda.chunk_fwd",
}
"""Modules that call what is broken, by the trained network whose chunks they are."""
FIRST = "gated_delta"
INTRA, STATES, SUMS = (
    "chunk_gated_delta_rule_fwd_intra",
    "chunk_gated_delta_rule_fwd_h",
    "chunk_local_cumsum",
)
WIDTH = 64


def _newton(rounds: int, system, held: Callable):
    """By Newton and Schulz: three rounds were shipped (vllm PR 53864), forward
    substitution is what fla does."""
    import torch

    eye = torch.eye(WIDTH, device=system.device)
    found = eye - system
    for _ in range(rounds):
        found = held(found) @ (2 * eye - held(eye + system) @ held(found))
    return found


def _powers(system, held: Callable):
    """(1 - A)(1 + A^2)(1 + A^4)..., whose powers grow where keys are alike."""
    import torch

    eye = torch.eye(WIDTH, device=system.device)
    found, power = eye - system, system
    for _ in range((WIDTH - 1).bit_length() - 1):
        power = held(power) @ held(power)
        found = held(found) @ held(eye + power)
    return found


def _inverse(of: Callable, dtype: str) -> Callable:
    """(1 + A)^-1 by another algorithm, of operands in another format."""

    def broken(original, given, named):
        import torch
        import torch.nn.functional as F

        w, u, inverse = original(*given, **named)
        k, v, g, beta = (named[name].float() for name in ("k", "v", "g", "beta"))
        length, heads = k.shape[1], v.shape[2]
        k = k.repeat_interleave(heads // k.shape[2], dim=2)
        fill = -length % WIDTH
        cut = lambda x: F.pad(x, (0,) * (2 * (x.ndim - 2)) + (0, fill)).reshape(
            x.shape[0], -1, WIDTH, *x.shape[2:]
        )
        k, v, g, beta = (cut(x).transpose(2, 3) for x in (k, v, g, beta))
        decays = torch.exp2((g[..., None] - g[..., None, :]).clamp(max=0))
        system = (k @ k.transpose(-1, -2) * decays * beta[..., None]).tril(-1)
        held = lambda x: x.to(getattr(torch, dtype)).float()
        found = held(of(system, held))

        def kept(x, like):
            made = (found @ x).transpose(2, 3)
            made = made.reshape(like.shape[0], -1, *like.shape[2:])
            return made[:, :length].to(like.dtype)

        reach = torch.exp2(g)[..., None]
        return (
            kept(k * beta[..., None] * reach, w),
            kept(v * beta[..., None], u),
            inverse,
        )

    return broken


def _lost_state(original, given, named):
    """Every other chunk starts from nothing."""
    h, v_new, final = original(*given, **named)
    h = h.clone()
    h[:, 1::2] = 0
    return h, v_new, final


def _gate_of_another(original, given, named):
    """Sums of gates by the token in front of each (fla 1240 was of this kind)."""
    g = original(*given, **named)
    moved = g.clone()
    moved[:, 1:] = g[:, :-1]
    return moved


FAULTS: dict[str, tuple[str, Callable]] = {
    "inverse by three Newton rounds in bf16": (
        INTRA, _inverse(partial(_newton, 3), "bfloat16"),
    ),
    "inverse by powers in fp16": (INTRA, _inverse(_powers, "float16")),
    "a chunk's state is lost": (STATES, _lost_state),
    "gates of the token before": (SUMS, _gate_of_another),
}  # fmt: skip


def breakable(model: str) -> list[str]:
    """The faults that a network's chunks can have."""
    return [name for name, (at, _) in FAULTS.items() if model == FIRST or at != INTRA]


@contextmanager
def patched(name: str, model: str) -> Iterator[None]:
    """The fault in place, for as long as the block runs."""
    attribute, broken = FAULTS[name]
    holder: Any = import_module(HOLDERS[model])
    original = getattr(holder, attribute)
    call = lambda *given, **named: broken(original, given, named)
    setattr(holder, attribute, call)
    try:
        yield
    finally:
        setattr(holder, attribute, original)
