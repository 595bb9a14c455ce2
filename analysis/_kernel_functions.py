"""Which function stands behind which constant, and how its error is held to a bound.

The inequalities are those of `lyapunov/arithmetic/bounded.py` for an argument without
error: |computed - exact| <= sum of constant x term + underflow. The reference is
torch's fp64 function, within 4 ulp of fp64; 2^-49 of the exact value is added to every
measured error for it.
"""

import dataclasses
import math

from lyapunov.implementations.mamba_ssm.mamba1 import KERNEL, STEP
from lyapunov.implementations.mamba_ssm.mamba3 import GATE, SCAN
from lyapunov.implementations.transformers.mamba1 import TORCH


OWN = 2.0**-49
NO_OVERFLOW = 2.0**127
SMALLEST_NORMAL = 2.0**-126
TURN = 2.0 * math.pi
# of a function with several constants, whose terms add up
FIELDS = {
    "exp": ("exp_relative", "exp_argument"),
    "softplus": ("softplus_relative", "softplus_argument", "softplus_absolute"),
    "silu": ("silu_relative", "silu_argument", "silu_size"),
    "sigmoid": ("silu_relative", "silu_argument"),
    "rsqrt": ("rsqrt_relative",),
    "tanh": ("tanh_relative",),
    "sin": ("turn_absolute",),
    "cos": ("turn_absolute",),
}
# what div.approx and a flush lose, in units of 2^-126
UNDERFLOWS = {"silu": 129.0, "sigmoid": 129.0, "rsqrt": 0.0}

_GATED = dataclasses.replace(SCAN, silu_size=GATE)


@dataclasses.dataclass(frozen=True)
class Function:
    """One implementation of one function, and the constants that are to hold for it."""

    name: str
    program: str
    """"cuda", "triton" or "torch"."""
    which: int | str
    reference: str
    """One of `FIELDS`."""
    constants: object
    sets: tuple[str, ...]
    """The sets of constants that rest on it; none: it is only reported."""
    largest: float = math.inf
    """Arguments up to this magnitude are held to the bound."""

    def numbers(self) -> dict[str, float]:
        """The constants by name."""
        return {n: getattr(self.constants, n) for n in FIELDS[self.reference]}


_TRITON = ("STEP", "SCAN")
# TileLang's fast math compiles to the same instructions as nvcc's
_NVCC = ("KERNEL", "SCAN")
_EVERY = ("KERNEL", *_TRITON)
FUNCTIONS = (
    Function("scan exp2f(x log2 e)", "cuda", 0, "exp", KERNEL, _NVCC),
    Function("expf, fast math", "cuda", 1, "exp", KERNEL, _NVCC),
    Function("scan softplus", "cuda", 2, "softplus", KERNEL, ("KERNEL",)),
    Function("scan and conv silu", "cuda", 3, "silu", KERNEL, ("KERNEL",)),
    # the same convolution in front of Triton's kernels, whose constants are wider
    Function("conv silu beside Triton", "cuda", 3, "silu", STEP, _TRITON),
    Function("torch exp of A_log", "torch", "exp", "exp", KERNEL, _EVERY),
    Function("tl.exp", "triton", "exp", "exp", STEP, _TRITON),
    Function("tl.exp2(x log2 e)", "triton", "exp2", "exp", STEP, _TRITON),
    Function("triton softplus", "triton", "softplus", "softplus", STEP, ("STEP",)),
    Function("z tl.sigmoid(z)", "triton", "silu", "silu", STEP, _TRITON),
    Function("tl.sigmoid", "triton", "sigmoid", "sigmoid", STEP, _TRITON),
    Function("1/tl.sqrt", "triton", "rsqrt", "rsqrt", STEP, _EVERY),
    Function("tanh.approx", "triton", "tanh_approx", "tanh", SCAN, ("SCAN",)),
    Function("mamba3 utils silu", "triton", "mamba3_silu", "silu", SCAN, ("SCAN",)),
    Function("gate by tanh.approx", "triton", "tanh_gate", "silu", _GATED, ()),
    Function("sin.approx", "triton", "sin_approx", "sin", SCAN, ("SCAN",), TURN),
    Function("cos.approx", "triton", "cos_approx", "cos", SCAN, ("SCAN",), TURN),
    Function("sin.approx to 1e4", "triton", "sin_approx", "sin", SCAN, (), 1e4),
    Function("cos.approx to 1e4", "triton", "cos_approx", "cos", SCAN, (), 1e4),
    Function("torch exp", "torch", "exp", "exp", TORCH, ()),
    Function("torch softplus", "torch", "softplus", "softplus", SCAN, ("SCAN",)),
    Function("torch silu", "torch", "silu", "silu", TORCH, ()),
    Function("torch sigmoid", "torch", "sigmoid", "sigmoid", TORCH, ()),
    Function("torch rsqrt", "torch", "rsqrt", "rsqrt", TORCH, ()),
)


def exact(reference: str, x):
    """The function of an fp64 tensor, without cancellation.

    **Arguments:**

    - `x`: torch tensor of fp64.
    """
    import torch

    if reference == "softplus":
        return torch.clamp(x, min=0) + torch.log1p(torch.exp(-x.abs()))
    if reference == "silu":
        return x / (1.0 + torch.exp(-x))
    if reference == "sigmoid":
        return 1.0 / (1.0 + torch.exp(-x))
    if reference == "rsqrt":
        return 1.0 / torch.sqrt(x)
    return getattr(torch, reference)(x)


def terms(reference: str, x, value) -> dict:
    """What each constant is multiplied by, of the same shape as x."""
    import torch

    size, magnitude = x.abs(), value.abs()
    one = torch.ones_like(x)
    if reference == "exp":
        found = (magnitude, magnitude * size)
    elif reference == "softplus":
        found = (magnitude, size * torch.sigmoid(x), one)
    elif reference == "silu":
        found = (magnitude, magnitude * size, size)
    elif reference == "sigmoid":
        found = (magnitude, magnitude * size)
    elif reference in ("sin", "cos"):
        found = (one,)
    else:
        found = (magnitude,)
    return dict(zip(FIELDS[reference], found, strict=True))


def held(reference: str, x, value, largest: float):
    """Where the bound says anything: what is computed there, and is finite."""
    kept = (x.abs() <= largest) & value.isfinite() & x.isfinite()
    if reference in ("exp", "softplus"):
        kept = kept & (value.abs() <= NO_OVERFLOW)
    if reference == "rsqrt":
        # epsilon keeps the radicand away from 0 and from subnormal numbers
        kept = kept & (x >= SMALLEST_NORMAL)
    return kept


def figures(function: Function, x, computed) -> dict:
    """Each figure at every x, 0 where the bound says nothing; float64.

    - `ratio`: error over bound; `scale`: the error less underflow, over the bound
      less underflow: by how much all the constants may be multiplied together;
      `ulp`: of normal results; `need NAME`: the smallest such constant that would
      hold with the others as documented.

    **Arguments:**

    - `x`, `computed`: torch tensors of fp32.
    """
    import torch

    wide = x.double()
    value = exact(function.reference, wide)
    kept = held(function.reference, wide, value, function.largest)
    # NaN or inf where a number is expected is an error without bound
    finite = computed.isfinite()
    error = (computed.double() - value).abs() + OWN * value.abs()
    error = torch.where(finite, error, torch.inf)
    own = function.numbers()
    parts = terms(function.reference, wide, value)
    flushed = UNDERFLOWS.get(function.reference, 1.0) * SMALLEST_NORMAL
    bound = sum(own[name] * parts[name] for name in parts)
    past = (error - flushed).clamp(min=0)
    # 0 over 0 is held, more over 0 is not
    ratio = lambda a, b: torch.where(a <= 0, 0.0, a / b)
    exponent = torch.frexp(value.abs().clamp(min=SMALLEST_NORMAL))[1] - 1
    spacing = torch.ldexp(torch.ones_like(value), exponent - 23)
    normal = kept & (value.abs() >= SMALLEST_NORMAL)
    found = {
        "ratio": ratio(error, bound + flushed),
        "scale": ratio(past, bound),
    }
    for name in parts:
        rest = bound - own[name] * parts[name]
        found[f"need {name}"] = ratio((past - rest).clamp(min=0), parts[name])
    found = {name: torch.where(kept, v, 0.0) for name, v in found.items()}
    found["ulp"] = torch.where(normal, error / spacing, 0.0)
    return found
