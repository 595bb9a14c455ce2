"""mamba_ssm 2.3 with its Triton kernels, Mamba-2: whole sequences, and token by token.

Read from the sources of mamba_ssm 2.3.2 (`modules/mamba2.py`, `ops/triton/ssd_*.py`,
`layernorm_gated.py`, `selective_state_update.py`) and from what Triton 3.6 makes of
them for compute capability 9.0. A prefill goes chunk by chunk in matrix products: B
times its scale, the state handed to a chunk and the weights of pairs are rounded to
the model's format, and the state itself is passed on in fp32. Decoding keeps the state
in a cache in the weights' format and is otherwise Mamba-1's.

In an fp32 model Triton's products run in TF32: their operands are handed to tensor
cores as they are, which ignore the last 13 bits. `TRITON_F32_DEFAULT=ieee` in the
environment turns that off.

Precisions: `bf16` keeps D in fp32, as `from_pretrained(dtype=...)` does; A_log, which
Mamba-1 keeps in fp32 as well, is made in the weights' format here. `bf16-cast` casts D
too; `bf16-amp` is fp32 weights under `torch.autocast`, where the projections and the
head are cast.
"""

import dataclasses
import math

from ...arithmetic import Form
from ...formats import FP32, TF32_OPERAND, Format, Precision, state_format_named
from .._execution import (
    Always,
    Depths,
    Execution,
    any_order,
    assume_formats,
    assume_state,
    one_addition,
)
from .mamba1 import KERNEL, STEP, activation_formats, row_sum_depth, tensor_core_depth


# Triton's exponential, softplus and gate, as in `STEP`; nothing is reassociated here.
SCAN = dataclasses.replace(STEP, underflow=KERNEL.underflow)

# Operands of the products between stores, and what they are made of.
OPERANDS = ("x_operand", "B_operand", "C_operand")
PRODUCTS = ("B_scaled", "chunk_state", "CB_decayed")


# `step` calls its kernel without dt_limit.
NO_LIMIT = (0.0, math.inf)


def cumsum_depth(chunk: int) -> int:
    """Additions on the way of a term through `tl.cumsum` over a chunk.

    A lane's numbers serially (up to 4), five shuffles, warps and then blocks of
    registers one after another, each at least 64 numbers long. One more each for what
    is added back.
    """
    return min(chunk - 1, 3 + 5 + math.ceil(chunk / 64) + 4)


def mamba_ssm_mamba2_prefill(
    precision: str,
    *,
    residual_in_fp32: bool = True,
    fused_add_norm: bool = True,
    state_precision: str | None = None,
    gate_norm: bool = True,
    chunk: int = 256,
    tf32: bool = True,
) -> Execution:
    """Mamba-2 under mamba_ssm, a whole sequence at once.

    **Arguments:**

    - `precision`: `bf16`, `fp16`, `fp32`, `bf16-cast`, `bf16-amp` and so on.
    - `residual_in_fp32`, `fused_add_norm`: of the checkpoint's config. Unfused, the
      residual is rounded to the weights' format in front of the norm.
    - `state_precision`: go token by token and store the state in this format after
      every token, as a cache in that format would; None: chunk by chunk, with the
      state in fp32 between chunks.
    - `gate_norm`: whether the gated output is normalised. Without, z gates inside the
      scan's kernel.
    - `chunk`: tokens of a chunk.
    - `tf32`: False where `TRITON_F32_DEFAULT=ieee` is set; for fp32 models.

    **Raises:** `UsageError` for a precision that there is not.
    """
    fmt, sites, parameters = _formats(
        precision, residual_in_fp32, fused_add_norm, gate_norm
    )
    written = assume_formats(sites, parameters)
    chunked = state_precision is None or state_precision == FP32.name
    state = None
    if not chunked:
        state = sites["state"] = state_format_named(state_precision or "")
        how = "the scan goes token by token from the stored state"
    elif fmt.is_reduced:
        sites |= dict.fromkeys(PRODUCTS, fmt)
        how = (
            f"B times its scale, the state handed to a chunk and the weights of pairs "
            f"are rounded to {fmt.name}; a chunk has {chunk} tokens"
        )
    elif tf32:
        sites |= dict.fromkeys((*PRODUCTS, *OPERANDS), TF32_OPERAND)
        how = (
            "products in the scan read their operands as TF32, the other bits cut off "
            f"(TRITON_F32_DEFAULT=ieee is not set); a chunk has {chunk} tokens"
        )
    else:
        how = f"products in the scan are in fp32; a chunk has {chunk} tokens"
    return Execution(
        name=f"mamba_ssm prefill, {precision}",
        implementation="mamba_ssm",
        kind="mamba2",
        mode="prefill",
        precision=precision,
        state_precision=state_precision or FP32.name,
        sites=sites,
        parameters=parameters,
        constants=SCAN.on_tensor_cores(fmt),
        depths=_depths(fmt, cumsum_depth(chunk) if chunked else 1),
        assumptions=(
            written,
            assume_state(state),
            how,
            "between two stores the arithmetic is fp32; any multiply and add may be "
            "fused",
            f"{_adding(fmt)}; reduced-precision reductions are off",
            f"logarithms of decays are summed by a scan over lanes: "
            f"{cumsum_depth(chunk)} additions at most on a term's way",
            _FUNCTIONS,
        ),
        form=Form(chunked=chunked),
    )


def mamba_ssm_mamba2_decode(
    precision: str,
    *,
    residual_in_fp32: bool = True,
    fused_add_norm: bool = True,
    state_precision: str | None = None,
    gate_norm: bool = True,
) -> Execution:
    """Mamba-2 under mamba_ssm, token by token from a cache (`Mamba2.step`).

    **Arguments:** as for `mamba_ssm_mamba2_prefill`, and

    - `state_precision`: of the cache; None is the format of the weights, as
      `allocate_inference_cache` chooses it: 16 bits for a model in 16 bits, fp32 under
      autocast. Scaled, 8-bit and stochastic ones are those of serving code, around the
      same kernel.

    **Raises:** `UsageError` for a precision that there is not.
    """
    fmt, sites, parameters = _formats(
        precision, residual_in_fp32, fused_add_norm, gate_norm
    )
    cache = state_precision or parameters["default"].name
    sites["state"] = state_format_named(cache)
    return Execution(
        name=f"mamba_ssm decode, {precision}",
        implementation="mamba_ssm",
        kind="mamba2",
        mode="decode",
        precision=precision,
        state_precision=cache,
        sites=sites,
        parameters=parameters,
        constants=STEP.on_tensor_cores(fmt),
        depths=_depths(fmt, 1),
        dt_limit=NO_LIMIT,
        assumptions=(
            assume_formats(sites, parameters),
            assume_state(sites["state"]),
            "a step does not apply dt_limit",
            "between two stores the arithmetic is fp32; any multiply and add may be "
            "fused",
            f"{_adding(fmt)}; reduced-precision reductions are off",
            _FUNCTIONS,
        ),
    )


_FUNCTIONS = (
    "softplus is log(exp(x) + 1), off by 2^-24 absolute on top of 4 ulp; exp 2 ulp, "
    "silu 8 ulp, reciprocal square root 2 ulp, each after a product by log2(e) rounded "
    "to fp32"
)


def _depths(fmt: Format, scan: int) -> Depths:
    return Depths(
        accumulation=tensor_core_depth if fmt.is_reduced else any_order,
        reduction=row_sum_depth,
        scan=one_addition if scan == 1 else Always(scan),
    )


def _adding(fmt: Format) -> str:
    if fmt.is_reduced:
        return "tensor cores add blocks of 16 exact products with unit 2^-23"
    return "products are summed in any order with unit at most 2^-23"


def _formats(
    precision: str, residual_in_fp32: bool, fused_add_norm: bool, gate_norm: bool
):
    """The activations' format, the sites and the parameters of a precision."""
    fmt, sites, parameters = activation_formats(
        precision, residual_in_fp32, fused_add_norm, "mamba2"
    )
    # no dt and B, C projections of their own; A_log has the weights' format
    for site in ("x_proj", "dt"):
        sites.pop(site)
    if gate_norm:
        sites["scan_output"] = fmt
    if not Precision.named(precision).autocast:
        parameters.pop("A_log", None)
    return fmt, sites, parameters
