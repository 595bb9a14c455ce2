"""mamba_ssm 2.3 with its Mamba-3 kernels: whole sequences, and token by token.

Read from the sources of mamba_ssm 2.3.2 (`modules/mamba3.py`, `ops/triton/mamba3/*`,
`ops/tilelang/mamba3/mamba3_mimo_fwd.py`, `ops/cute/mamba3/mamba3_step_fn.py`).

Of rank 1 (SISO) a prefill casts what it reads to bf16, in models of every format: x, B,
C, lambda, the angles and z before, and inside the angles added up so far
(`angle_dt_fwd` puts them into an array like what it read), queries, weighed keys, the
state handed to a chunk and the weights of pairs. Of higher rank (MIMO) the model's
format takes that place, and dt, gamma and sums over ranks are in it as well. Angles are
added up modulo 2 pi, made by `tanh.approx` and read by `sin.approx` and `cos.approx`.
Decoding keeps the state in fp32 and reads it in fp32; keys, queries and lambda are in
the model's format, angles are not reduced and functions are accurate ones.

Precisions: `bf16` keeps dt_bias, the biases of B and C, D and the matrices of MIMO in
fp32, where they are made; `bf16-cast` casts them too; `bf16-amp` is fp32 weights under
`torch.autocast`, where the projections and the head are cast.
"""

import dataclasses

from ..._errors import UsageError
from ...arithmetic import Form
from ...formats import (
    BF16,
    FP16,
    FP32,
    TF32_OPERAND,
    Format,
    Precision,
    state_format_named,
)
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


# torch's softplus; PTX ISA: tanh.approx.f32 is within a relative 2^-11, sin.approx and
# cos.approx within an absolute 2^-20.5 of angles up to 2 pi. A hundredth more of tanh;
# of 3,154 fp32 angles in all an H200's cosine is further off, by up to 5.3 % at 4.9
# (analysis/results/kernel_constants.md), hence 2^-20.4.
SCAN = dataclasses.replace(
    STEP,
    underflow=KERNEL.underflow,
    softplus_absolute=0.0,
    tanh_relative=2.0**-11 * 1.01,
    turn_absolute=2.0**-20.4,
)

# Accurate sine and cosine; of them and of the sigmoid behind tanh 2 ulp.
DECODE = dataclasses.replace(STEP, softplus_absolute=0.0)

# A gate as x/2 tanh.approx(x/2) + x/2: half of 2^-11, and three roundings.
GATE = 2.0**-12 * 1.01 + 3 * 2.0**-24

# What the weights' format does not touch.
HELD = ("dt_bias", "B_bias", "C_bias", "D", "mimo_x", "mimo_z", "mimo_o")

# Of rank 1: what is cast before the kernel, and what is stored in it.
CASTS = ("x_cast", "B_cast", "C_cast", "trapezoid_cast", "angle_cast")
PRODUCTS = ("q_turned", "k_weighed", "chunk_state", "CB_decayed", "v_decayed")

# Of higher rank.
RANKED = (
    *("dt_cast", "gamma_ahead", "key_weight", "B_biased", "C_biased", "CB"),
    *("k_turned", "q_turned", "k_weighed", "v_ranked", "chunk_state", "CB_decayed"),
    *("k_decayed", "CBv", "CBv_sum", "CBv_weighed", "of_the_token"),
)
RANKED_GATE = ("silu_z", "gate_product", "gated_rank", "rank_sum")


def mamba_ssm_mamba3_prefill(
    precision: str,
    *,
    rank: int | None,
    gate_norm: bool,
    residual_in_fp32: bool = True,
    fused_add_norm: bool = True,
    state_precision: str | None = None,
    chunk: int = 64,
) -> Execution:
    """Mamba-3 under mamba_ssm, a whole sequence at once.

    **Arguments:**

    - `precision`: `bf16`, `fp16`, `fp32`, `bf16-cast`, `bf16-amp` or `fp16-amp`.
    - `rank`: None for SISO.
    - `gate_norm`: whether each head is normalised before the gate. Without, z gates
      inside the kernel.
    - `residual_in_fp32`, `fused_add_norm`: of the checkpoint's config.
    - `state_precision`: go token by token, as decoding does, and store the state in
      this format after every token; None: chunk by chunk, with the state in fp32
      between chunks.
    - `chunk`: tokens of a chunk.

    **Raises:** `UsageError` for a precision that there is not.
    """
    fmt, sites, parameters = _formats(precision, residual_in_fp32, fused_add_norm)
    if state_precision is not None and state_precision != FP32.name:
        return dataclasses.replace(
            mamba_ssm_mamba3_decode(
                precision,
                rank=rank,
                gate_norm=gate_norm,
                residual_in_fp32=residual_in_fp32,
                fused_add_norm=fused_add_norm,
                state_precision=state_precision,
            ),
            name=f"mamba_ssm prefill, {precision}",
            mode="prefill",
        )
    if rank is not None and fmt == FP32:
        raise UsageError(
            "how Mamba-3's kernels of rank above 1 run in fp32 is not declared here",
            hint="bf16 or fp16; fp32 with --mode decode",
        )
    own = BF16 if rank is None else fmt
    cast = Precision.named(precision).cast
    constants = SCAN
    if rank is None:
        own_sites, how = _of_rank_1(fmt, cast, gate_norm)
        sites |= own_sites
    else:
        own_sites, how = _of_ranks(fmt, gate_norm)
        sites |= own_sites
        parameters |= dict.fromkeys(("B_bias", "C_bias", "mimo_x"), fmt)
        if not gate_norm:
            parameters["mimo_o"] = fmt
            constants = dataclasses.replace(SCAN, silu_size=GATE)
    how = f"{how}; a chunk has {chunk} tokens"
    return Execution(
        name=f"mamba_ssm prefill, {precision}",
        implementation="mamba_ssm",
        kind="mamba3",
        mode="prefill",
        precision=precision,
        state_precision=FP32.name,
        sites=sites,
        parameters=parameters,
        constants=constants.on_tensor_cores(fmt),
        depths=_depths(own, chunk),
        assumptions=(
            assume_formats(sites, parameters),
            assume_state(None),
            how,
            "between two stores the arithmetic is fp32; any multiply and add may be "
            "fused",
            f"{_adding(own)}; reduced-precision reductions are off",
            "tanh.approx within a relative 2^-11, sin.approx and cos.approx within "
            "2^-20.4, angles reduced modulo 2 pi in fp32 at every chunk; exp 2 ulp, "
            "silu and sigmoid 8 ulp, reciprocal square root 2 ulp",
        ),
        form=Form(chunked=True),
    )


def _of_rank_1(fmt: Format, cast: bool, gate_norm: bool) -> tuple[dict, str]:
    """Stores of the kernel of rank 1, by site, and what is said of them."""
    sites = {}
    if fmt != BF16:
        sites |= dict.fromkeys(CASTS, BF16)
        sites |= {} if gate_norm else {"z_cast": BF16}
    # the sums of angles are put into an array of the angles' format
    sites |= dict.fromkeys(("angle_sum", *PRODUCTS), BF16)
    if cast:
        sites |= dict.fromkeys(
            ("B_biased", "C_biased", "CB_product", "CB", "k_turned"), fmt
        )
    else:
        sites["CB_operand"] = TF32_OPERAND
    sites |= {"scan_output": BF16} if gate_norm else {}
    sites["gated"] = BF16
    sites |= {"gated_cast": fmt} if fmt == FP16 else {}
    return sites, (
        "what the scan reads and stores, angles as well, is rounded to bf16 in a model "
        "of any format"
    )


def _of_ranks(fmt: Format, gate_norm: bool) -> tuple[dict, str]:
    """Stores of the kernels of higher rank, by site, and what is said of them."""
    sites = dict.fromkeys(RANKED, fmt)
    sites |= dict.fromkeys(("scan_output",) if gate_norm else RANKED_GATE, fmt)
    sites["gated"] = fmt
    return sites, (
        "dt, gamma, keys, queries, pairs of tokens, sums over ranks and the state "
        f"handed to a chunk are rounded to {fmt.name}"
    )


def mamba_ssm_mamba3_decode(
    precision: str,
    *,
    rank: int | None,
    gate_norm: bool,
    residual_in_fp32: bool = True,
    fused_add_norm: bool = True,
    state_precision: str | None = None,
) -> Execution:
    """Mamba-3 under mamba_ssm, token by token from a cache (`Mamba3.step`).

    **Arguments:** as for `mamba_ssm_mamba3_prefill`, and

    - `state_precision`: of the state in the cache; None is fp32, as
      `allocate_inference_cache` makes it for weights of any format. Keys and values in
      the cache have the weights' format.

    **Raises:** `UsageError` for a precision that there is not.
    """
    del rank
    fmt, sites, parameters = _formats(precision, residual_in_fp32, fused_add_norm)
    cache = state_precision or FP32.name
    sites["state"] = state_format_named(cache)
    sites |= dict.fromkeys(("trapezoid", "k_turned", "q_turned"), fmt)
    constants = DECODE
    if gate_norm:
        sites["scan_output"] = fmt
    else:
        constants = dataclasses.replace(DECODE, silu_size=GATE)
    return Execution(
        name=f"mamba_ssm decode, {precision}",
        implementation="mamba_ssm",
        kind="mamba3",
        mode="decode",
        precision=precision,
        state_precision=cache,
        sites=sites,
        parameters=parameters,
        constants=constants.on_tensor_cores(fmt),
        depths=_depths(fmt, 1),
        assumptions=(
            assume_formats(sites, parameters),
            assume_state(sites["state"]),
            "between two stores the arithmetic is fp32; any multiply and add may be "
            "fused; angles are added up in fp32 and not reduced",
            f"{_adding(fmt)}; reduced-precision reductions are off",
            "exp, sine and cosine 2 ulp, sigmoid 8 ulp, reciprocal square root 2 ulp, "
            "the gate by tanh.approx, within a relative 2^-11",
        ),
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


def _formats(precision: str, residual_in_fp32: bool, fused_add_norm: bool):
    """The activations' format, the sites and the parameters of a precision."""
    if precision == "fp16-cast":
        raise UsageError(
            "Mamba-3's kernels mix bf16 and fp16 where all parameters are cast to fp16",
            hint="fp16, or bf16-cast",
        )
    fmt, sites, parameters = activation_formats(
        precision, residual_in_fp32, fused_add_norm, "mamba3"
    )
    for site in ("conv", "x_proj", "dt"):
        sites.pop(site)
    sites |= dict.fromkeys(("B_norm", "C_norm"), fmt)
    parameters.pop("A_log", None)
    said = Precision.named(precision)
    if said.cast:
        sites |= dict.fromkeys(("dt_biased", "softplus"), fmt)
    elif not said.autocast:
        parameters |= dict.fromkeys(HELD, FP32)
    return fmt, sites, parameters
