"""mamba_ssm 2.3 with its CUDA kernels, Mamba-1, whole sequences at once.

Read from the sources of mamba_ssm 2.3.2 (`selective_scan_interface.py`,
`csrc/selective_scan/selective_scan_fwd_kernel.cuh`, `ops/triton/layer_norm.py`) and
causal-conv1d 1.6: activations are stored in the model's format six times a layer,
everything between is fp32, the state stays in registers.
"""

import math

from .._errors import UsageError
from ..formats import FP32, Format, format_named
from ._execution import (
    Depths,
    Execution,
    InnerConstants,
    any_order,
    assume_formats,
    parse_precision,
)


# nvcc --use_fast_math: subnormals flushed, ex2.approx (2 ulp) of a rounded product by
# log2(e), software log1p (2 ulp), approximate division (2 ulp).
KERNEL = InnerConstants(
    unit=2.0**-24,
    underflow=2.0**-126,
    accumulator_unit=2.0**-23,
    exp_relative=2.0**-22,
    exp_argument=2.0**-23,
    softplus_relative=2.0**-21,
    softplus_argument=2.0**-23,
    softplus_absolute=0.0,
    silu_relative=2.0**-21,
    silu_argument=2.0**-23,
    rsqrt_relative=2.0**-22,
)

# What the layer stores in the activations' format, in order.
STORED = ("norm", "xz", "conv", "x_proj", "dt", "gated", "out")

# (longest sequence, threads, items a thread) of the launch table in
# selective_scan_fwd_kernel.cuh; longer sequences go in chunks of 2048.
LAUNCHES = ((128, 32, 4), (256, 32, 8), (512, 32, 16), (1024, 64, 16))
CHUNK = (2048, 128, 16)


def scan_depth(seq: int) -> int:
    """Additions on the way of a term through the block scan of the kernel.

    A thread's items serially, five shuffles of the warp scan, the warps' aggregates
    serially, one for the block's prefix, the items again; and one combine for each
    chunk before.
    """
    threads, items = next(
        ((t, i) for longest, t, i in LAUNCHES if seq <= longest), CHUNK[1:]
    )
    chunks = max(1, math.ceil(seq / CHUNK[0]))
    return (items - 1) + 5 + (threads // 32 - 1) + 1 + items + (chunks - 1)


def _tensor_core_depth(terms: int) -> int:
    # Exact products of 16-bit numbers; blocks of 16 summed with truncation (hence
    # unit 2^-23), the blocks one after another.
    return math.ceil(terms / 16) + 16


def _row_sum_depth(terms: int) -> int:
    # Triton's sum over a row: serial in a lane, a tree over one warp at least.
    return math.ceil(terms / 32) + 10


def mamba_ssm_prefill(
    precision: str,
    *,
    residual_in_fp32: bool = True,
    fused_add_norm: bool = True,
    state_precision: str | None = None,
    biased_projections: bool = False,
) -> Execution:
    """Mamba-1 under mamba_ssm, a whole sequence at once.

    **Arguments:**

    - `precision`: the format of weights and activations. `bf16` keeps A_log and D in
      fp32, as `MambaLMHeadModel.from_pretrained(dtype=...)` does; `bf16-cast` casts
      them too, as `model.to(torch.bfloat16)` does.
    - `residual_in_fp32`, `fused_add_norm`: of the checkpoint's config. Unfused, the
      residual is rounded to the weights' format in front of the norm.
    - `biased_projections`: in_proj and out_proj have a bias, added to a stored product.
    - `state_precision`: store the state in this format after every token, as a cache
      in that format would; None: in fp32 registers, as the kernel does.
    """
    name, cast = parse_precision(precision)
    fmt = format_named(name)
    reduced = fmt.is_reduced
    if not reduced and fmt is not FP32:
        raise UsageError(
            f"mamba_ssm does not run in {name}", hint="one of bf16, fp16, fp32"
        )
    sites: dict[str, Format] = {site: fmt for site in STORED}
    if biased_projections:
        # out_proj's bias is fused into the product, in_proj's is not
        sites["xz_product"] = fmt
    if not fused_add_norm:
        sites["norm_input"] = fmt
    sites |= {"embedding": fmt, "norm_f": fmt, "logits": fmt}
    if not residual_in_fp32:
        sites["residual"] = fmt
    else:
        sites["residual"] = FP32
    if state_precision is not None and state_precision != FP32.name:
        sites["state"] = format_named(state_precision)
    parameters = {"default": fmt}
    if not cast:
        parameters |= {"A_log": FP32, "D": FP32}

    if reduced:
        adding = "tensor cores add blocks of 16 exact products with unit 2^-23"
    else:
        adding = "fp32 products are summed in any order with unit at most 2^-23"
    return Execution(
        name=f"mamba_ssm prefill, {precision}",
        implementation="mamba_ssm",
        mode="prefill",
        precision=precision,
        state_precision=state_precision or FP32.name,
        sites=sites,
        parameters=parameters,
        constants=KERNEL,
        depths=Depths(
            accumulation=_tensor_core_depth if reduced else any_order,
            reduction=_row_sum_depth,
            scan=any_order if "state" in sites else scan_depth,
        ),
        assumptions=(
            assume_formats(
                {k: f for k, f in sites.items() if k != "state"}, parameters
            ),
            "between two stores the arithmetic is fp32 with subnormals flushed; any "
            "multiply and add may be fused",
            f"{adding}; reduced-precision reductions are off",
            "the scan is a block scan with the launch table of mamba_ssm 2.3: "
            f"{scan_depth(512)} additions at most on a term's way at 512 tokens",
            "exp 2 ulp, softplus and silu 4 ulp, reciprocal square root 2 ulp, each "
            "after a product by log2(e) rounded to fp32",
        ),
    )
