"""Ways to break fla's chunks of a Gated DeltaNet, each seen in a kernel that shipped.

Every fault replaces a function that fla's chunk calls by one around it, and computes
anew nothing but what it changes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


CHUNK = "fla.ops.gated_delta_rule.chunk"
INTRA, STATES, SUMS = (
    "chunk_gated_delta_rule_fwd_intra",
    "chunk_gated_delta_rule_fwd_h",
    "chunk_local_cumsum",
)
WIDTH = 64


def _inverse_by_newton(rounds: int) -> Callable:
    """(1 + A)^-1 by Newton and Schulz with operands in bf16: three rounds were
    shipped (vllm PR 53864), forward substitution is what fla does."""

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
        eye = torch.eye(WIDTH, device=k.device)
        held = lambda x: x.bfloat16().float()
        found = eye - system
        for _ in range(rounds):
            found = held(found) @ (2 * eye - held(eye + system) @ held(found))

        def kept(x, like):
            made = (held(found) @ x).transpose(2, 3)
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
    "inverse by three Newton rounds in bf16": (INTRA, _inverse_by_newton(3)),
    "a chunk's state is lost": (STATES, _lost_state),
    "gates of the token before": (SUMS, _gate_of_another),
}


@contextmanager
def patched(name: str) -> Iterator[None]:
    """The fault in place, for as long as the block runs."""
    attribute, broken = FAULTS[name]
    holder: Any = import_module(CHUNK)
    original = getattr(holder, attribute)
    call = lambda *given, **named: broken(original, given, named)
    setattr(holder, attribute, call)
    try:
        yield
    finally:
        setattr(holder, attribute, original)
