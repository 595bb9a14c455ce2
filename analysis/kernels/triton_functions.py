"""Triton's functions as mamba_ssm's kernels call them.

The approximations and the softplus are mamba_ssm's own, imported from it.
"""

from typing import Any

import triton
import triton.language as tl
from mamba_ssm.ops.triton.mamba3.utils import (
    cos_approx,
    silu,
    sin_approx,
    tanh_approx,
)
from mamba_ssm.ops.triton.softplus import softplus


@triton.jit
def function_kernel(x_ptr, out_ptr, WHICH: tl.constexpr, BLOCK: tl.constexpr):
    """One function of every number."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    if WHICH == "exp":
        y = tl.exp(x)
    elif WHICH == "exp2":
        y = tl.math.exp2(x * 1.4426950408889634)
    elif WHICH == "softplus":
        y = tl.where(x <= 20.0, softplus(x), x)
    elif WHICH == "silu":
        y = x * tl.sigmoid(x)
    elif WHICH == "sigmoid":
        y = tl.sigmoid(x)
    elif WHICH == "rsqrt":
        y = 1 / tl.sqrt(x)
    elif WHICH == "tanh_approx":
        y = tanh_approx(x)
    elif WHICH == "mamba3_silu":
        y = silu(x)
    elif WHICH == "tanh_gate":
        y = (0.5 * x) * tanh_approx(0.5 * x) + 0.5 * x
    elif WHICH == "sin_approx":
        y = sin_approx(x)
    else:
        y = cos_approx(x)
    tl.store(out_ptr + at, y)


def apply(which, x, out) -> None:
    """out = the function of x; lengths are multiples of 1024."""
    kernel: Any = function_kernel  # triton.jit's type is known only where triton is
    kernel[(x.numel() // 1024,)](x, out, WHICH=which, BLOCK=1024)
