"""transformers 5 without kernels: Mamba-1 in plain torch operations.

Read from `models/mamba/modeling_mamba.py` of transformers 5.17 to 5.24. Every torch
operation stores its result, so there are more sites than in the kernels: the conv
before its activation, dt with its bias, softplus, the state before the read-out,
silu(z). `torch_dtype=` casts every parameter, A_log and D too.

Decoding keeps the state in fp32 in its cache, whatever the model's format, and rounds
D u and its sum, which a whole sequence adds in fp32.

`bf16-amp` is fp32 weights under `torch.autocast` on CPU, whose list casts matrix
products and the convolution; softplus and exponentials run in the format that they
meet (on CUDA autocast lifts them to fp32, which is another execution).
"""

from ..._errors import UsageError
from ...formats import FP32, Format
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
from ._source import assume_version, refuse_older


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
    tanh_relative=2.0**-22,
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
# Where out_proj has a bias: a whole sequence reaches it as a transposed view, of which
# torch rounds the product before it adds the bias. A step's input is contiguous.
STORED_OF_SEQUENCES = ("out_product",)


# What autocast on CPU casts besides matrices; the bias of dt is cast by the mixer.
AUTOCAST = ("conv_weight", "conv_bias", "dt_bias")


def transformers_prefill(precision: str, *, residual_in_fp32: bool = True) -> Execution:
    """Mamba-1 under transformers' torch code, a whole sequence at once.

    **Arguments:**

    - `precision`: `bf16`, `fp16`, `fp32`, or `bf16-amp` and `fp16-amp`.
    - `residual_in_fp32`: of the checkpoint's config.

    **Raises:** `UsageError` for a precision that there is not, or where a version of
    transformers is installed that is older than what was read.
    """
    return _execution(precision, residual_in_fp32, "prefill")


def transformers_decode(precision: str, *, residual_in_fp32: bool = True) -> Execution:
    """Mamba-1 under transformers' torch code, token by token from a cache.

    **Arguments:** as for `transformers_prefill`; there is no autocast here.

    **Raises:** as `transformers_prefill`.
    """
    return _execution(precision, residual_in_fp32, "decode")


def _execution(precision: str, residual_in_fp32: bool, mode: str) -> Execution:
    refuse_older()
    fmt, variant = parse_precision(precision, "transformers")
    if variant == "cast":
        raise UsageError(
            f"transformers casts every parameter in {fmt.name} already",
            hint=f"--precision {fmt.name}",
        )
    if variant == "amp" and (mode == "decode" or not residual_in_fp32):
        raise UsageError(
            "autocast is followed for whole sequences with the residual in fp32",
            hint=f"--precision {fmt.name}, or --measure emulated",
        )
    sites: dict[str, Format] = {site: fmt for site in STORED}
    sites |= {"embedding": fmt, "norm_f": fmt, "logits": fmt, "residual": FP32}
    parameters = {"default": fmt}
    if variant == "amp":
        parameters = autocast_parameters("mamba1", fmt, AUTOCAST)
        # the norm is fp32 throughout; what in_proj reads of it is cast
        sites |= {"embedding": FP32, "norm_hat": FP32}
    else:
        # the block casts the residual to the weights' format before the norm
        sites["norm_input"] = fmt
    if not residual_in_fp32:
        sites |= {"residual": fmt, "norm_f_hat": fmt}
    state = None
    if mode == "prefill":
        sites |= dict.fromkeys(STORED_OF_SEQUENCES, fmt)
    else:
        sites |= {"skip": fmt, "skip_sum": fmt, "state": FP32}
        state = FP32
    return Execution(
        name=f"transformers {mode}, {precision}",
        implementation="transformers",
        kind="mamba1",
        mode=mode,
        precision=precision,
        state_precision=FP32.name,
        sites=sites,
        parameters=parameters,
        constants=TORCH,
        depths=Depths(
            accumulation=any_order,
            reduction=any_order,
            scan=any_order if state is None else one_addition,
        ),
        assumptions=(
            assume_formats(sites, parameters),
            assume_state(state),
            assume_version(),
            "every torch operation stores its result; inside one the arithmetic is "
            "fp32, its sums in any order",
            "the scan runs token by token in fp32",
            "exp 2 ulp, softplus and silu 4 ulp, reciprocal square root 2 ulp",
        ),
    )
