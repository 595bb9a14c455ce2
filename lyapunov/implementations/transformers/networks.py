"""transformers 5 without kernels: networks of any family in plain torch operations.

Read from the modeling files of transformers 5.17 to 5.24; attention and experts are
"eager". What differs among them is read from the installed one.
Every torch operation stores its result in the model's format. Exceptions, where a
module works in fp32 inside: norms (what they normalise is rounded before the weight
multiplies it, but not in OLMo 2 and Nemotron-H), the softmax of attention, the scan of
Mamba-2 from dt on to its gated norm, which is rounded once in front of out_proj.
"""

import dataclasses
import functools
import math

from ..._errors import UsageError
from ...arithmetic import Form
from ...formats import FP16, FP32, Format, state_format_named
from ...sublayers.config import NetworkConfig, plain_mamba1
from ...sublayers.sites import GELU_NEW, LOGITS
from .._execution import (
    Execution,
    any_order,
    assume_formats,
    assume_state,
    one_addition,
    parse_precision,
)
from ._source import (
    assume_version,
    installed,
    refuse_other_functions,
    rounds_before_weight,
    source,
)
from .linear import linear_kinds
from .mamba1 import (
    TORCH,
    transformers_decode,
    transformers_prefill,
)
from .rwkv import refuse_divided, rwkv_kinds
from .xlstm import mlstm_kind


# torch's own CUDA kernels are built without fast math: CUDA's expf, logf and erff are
# within 2 ulp. Tensor cores cut what they add to their sums.
TORCH_CUDA = dataclasses.replace(TORCH, accumulator_unit=2.0**-23)

STREAM = ("residual", "residual_aside", "residual_scaled")

# Recurrences that no library has kernels of which are followed here.
OF_TORCH_ALONE = ("rg_lru", "rwkv4", "channel_mix", "lightning", "mlstm", "norm")

# Sublayers whose kernels are torch's on a GPU too.
TORCH_ON_CUDA = ("attention", "mlp", "experts")

# Weights of norms multiply in fp32, so that the result alone is rounded; Nemotron-H's
# do so from 5.18 on.
NORM_ROUNDS_ONCE = (
    *("olmo2", "olmo_hybrid", "nemotron_h", "qwen3_next", "qwen3_5", "qwen3_5_moe"),
    *("lara_mini", "recurrent_gemma"),
)

# Of the gated norm of a step, or of a delta rule, as well.
GATE_NORM_ROUNDS_ONCE = ("falcon_h1", "lara_mini")

# Cosines, sines and products with them stay in fp32; the turned q and k are rounded.
TURNS_IN_FP32 = ("olmo", "olmo2", "olmo_hybrid")

# log(1 + exp(x)) by two functions: 1 + exp(x) is rounded once more.
SOFTPLUS_WRITTEN_OUT = {"softplus_absolute": 2.0**-23}
# Log gates of Kimi's mixer are rounded to the model's format.
ROUNDS_GATES = ("bailing_hybrid",)

# Parameters that stay in fp32 whatever the model's format is.
KEPT_IN_FP32 = {
    "zamba": ("A_log",),
    "nemotron_h": ("router_bias",),
    "olmo_hybrid": ("A_log",),
    "kimi_linear": ("dt_bias", "router", "router_bias"),
    "bailing_hybrid": ("conv_weight", "A_log", "dt_bias", "router", "router_bias"),
}
# And from these versions of transformers on.
KEPT_SINCE = {"nemotron_h": ((5, 24), ("router",))}

# Steps apply no limits of dt (`selective_state_update` in plain torch).
NO_LIMIT = (0.0, math.inf)
# Whole sequences limit it by time_step_min, and not by time_step_limit.
LEAST_DT = ("nemotron_h", "zamba2")

# No module reads residual_in_fp32.
RESIDUAL_AS_IT_IS = ("nemotron_h",)

# What stays in fp32 of how experts are chosen, weighed and added up.
ROUTES_IN_FP32 = {
    "nemotron_h": {"router", "expert_weight", "expert_weighed", "routed_sum"},
    "kimi_linear": {"router", "expert_weight"},
    "bailing_hybrid": {"router", "expert_weight"},
    "lara_mini": {"router"},
    "minimax": {"expert_weight"},
}

NORMS = (
    *("norm", "norm_behind", "mlp_norm", "q_norm", "k_norm"),
    *("q_down_norm", "kv_down_norm"),
)
MIXER_NORMS = ("dt_norm", "B_norm", "C_norm")

MAMBA2 = (
    "in_scaled", "xz", "row_multipliers", "xz_scaled", "conv_sum", "conv", "dt_biased",
    "softplus", "dt_clipped", "silu_z", "gated", "out", "out_scaled",
)  # fmt: skip
# Of a step from the cache, whose state is in fp32.
STEP = ("dB", "dBx", "state_read", "read_out", "skip", "skip_sum", "gate_norm_hat")
DELTA = (
    "q", "k", "v", "z", "z_low", "gate_logit", "rate_logit", "forget_low", "forget",
    "conv_sum", "conv", "rate", "scan_output", "gate_norm_hat", "gate_norm", "gated",
    "out",
)  # fmt: skip
SHORT_CONV = ("xz", "conv_input", "conv", "gated", "out")
ATTENTION = (
    "in_scaled", "q_shared", "q_low", "q_own", "q", "k_shared", "k_low", "k_own", "k",
    "v_shared", "v_low", "v_own", "v",
    "q_clipped", "k_clipped", "v_clipped", "k_scaled", "rotary_cos", "rotary_sin",
    "q_cos", "q_sin",
    "q_turned", "k_cos", "k_sin", "k_turned", "scores_product", "scores", "attention",
    "read", "q_down", "kv_down", "output_gate", "output_gate_sigmoid", "read_gated",
    "out", "out_scaled",
)  # fmt: skip
MLP = (
    "up_shared", "up_low", "up_own", "up", "gate_shared", "gate_low", "gate_own",
    "gate", "gate_scaled", "activated", "hidden", "down", "out", "out_scaled",
)  # fmt: skip
SHARED = (*ATTENTION, *MLP, "attended", "mlp_out")
EXPERTS = (
    *MLP, "router", "expert_weight", "latent", "expert_up", "expert_gate",
    "expert_activated", "expert_hidden", "expert_out", "expert_weighed", "routed_sum",
    "routed", "from_latent", "shared", "shared_router", "shared_weight",
    "shared_weighed",
)  # fmt: skip


def transformers_network(
    config: NetworkConfig, architecture: str, precision: str, mode: str = "prefill"
) -> Execution:
    """A network under transformers' torch code.

    **Arguments:**

    - `architecture`: name of the family, which says where its code rounds.
    - `precision`: `bf16`, `fp16` or `fp32`; of Mamba-1 alone also with `-amp`.
    - `mode`: `decode` is one token a call, from a cache of no token.

    **Raises:** `UsageError` for a precision that is not followed, and where the
    installed version computes another function than the checkpoint says.
    """
    refuse_other_functions(architecture, config.sublayers)
    fmt, variant = parse_precision(precision, "transformers")
    refuse_divided(config, fmt)
    make = transformers_decode if mode == "decode" else transformers_prefill
    if plain_mamba1(config) is not None:
        return make(precision, residual_in_fp32=config.residual_in_fp32)
    if variant:
        raise UsageError(
            f"{precision} is followed for Mamba-1 alone", hint=f"--precision {fmt.name}"
        )
    wide = config.residual_in_fp32 and architecture not in RESIDUAL_AS_IT_IS
    mixer = make(precision, residual_in_fp32=wide)
    kept = dict.fromkeys(kept_in_fp32(architecture, installed()), FP32)
    mixer = dataclasses.replace(mixer, parameters=mixer.parameters | kept)
    around = {
        name: f
        for name, f in mixer.sites.items()
        if name in ("embedding", "residual", "norm_f", "norm_f_hat", "logits")
    }
    around |= dict.fromkeys(("beside", "residual_aside", "logits_scaled"), fmt)
    if any(one.keeps not in (0.0, 1.0) for one in config.sublayers):
        around["residual_scaled"] = fmt
    if config.logits_soft_cap is not None:
        around |= dict.fromkeys(LOGITS, fmt)
    once = config.norm_centred or (
        architecture in NORM_ROUNDS_ONCE and not rounds_before_weight(architecture)
    )
    norms = {}
    for name in NORMS:
        norms[name] = fmt
        if not once:
            norms[f"{name}_hat"] = fmt
    decode = mode == "decode"
    kinds = _kinds(mixer, config, architecture, fmt, around, norms, decode)
    recurrent = {one.kind for one in config.sublayers if one.recurrent}
    # lightning attention keeps its states as they are computed, xLSTM in its cache
    narrow = "lightning" in recurrent or (decode and recurrent == {"mlstm"})
    state = fmt if narrow else FP32
    both = [f"{name}{end}" for name in MIXER_NORMS for end in ("_hat", "")]
    sites = mixer.sites | around | norms | dict.fromkeys(both, fmt)
    for name in ("norm_hat", "norm_f_hat") if once else ():
        sites.pop(name, None)
    return dataclasses.replace(
        mixer,
        sites=sites,
        state_precision=state.name,
        kinds={
            kind: dataclasses.replace(one, kind=kind) for kind, one in kinds.items()
        },
        depths=dataclasses.replace(
            mixer.depths, scan=one_addition if decode else any_order
        ),
        assumptions=(
            assume_formats(sites, mixer.parameters),
            assume_version(),
            "every torch operation stores its result; inside one the arithmetic is "
            "fp32, its sums in any order",
            "attention and experts run as the model's code writes them out (eager)",
            "norms and softmax work in fp32 inside"
            + (", and scans of whole sequences" if recurrent else ""),
            *([assume_state(state)] if decode and recurrent else ()),
            "exp, sine and cosine 2 ulp, softplus, silu and gelu 4 ulp, reciprocal "
            "square root 2 ulp",
        ),
    )


def emulated_network(
    config: NetworkConfig,
    architecture: str,
    precision: str,
    mode: str,
    state_precision: str | None,
) -> Execution:
    """A network under transformers' torch code but for the format of its states, in
    which any but fp32 makes a whole text go token by token.

    **Raises:** `UsageError` for a format with a scale, and as `transformers_network`.
    """
    found = transformers_network(config, architecture, precision, mode)
    state = state_format_named(state_precision or found.state_precision)
    if state.name == found.state_precision:
        own = mode == "prefill" and any(one.recurrent for one in config.sublayers)
        said = (*found.assumptions, *[assume_state(None)] * own)
        return dataclasses.replace(found, assumptions=said)
    few = {"rg_lru", "rwkv4", "mlstm"} & {one.kind for one in config.sublayers}
    if few and getattr(state, "scaled", False):
        raise UsageError(
            f"{state.name} is under one scale a channel, which here has few states",
            hint="--state bf16, or another format without a scale",
        )
    kinds = {
        kind: dataclasses.replace(
            one,
            sites=one.sites | dict.fromkeys(("state", "state_top"), state),
            state_precision=state.name,
            depths=dataclasses.replace(one.depths, scan=one_addition),
        )
        for kind, one in found.kinds.items()
        if kind in OF_TORCH_ALONE
    }
    said = [text for text in found.assumptions if "recurrent state" not in text]
    return dataclasses.replace(
        found,
        state_precision=state.name,
        kinds=found.kinds | kinds,
        assumptions=(*said, assume_state(state)),
    )


def _kinds(
    mixer: Execution,
    config: NetworkConfig,
    architecture: str,
    fmt: Format,
    around: dict[str, Format],
    norms: dict[str, Format],
    decode: bool,
) -> dict[str, Execution]:
    """What the code of each kind of sublayer stores, but of Mamba-1's.

    **Arguments:**

    - `mixer`: Mamba-1's, of which everything else is taken.
    - `around`, `norms`: what the stream and the norms store.
    """
    front = {name: around[name] for name in STREAM if name in around}
    front |= {"norm_input": fmt} | norms

    def of(sites, **changes) -> Execution:
        found = front | dict.fromkeys(sites, fmt)
        return dataclasses.replace(mixer, sites=found, **changes)

    parts = [part for part in GELU_NEW if part != "square" or fmt != FP16]
    written = [f"activated_{part}" for part in parts]
    turning = set(ATTENTION)
    if architecture in TURNS_IN_FP32:
        turning -= {"rotary_cos", "rotary_sin", "q_cos", "q_sin", "k_cos", "k_sin"}
    step = set(STEP)
    if architecture in GATE_NORM_ROUNDS_ONCE:
        step -= {"gate_norm_hat"}
    mamba2 = of(
        (*MAMBA2, *step) if decode else MAMBA2,
        # `mamba2_chunk_scan` sums all chunks' states times exp of masked sums
        form=Form(chunked=not decode, chunks_at_once=not decode),
        dt_limit=NO_LIMIT if decode else _limit_of_sequences(config, architecture),
    )
    # the delta rule from the normalised keys on is in fp32, its whole output too
    once = {"gate_norm_hat", "gate_norm"}
    # taps in fp32 make all of the convolution fp32
    taps = "conv_weight" in KEPT_IN_FP32.get(architecture, ())
    in_fp32 = once | ({"conv_sum"} if taps else set())
    gated = once if architecture in GATE_NORM_ROUNDS_ONCE else set()
    gated_delta = of(set(DELTA) - gated, form=Form(chunked=not decode))
    kimi_delta = of(
        {*DELTA, *(("log_gate",) if architecture in ROUNDS_GATES else ())} - in_fp32,
        form=Form(chunked=not decode),
        constants=dataclasses.replace(mixer.constants, **SOFTPLUS_WRITTEN_OUT),
    )
    linear = linear_kinds(of, fmt, written, decode=decode)
    mixers = mamba2, gated_delta, kimi_delta, linear["rg_lru"]
    for one in mixers if decode else ():
        one.sites["state"] = FP32
    return {
        "gated_delta": gated_delta,
        "kimi_delta": kimi_delta,
        "mamba2": mamba2,
        **linear,
        "attention": of(turning),
        "short_conv": of(SHORT_CONV),
        **rwkv_kinds(of, fmt, decode),
        "mlstm": mlstm_kind(of, fmt, decode),
        "mlp": of((*MLP, *written)),
        "experts": of(
            {*EXPERTS, *written, *(f"expert_{name}" for name in written)}
            - ROUTES_IN_FP32.get(architecture, set())
        ),
        "shared": of((*SHARED, *written)),
    }


def _limit_of_sequences(
    config: NetworkConfig, architecture: str
) -> tuple[float, float] | None:
    """Where this transformers clips dt in whole sequences; None: as the model says."""
    given = {getattr(s, "transformers_dt_limit", None) for s in config.sublayers}
    given -= {None}
    if not given or not clips_at_least_dt(architecture):
        return None
    (limit,) = given
    return limit


@functools.cache
def clips_at_least_dt(architecture: str) -> bool:
    """Whether the installed transformers limits dt by `time_step_min` alone.

    Its source is read and not run. Versions to 5.24 do so in the families of
    `LEAST_DT`, as is assumed where none is installed.
    """
    if architecture not in LEAST_DT:
        return False
    code = source(architecture)
    return code is None or "time_step_limit = (config.time_step_min" in code


def kept_in_fp32(architecture: str, version: tuple[int, ...] | None) -> tuple[str, ...]:
    """Parameters that this version of transformers keeps in fp32; None: the newest."""
    since, more = KEPT_SINCE.get(architecture, ((), ()))
    newer = version is None or version >= since
    return KEPT_IN_FP32.get(architecture, ()) + (more if newer else ())


def transformers_cuda_network(
    config: NetworkConfig, architecture: str, precision: str, mode: str = "prefill"
) -> Execution:
    """The same torch code on an NVIDIA GPU; networks without recurrences alone.

    **Raises:** `UsageError` where a sublayer would run in mamba_ssm's kernels instead,
    and as `transformers_network`.
    """
    recurrent = sorted({x.kind for x in config.sublayers} - set(TORCH_ON_CUDA))
    if recurrent:
        raise UsageError(
            f"on a GPU transformers runs {', '.join(recurrent)} in other kernels",
            hint="--measure mamba_ssm, or --measure transformers",
        )
    execution = transformers_network(config, architecture, precision, mode)
    fmt, _ = parse_precision(precision, "transformers")
    there = {"constants": TORCH_CUDA.on_tensor_cores(fmt)}
    return dataclasses.replace(
        execution,
        **there,
        name=f"{execution.name}, on CUDA",
        kinds={
            kind: dataclasses.replace(one, **there)
            for kind, one in execution.kinds.items()
        },
        assumptions=(
            *execution.assumptions,
            "on CUDA: sums of 16-bit products may be cut at a relative 2^-23; "
            "TF32 and sums in 16 bit are off",
        ),
    )
