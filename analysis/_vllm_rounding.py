"""One step of FlashInfer's whose fp16 state is rounded stochastically, by many seeds.

What a state is rounded from is the fp32 state that the same step leaves. In fp16's
normal numbers 13 random bits below the fraction decide between two neighbours, so that
the mean over seeds is the number itself (`conversion.cuh`).
"""

from typing import Any


HEADS, DIM, STATES = 24, 64, 128
SMALLEST, DIGITS = -14, 10
"""Exponent of fp16's smallest normal number, and bits of its fraction."""
APART = 0.05
"""Elements nearer to a neighbour than this share of the spacing are too rarely rounded
to the other for a z of their own."""


def by_seeds(seeds: int) -> dict[str, Any]:
    """Figures of one step by so many seeds.

    `z of the mean error`: of all elements and seeds, over its standard deviation under
    independent draws; `rms z of an element`: 1 is expected. `neither neighbour`:
    elements of any seed that went anywhere else.
    """
    import torch

    from lyapunov.implementations.vllm import FlashInferStep

    given, before = _drawn(torch)
    fine = _stepped(torch, FlashInferStep(), before.float(), given).double()
    step = FlashInferStep(stochastic=True)

    def rounded(seed: int) -> Any:
        step.seed(seed)
        return _stepped(torch, step, before, given)

    size = fine.abs()
    exponent = (torch.frexp(size).exponent - 1).clamp(min=SMALLEST)
    spacing = torch.ldexp(torch.ones_like(size), exponent - DIGITS)
    low = torch.floor(size / spacing) * spacing
    share = (size - low) / spacing
    ups = torch.zeros_like(size)
    neither = 0
    for seed in range(seeds):
        found = rounded(seed).double() * torch.sign(fine)
        up = found == low + spacing
        neither += int((~up & (found != low)).sum())
        ups += up
    own = (size >= 2.0**SMALLEST) & (share > 0)
    error, variance = ups - seeds * share, seeds * share * (1 - share)
    z = error[own].sum() / variance[own].sum().sqrt()
    counted = own & (share > APART) & (share < 1 - APART)
    each = error[counted] / variance[counted].sqrt()
    apart = lambda one, two: float((one != two).double().mean())
    first, again, other = rounded(0), rounded(0), rounded(1)
    return {
        "seeds": seeds,
        "elements": int(own.sum()),
        "neither neighbour": neither,
        "z of the mean error": float(z),
        "elements with a z of their own": int(counted.sum()),
        "rms z of an element": float(each.square().mean().sqrt()),
        "largest z of an element": float(each.abs().max()),
        "elements that the same seed rounds otherwise": int((first != again).sum()),
        "share that another seed rounds otherwise": apart(first, other),
        "share that is expected so": float((2 * share * (1 - share)).mean()),
    }


def _drawn(torch: Any) -> tuple[tuple[Any, ...], Any]:
    """x, dt, A, B, C, D and dt_bias of one token, and an fp16 state in slot 1."""
    drawn = torch.Generator("cuda").manual_seed(7)
    normal = lambda *shape: torch.randn(shape, generator=drawn, device="cuda")
    uniform = lambda *shape: torch.rand(shape, generator=drawn, device="cuda")
    short = lambda tensor: tensor.to(torch.bfloat16)
    given = (
        short(normal(1, HEADS, DIM)),
        short(uniform(1, HEADS, 1) - 2).expand(1, HEADS, DIM),
        (-1 - 15 * uniform(HEADS, 1, 1)).expand(HEADS, DIM, STATES),
        short(normal(1, 1, STATES)),
        short(normal(1, 1, STATES)),
        short(normal(HEADS, 1)).expand(HEADS, DIM),
        short(uniform(HEADS, 1) - 2).expand(HEADS, DIM),
    )
    return given, normal(2, HEADS, DIM, STATES).half()


def _stepped(torch: Any, step: Any, before: Any, given: tuple[Any, ...]) -> Any:
    """The state that a step leaves, (heads, head_dim, d_state)."""
    state, slots = before.clone(), torch.ones(1, dtype=torch.int32, device="cuda")
    named = {"state_batch_indices": slots, "dst_state_batch_indices": slots}
    step(state, *given, **named, out=torch.empty_like(given[0]))
    return state[1]
