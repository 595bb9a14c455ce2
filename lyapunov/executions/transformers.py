"""transformers 5 without kernels: Mamba-1 in plain torch operations.

Read from `models/mamba/modeling_mamba.py` of transformers 5.23. Every torch operation
stores its result, so there are more sites than in the kernels: the conv before its
activation, dt with its bias, softplus, the state before the read-out, silu(z).
`torch_dtype=` casts every parameter, A_log and D too.
"""

from .._errors import UsageError
from ..formats import FP32, Format, format_named
from ._execution import Depths, Execution, InnerConstants, any_order, assume_formats


# torch on CPU: vectorised functions within 2 ulp, sums of fp32 in any order.
TORCH = InnerConstants(
    unit=2.0**-24,
    underflow=2.0**-126,
    accumulator_unit=2.0**-24,
    exp_relative=2.0**-22,
    exp_argument=0.0,
    softplus_relative=2.0**-21,
    softplus_argument=0.0,
    softplus_absolute=0.0,
    silu_relative=2.0**-21,
    silu_argument=0.0,
    rsqrt_relative=2.0**-22,
)

STORED = (
    "norm_hat",
    "norm",
    "xz",
    "conv_sum",
    "conv",
    "x_proj",
    "dt",
    "dt_biased",
    "softplus",
    "state_read",
    "read_out",
    "silu_z",
    "gated",
    "out",
)


def transformers_prefill(precision: str, *, residual_in_fp32: bool = True) -> Execution:
    """Mamba-1 under transformers' torch code, a whole sequence at once."""
    fmt = format_named(precision)
    if not fmt.is_reduced and fmt is not FP32:
        raise UsageError(
            f"transformers is not measured in {precision}",
            hint="one of bf16, fp16, fp32",
        )
    sites: dict[str, Format] = {site: fmt for site in STORED}
    # the block casts the residual to the weights' format before the norm
    sites["norm_input"] = fmt
    sites |= {"embedding": fmt, "norm_f": fmt, "logits": fmt}
    if not residual_in_fp32:
        sites |= {"residual": fmt, "norm_f_hat": fmt}
    else:
        sites["residual"] = FP32
    parameters = {"default": fmt}
    return Execution(
        name=f"transformers prefill, {precision}",
        implementation="transformers",
        mode="prefill",
        precision=precision,
        state_precision=FP32.name,
        sites=sites,
        parameters=parameters,
        constants=TORCH,
        depths=Depths(accumulation=any_order, reduction=any_order, scan=any_order),
        assumptions=(
            assume_formats(sites, parameters),
            "every torch operation stores its result; inside one the arithmetic is "
            "fp32, its sums in any order",
            "the scan runs token by token in fp32",
            "exp 2 ulp, softplus and silu 4 ulp, reciprocal square root 2 ulp",
        ),
    )
