"""Delta rules as vLLM 0.33.0 and SGLang 0.5.23 run them: Qwen3-Next, Qwen3.5, OLMo
hybrid (`gated_delta`), and Kimi Linear (`kimi_delta`).

Read in vLLM's `model_executor/layers/mamba/gdn/*.py`, `third_party/
flash_linear_attention/ops` and `models/kimi_k3/nvidia/ops/third_party/kda`, and in
SGLang's `srt/layers/attention/linear` and `kernels/ops/attention/fla`: Triton kernels
that were made of fla's (`fla.networks`), whose chunks of 64 begin with each call. What
they store otherwise:

- Queries and keys of unit length are stored in the model's format by prefills alone
  (`fused_gdn_prefill_post_conv.py`, `l2norm.py`); steps keep them in fp32.
- Rates are in fp32. SGLang's of a Gated DeltaNet are rounded to the model's format
  (`fused_gdn_gating.py`, `fused_recurrent_gated_delta_rule_packed_decode_kernel`), but
  not where drafts are verified (`fused_sigmoid_gating_recurrent.py`).
- vLLM's pairs of keys are a product of keys times rates in fp32, which tensor cores
  read as TF32 (`chunk_scaled_dot_kkt.py`), and its tiles of inverses are merged in fp32
  (`solve_tril.py`, FLA_TRIL_PRECISION=ieee); Kimi's and SGLang's in TF32.
- Kimi's queries are rounded times their scale, and times decays once more
  (`chunk_gla_fwd_kernel_o`).
- The state is in fp32 registers within a call, handed to chunks in the model's format,
  and left in the cache's (`chunk_delta_h.py`).
- The gated norm is rounded once (`RMSNormGated`, `FusedRMSNormGated`), eager or not.
- Kimi's convolution has weights in fp32, and so rounds no product.
"""

import dataclasses
from typing import Any

from .._errors import UsageError
from ..arithmetic import Form
from ..formats import FP32, TF32_OPERAND, Format
from ..sublayers import NetworkConfig
from ._execution import (
    Depths,
    Execution,
    any_order,
    assume_formats,
    assume_state,
    one_addition,
)
from ._launch import Launch
from ._stacks import DELTA, DELTA_FAMILIES, Stack
from .fla.networks import BY_KEY, KERNEL
from .mamba_ssm.mamba1 import STEP, tensor_core_depth


SHARED = ("q", "k", "v", "z", "rate_logit", "conv", "scan_output", "gated", "out")
STORED = {
    "gated_delta": (*SHARED, "gate_logit"),
    "kimi_delta": (*SHARED, "z_low", "forget_low", "forget"),
}
"""In the model's format, by every call."""
UNITS = ("q_unit", "k_unit")
"""And by calls over several tokens."""
CHUNK = (
    "QK_decayed", "v_beta", "k_beta_decayed", "inverse", "u", "w", "chunk_state",
    "v_new", "v_new_decayed",
)  # fmt: skip
"""In the model's format by chunks."""
CHUNK_BY_KEY = ("query_scaled", "q_decayed", "k_decayed")
"""Kimi's as well."""
IN_TF32 = (
    "inverse_operand", "k_beta_decayed", "w", "chunk_state", "k_decayed", "q_decayed",
    "v_new_decayed",
)  # fmt: skip
"""What Kimi's products read as TF32 in an fp32 model: all but u's and those of pairs
with what is written, which are asked for in fp32."""

# Triton's logarithm of 1 + exp, and a division by 1 + exp(-x) within 2 ulp.
TRITON = {
    "softplus_relative": STEP.softplus_relative,
    "softplus_argument": STEP.softplus_argument,
    "softplus_absolute": STEP.softplus_absolute,
    "silu_relative": STEP.silu_relative,
    "silu_argument": STEP.silu_argument,
}

WIDEST_KEY = 256
"""Entries of a key that `chunk_delta_h.py` takes."""
FUSED_DIM = 128
"""Of keys and values: other kernels are chosen for these."""


def delta_mixer(
    block: Execution,
    kind: str,
    front: dict[str, Format],
    convolution: dict[str, Format],
    stack: Stack,
    *,
    mode: str,
    form: Format,
    state: Format,
    launch: Launch,
    architecture: str,
) -> Execution:
    """Declare how a stack runs a mixer whose recurrence is a delta rule.

    **Arguments:**

    - `block`: of the same network, whose other promises it has.
    - `front`: what the norm in front stores. `convolution`: what stands around the
      convolution.
    - `form`: of weights and activations. `state`: of the cache.
    """
    kimi, whole = kind == "kimi_delta", mode == "prefill"
    sites = front | convolution | dict.fromkeys(STORED[kind], form)
    if kimi:
        sites.pop("conv_product", None)
    if stack.name == "SGLang" and not kimi and not launch.drafts:
        sites["rate"] = form
    if whole:
        sites |= chunk_sites(kind, form, stack)
    else:
        sites["state"] = state
    parameters = {"default": form}
    if architecture != "olmo_hybrid":
        parameters["A_log"] = FP32
    if kimi:
        fp32 = ("dt_bias", "conv_weight", "conv_bias")
        parameters |= dict.fromkeys(fp32, FP32)
    kernel = dataclasses.replace(BY_KEY if kimi else KERNEL, **TRITON)
    found = dataclasses.replace(
        block,
        kind=kind,
        sites=sites,
        parameters=parameters,
        state_precision=FP32.name if whole else state.name,
        constants=kernel.on_tensor_cores(form),
        form=Form(chunked=whole),
        depths=Depths(
            accumulation=tensor_core_depth if whole and form.is_reduced else any_order,
            reduction=any_order,
            scan=any_order if whole else one_addition,
        ),
        dt_limit=None,
        assumptions=(
            assume_formats(
                {name: f for name, f in sites.items() if name != "norm_read"},
                parameters,
            ),
            *_said(sites, form, state, stack, whole),
        ),
    )
    return found.in_windows(1 + launch.drafts) if launch.drafts and not whole else found


def chunk_sites(kind: str, form: Format, stack: Stack) -> dict[str, Format]:
    """What the kernels of a whole text store, and what their products read.

    **Arguments:**

    - `kind`: `gated_delta` or `kimi_delta`. `form`: of q, k and v.
    """
    kimi = kind == "kimi_delta"
    stored = (*UNITS, *CHUNK, *(CHUNK_BY_KEY if kimi else ()))
    sites: dict[str, Format] = {site: form for site in stored}
    if kimi:
        # sums of gates are held times log2(e), and pairs made of keys times decays
        sites |= {"elapsed": FP32, "pair_operand": TF32_OPERAND}
    if not kimi and stack.name == "vLLM":
        sites["k_rated"] = TF32_OPERAND
    else:
        sites["tile_operand"] = TF32_OPERAND
    if not form.is_reduced:
        sites |= dict.fromkeys(IN_TF32, TF32_OPERAND)
    return sites


def demand_delta(
    stack: Stack,
    config: NetworkConfig,
    architecture: str,
    form: Format,
    mode: str,
    launch: Launch,
) -> None:
    """Refuse delta rules that a stack does not run, or whose kernels were not followed.

    **Raises:** `UsageError`.
    """
    own: list[Any] = [s for s in config.sublayers if s.kind in DELTA]
    families = DELTA_FAMILIES[stack.name]
    if architecture not in families:
        raise UsageError(
            f"of {stack.name}'s delta rules those of {', '.join(sorted(families))} "
            f"are followed, not of {architecture}",
            hint="--measure emulated",
        )
    widest = max(one.key_dim for one in own)
    if widest > WIDEST_KEY:
        raise UsageError(
            f"{stack.name}'s chunks take keys of {WIDEST_KEY} entries at most, not "
            f"{widest}",
            hint="--measure emulated",
        )
    gated = [one for one in own if one.kind == "gated_delta"]
    if gated and not form.is_reduced:
        raise UsageError(
            f"{stack.name}'s prefill of a Gated DeltaNet asserts 16 bits: "
            "chunk_gated_delta_rule does not take float32",
            hint="--precision bf16",
        )
    if any(getattr(one, "gate_lower_bound", None) is not None for one in own):
        raise UsageError(
            f"{stack.name} has other kernels for gates with a lower bound, which are "
            "not followed",
            hint="--measure emulated",
        )
    _demand_launch(stack, own, architecture, form, launch)
    if mode == "prefill" and gated and not launch.triton_prefill:
        _demand_triton(stack, gated, architecture)


def _demand_launch(
    stack: Stack, own: list[Any], architecture: str, form: Format, launch: Launch
) -> None:
    """Of a start, what changes nothing of a delta rule, or was not followed."""
    for flag, given in (
        ("--mamba-backend flashinfer", launch.flashinfer),
        ("--enable-mamba-cache-stochastic-rounding", launch.stochastic),
        ("--use-replayssm", launch.ring is not None),
    ):
        if given:
            raise UsageError(
                f"{flag} is of {stack.name}'s Mamba-2, not of delta rules",
                hint="leave it out",
            )
    kimi = any(one.kind == "kimi_delta" for one in own)
    if kimi and stack.window is None and launch.state not in (None, "fp32"):
        # `KimiGatedDeltaNetAttention.get_state_dtype` hands it no such format
        raise UsageError(
            "vLLM's layer of Kimi Linear keeps its state in fp32 whatever "
            "--mamba-ssm-cache-dtype says",
            hint="leave that flag out",
        )
    if not launch.drafts:
        return
    if kimi and stack.window is not None:
        raise UsageError(
            "SGLang verifies drafts of Kimi Linear in a kernel fused with the "
            "convolution, which is not followed",
            hint="leave out --speculative-num-draft-tokens",
        )
    fused = architecture.startswith("qwen3_5") and form.name == "bf16"
    fused = fused and any(one.key_dim == one.value_dim == FUSED_DIM for one in own)
    if fused and stack.window is None and not launch.triton_steps:
        # `_fused_gdn_decode_unsupported_reason`; its CUDA source is not in the wheel
        raise UsageError(
            "vLLM verifies drafts of this network in a fused CUDA kernel, which is not "
            "followed",
            hint="VLLM_GDN_DECODE_KERNEL=triton behind the stack's name",
        )


def _demand_triton(stack: Stack, gated: list[Any], architecture: str) -> None:
    """Of prefills, those that FlashInfer's kernels run on some GPUs."""
    if stack.window is None and architecture != "olmo_hybrid":
        # `_resolve_gdn_prefill_backend`
        raise UsageError(
            "from compute capability 9.0 on vLLM prefills a Gated DeltaNet in "
            "FlashInfer's kernels, which are not followed",
            hint="--gdn-prefill-backend triton behind the stack's name",
        )
    fused = any(one.key_dim == one.value_dim == FUSED_DIM for one in gated)
    if stack.window is not None and fused:
        # `flashinfer_gdn_prefill_default`
        raise UsageError(
            f"SGLang prefills a Gated DeltaNet with heads of {FUSED_DIM} in "
            "FlashInfer's kernels on compute capability 9.0 and 10.0, which are not "
            "followed",
            hint="--linear-attn-prefill-backend triton behind the stack's name",
        )


def _said(
    sites: dict[str, Format], form: Format, state: Format, stack: Stack, whole: bool
):
    """What holds of the kernels, for people."""
    yield f"the delta rule runs in {stack.name}'s own Triton kernels, and no other"
    if not whole:
        yield "a step is one fused kernel, in fp32 but for what it reads and puts out"
        yield assume_state(state)
    else:
        merged = "tile_operand" in sites
        yield (
            "chunks of 64 tokens begin with each call; inverses of tiles of 16 by "
            "substitution in fp32, merged by products "
            + ("of TF32 operands" if merged else "in fp32")
        )
        if "k_rated" in sites:
            yield "pairs of keys read keys times rates as TF32"
        if not form.is_reduced:
            yield "other products in TF32, too, but those of u and of pairs"
        yield (
            f"a chunk reads the state in front in {form.name}; the one that a call "
            f"leaves is rounded to {state.name}, to nearest even"
        )
    yield "between two stores the arithmetic is fp32; any multiply and add may be fused"
    yield "sums of 16-bit products may be cut at a relative 2^-23; exp2 within 2 ulp"
