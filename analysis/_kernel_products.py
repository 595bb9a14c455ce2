"""What sums inside matrix products lose, on cuBLAS and in Triton's dots.

The inequality of `matmul` in `lyapunov/arithmetic/bounded.py`, against fp64 sums of
the same operands: ((1 + unit)^depth - 1) sum |a b|. Data is sampled, not exhaustive.
"""

from lyapunov.implementations import any_order
from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL, tensor_core_depth


DEPTHS = (16, 64, 128, 256, 768, 1536, 2560, 5120)
KINDS = ("positive", "cancelling", "one large", "normal")
SEEDS = 4


def operands(kind: str, terms: int, size: int, seed: int):
    """Two fp64 matrices, (size, terms) and (terms, size), that make a sum hard."""
    import torch

    random = torch.Generator().manual_seed(seed)
    a = torch.randn(size, terms, generator=random, dtype=torch.float64)
    b = torch.randn(terms, size, generator=random, dtype=torch.float64)
    if kind == "positive":
        return a.abs() + 0.5, b.abs() + 0.5
    if kind == "cancelling":
        half = terms // 2
        a[:, half:], b[half:] = a[:, :half], -b[:half]
    if kind == "one large":
        a[:, 0] *= 2.0**8
    return a, b


def held_in(x, name: str):
    """The numbers as the product reads them, still in their format."""
    import torch

    if name == "tf32":
        bits = x.float().view(torch.int32) & ~0x1FFF
        return bits.view(torch.float32)
    formats = {
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp32": torch.float32,
    }
    return x.to(formats[name])


def needed_unit(computed, a, b, depth: int) -> float:
    """Smallest unit u with |error| <= ((1 + u)^depth - 1) sum |a b| everywhere."""
    import torch

    a, b = a.double(), b.double()
    error = (computed.double() - a @ b).abs()
    share = error / (a.abs() @ b.abs())
    return float(torch.log1p(share).max()) / depth


def products(name: str, program: str, terms: int, device: str) -> dict:
    """The smallest accumulator_unit that would have held, by kind of data."""
    import torch

    depth = (tensor_core_depth if name in ("bf16", "fp16") else any_order)(terms)
    found = {}
    for kind in KINDS:
        worst = 0.0
        for seed in range(SEEDS):
            size = 64 if program == "triton" else 256
            a, b = (held_in(x, name) for x in operands(kind, terms, size, seed))
            a, b = a.to(device).contiguous(), b.to(device).contiguous()
            if program == "triton":
                from .kernels.triton_products import product

                out = torch.empty(size, size, device=device)
                product(a, b, out, "tf32" if name == "tf32" else "ieee")
            elif name in ("bf16", "fp16"):
                out = torch.mm(a, b, out_dtype=torch.float32)
            else:
                torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
                out = torch.mm(a, b)
                torch.backends.cuda.matmul.allow_tf32 = False
            worst = max(worst, needed_unit(out, a, b, depth))
        found[kind] = worst
    declared = KERNEL.accumulator_unit
    return {
        "program": program,
        "format": name,
        "terms": terms,
        "depth": depth,
        "declared_unit": declared,
        "needed_unit": found,
        "ratio": max(found.values()) / declared,
    }
