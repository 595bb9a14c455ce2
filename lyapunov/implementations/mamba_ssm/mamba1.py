"""mamba_ssm 2.3 with its CUDA kernels, Mamba-1: whole sequences, and token by token.

Read from the sources of mamba_ssm 2.3.2 (`selective_scan_interface.py`,
`csrc/selective_scan/selective_scan_fwd_kernel.cuh`, `ops/triton/layer_norm.py`) and
causal-conv1d 1.6: activations are stored in the model's format six times a layer,
everything between is fp32, the state stays in registers. Of decoding
(`ops/triton/selective_state_update.py`, `csrc/causal_conv1d_update.cu`): the state is
kept in a cache in the weights' format, and the read-out is made before that store.

Precisions: `bf16` keeps A_log and D in fp32, as `from_pretrained(dtype=...)` does;
`bf16-cast` casts them too, as `model.to(torch.bfloat16)` does; `bf16-amp` is fp32
weights under `torch.autocast`, where the projections and the head are cast.
"""

import dataclasses
import math

from ..._errors import UsageError
from ...formats import FP32, Format, state_format_named
from .._autocast import autocast_parameters
from .._execution import (
    Depths,
    Execution,
    InnerConstants,
    any_order,
    assume_formats,
    assume_state,
    one_addition,
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

# Triton: the same exponential; softplus is log(exp(x) + 1) without log1p, so that the
# rounded 1 + exp(x) leaves an absolute 2^-24 / (1 - 2^-24); the gate is z times a
# sigmoid whose division is within 2 ulp. A reassociated (dt B) u may flush where the
# flow's (dt u) B does not: 2^-100 covers inputs of the scan up to 2^26.
STEP = dataclasses.replace(
    KERNEL,
    underflow=2.0**-100,
    softplus_absolute=2.0**-24 * (1 + 2.0**-20),
    silu_relative=2.0**-20,
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


def tensor_core_depth(terms: int) -> int:
    """Exact products of 16-bit numbers; blocks of 16 summed with truncation (hence
    unit 2^-23), the blocks one after another."""
    return math.ceil(terms / 16) + 16


def row_sum_depth(terms: int) -> int:
    """Triton's sum over a row: serial in a lane, a tree over one warp at least."""
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

    - `precision`: `bf16`, `fp16`, `fp32`, `bf16-cast`, `bf16-amp` and so on.
    - `residual_in_fp32`, `fused_add_norm`: of the checkpoint's config. Unfused, the
      residual is rounded to the weights' format in front of the norm.
    - `biased_projections`: in_proj and out_proj have a bias, added to a stored product.
    - `state_precision`: store the state in this format after every token, as a cache
      in that format would; None: in fp32 registers, as the kernel does.

    **Raises:** `UsageError` for a precision that there is not.
    """
    fmt, sites, parameters = activation_formats(
        precision, residual_in_fp32, fused_add_norm, "mamba1"
    )
    if biased_projections:
        # out_proj's bias is fused into the product, in_proj's is not
        sites["xz_product"] = fmt
    state = None
    if state_precision is not None and state_precision != FP32.name:
        state = sites["state"] = state_format_named(state_precision)
    reduced = fmt.is_reduced
    if reduced:
        adding = "tensor cores add blocks of 16 exact products with unit 2^-23"
    else:
        adding = "fp32 products are summed in any order with unit at most 2^-23"
    return Execution(
        name=f"mamba_ssm prefill, {precision}",
        implementation="mamba_ssm",
        kind="mamba1",
        mode="prefill",
        precision=precision,
        state_precision=state_precision or FP32.name,
        sites=sites,
        parameters=parameters,
        constants=KERNEL.on_tensor_cores(fmt),
        depths=Depths(
            accumulation=tensor_core_depth if reduced else any_order,
            reduction=row_sum_depth,
            scan=scan_depth if state is None else one_addition,
        ),
        assumptions=(
            assume_formats(sites, parameters),
            assume_state(state),
            "between two stores the arithmetic is fp32 with subnormals flushed; any "
            "multiply and add may be fused",
            f"{adding}; reduced-precision reductions are off",
            "the scan is a block scan with the launch table of mamba_ssm 2.3: "
            f"{scan_depth(512)} additions at most on a term's way at 512 tokens"
            if state is None
            else "the scan goes token by token from the stored state",
            "exp 2 ulp, softplus and silu 4 ulp, reciprocal square root 2 ulp, each "
            "after a product by log2(e) rounded to fp32",
        ),
    )


def mamba_ssm_decode(
    precision: str,
    *,
    residual_in_fp32: bool = True,
    fused_add_norm: bool = True,
    state_precision: str | None = None,
    biased_projections: bool = False,
) -> Execution:
    """Mamba-1 under mamba_ssm, token by token from a cache (`Mamba.step`).

    **Arguments:** as for `mamba_ssm_prefill`, and

    - `state_precision`: of the cache; None is the format of the weights, as
      `allocate_inference_cache` chooses it: 16 bits for a model in 16 bits, fp32 under
      autocast. Scaled, 8-bit and stochastic ones are those of serving code, around the
      same kernel.
    - `biased_projections`: changes nothing, as a step fuses the bias of in_proj.

    **Raises:** `UsageError` for a precision that there is not.
    """
    del biased_projections
    fmt, sites, parameters = activation_formats(
        precision, residual_in_fp32, fused_add_norm, "mamba1"
    )
    cache = state_precision or parameters["default"].name
    sites["state"] = state_format_named(cache)
    reduced = fmt.is_reduced
    if reduced:
        adding = (
            "tensor cores, or at least 16 lanes side by side, add exact products with "
            "unit 2^-23"
        )
    else:
        adding = "fp32 products are summed in any order with unit at most 2^-23"
    return Execution(
        name=f"mamba_ssm decode, {precision}",
        implementation="mamba_ssm",
        kind="mamba1",
        mode="decode",
        precision=precision,
        state_precision=cache,
        sites=sites,
        parameters=parameters,
        constants=STEP.on_tensor_cores(fmt),
        depths=Depths(
            accumulation=tensor_core_depth if reduced else any_order,
            reduction=row_sum_depth,
            scan=one_addition,
        ),
        assumptions=(
            assume_formats(sites, parameters),
            assume_state(sites["state"]),
            "between two stores the arithmetic is fp32 with subnormals flushed; any "
            "multiply and add may be fused",
            f"{adding}; reduced-precision reductions are off",
            "softplus is log(exp(x) + 1), off by 2^-24 absolute on top of 4 ulp; exp "
            "2 ulp, silu 8 ulp, reciprocal square root 2 ulp, each after a product by "
            "log2(e) rounded to fp32",
        ),
    )


def activation_formats(
    precision: str, residual_in_fp32: bool, fused_add_norm: bool, kind: str
):
    """The activations' format, the sites and the parameters of a precision.

    **Arguments:**

    - `kind`: of the sublayer whose parameters autocast meets.
    """
    fmt, variant = parse_precision(precision, "mamba_ssm")
    if variant == "amp" and not residual_in_fp32:
        raise UsageError(
            "under autocast a residual that is not kept in fp32 changes its format "
            "from the first layer to the second",
            hint="use bf16 or fp16 for this checkpoint",
        )
    sites: dict[str, Format] = {site: fmt for site in STORED}
    sites |= {"norm_f": fmt, "logits": fmt}
    sites["residual"] = FP32 if residual_in_fp32 else fmt
    if variant == "amp":
        parameters = autocast_parameters(kind, fmt)
        return fmt, sites | {"embedding": FP32}, parameters
    if not fused_add_norm:
        sites["norm_input"] = fmt
    parameters = {"default": fmt}
    if variant != "cast":
        parameters |= {"A_log": FP32, "D": FP32}
    return fmt, sites | {"embedding": fmt}, parameters
