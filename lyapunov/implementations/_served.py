"""Networks as vLLM 0.33.0 and SGLang 0.5.23 run them: executions of both stacks.

Read in vLLM's `model_executor/layers/mamba` (`mamba_mixer.py`, `mamba_mixer2.py`,
`ops/ssd_*.py`, `ops/mamba_ssm.py`, `ops/causal_conv1d.py`), `ir/ops/layernorm.py` and
`models/mamba2.py`, in SGLang's `srt/layers/attention/mamba`, and in FlashInfer 0.7.4
(`mamba/kernel_selective_state_update_stp.cuh`, `norm.cuh`). Scans and Triton's steps
are mamba_ssm's kernels, operation by operation; what differs is what is stored:

- The convolution reads inputs in the format of the cached window, and rounds every
  product to it where weights have it, too, and it has 16 bits.
- The state in front of a chunk is stored in the cache's format before it is handed to
  the chunk in the model's; every call leaves the state in the cache's format.
- dt_bias and D are held in the model's format, A in fp32 from A_log as it is stored;
  neither a step nor a scan limits dt.
- The stream is stored in the model's format; norms read the sum before it is rounded.

Delta rules are in `_served_delta`. Attention, MLPs and experts beside mixers are
declared as torch operations: of what these stacks run for them nothing was read.
"""

import dataclasses
from typing import Any

from ..formats import FP32, Format
from ..sublayers import NetworkConfig
from ._execution import (
    Execution,
    any_order,
    assume_formats,
    assume_state,
)
from ._launch import Launch
from ._served_delta import delta_mixer
from ._served_formats import (
    drafts_to_nearest,
)
from ._served_wanted import Rules, Wanted, wanted_of
from ._stacks import DELTA, MAMBA
from .mamba_ssm.mamba1 import STEP
from .mamba_ssm.mamba2 import NO_LIMIT
from .mamba_ssm.networks import mamba_ssm_network


# FlashInfer's step (`mamba/common.cuh`, compiled with -use_fast_math): __expf is within
# 2 + 1.173 |x| ulp, __logf within an absolute 2^-21.41 between 1/2 and 2 and 3 ulp
# elsewhere (CUDA C++ Programming Guide, "Intrinsic Functions"); softplus is
# __logf(1 + __expf(x)) up to 20, whose sum is rounded once. In units of 2^-23: with
# s(x) <= softplus(x) the sigmoid, the exponential's 2 s and the logarithm's 3 softplus
# or 3.01 are together no more than 4 softplus + 4.01, which is what is declared.
FLASHINFER_STEP = dataclasses.replace(
    STEP,
    exp_argument=1.25 * 2.0**-23,
    softplus_argument=1.25 * 2.0**-23,
    softplus_absolute=2.0**-21.41 + 2.0**-23,
)


def served_network(
    rules: Rules,
    config: NetworkConfig,
    architecture: str,
    precision: str,
    mode: str,
    state_precision: str | None,
    launch: Launch,
) -> Execution:
    """Declare how a stack runs a network.

    **Raises:** `UsageError` for what it does not serve, or fails at, or was not read.
    """
    asked = config, architecture, precision, mode, state_precision
    wanted = wanted_of(rules, *asked, launch)
    form = wanted.form
    recurrent = {s.kind for s in config.sublayers if s.recurrent}
    base = mamba_ssm_network(
        dataclasses.replace(config, residual_in_fp32=False, fused_add_norm=True),
        architecture,
        form.name,
        mode,
        wanted.state.name if mode == "decode" and recurrent & MAMBA else None,
    )
    found = {**base.kinds, base.kind: base}
    declared = {
        kind: _mixer(one, config, wanted)
        if kind in recurrent
        else _block(one, config, wanted)
        for kind, one in found.items()
    }
    declared |= {kind: _delta(base, kind, config, wanted) for kind in recurrent & DELTA}
    own = declared.pop(base.kind)
    around = own.sites if base.kind in recurrent else _block(base, config, wanted).sites
    twice = wanted.eager and not config.norm_centred and not config.norm_offset
    hats = {"norm_f_hat": form} if twice else {}
    used = [own if kind == base.kind else declared[kind] for kind in sorted(recurrent)]
    return dataclasses.replace(
        own,
        name=f"{launch.told(rules.name)} {mode}, {form.name}"
        + (f", cache {wanted.state.name}" if mode == "prefill" else ""),
        implementation=rules.name,
        precision=form.name,
        # between tokens of one call the state stays in fp32 registers
        state_precision=FP32.name if mode == "prefill" else wanted.state.name,
        sites=around | hats,
        kinds=declared,
        assumptions=tuple(
            dict.fromkeys(
                (
                    *(line for one in used for line in one.assumptions),
                    *_said(wanted, recurrent),
                    *_said_beside(config, recurrent),
                )
            )
        ),
    )


def _block(one: Execution, config: NetworkConfig, wanted: Wanted) -> Execution:
    """What stands beside mixers, behind this stack's norms."""
    return dataclasses.replace(one, sites=_fronted(one.sites, config, wanted))


def _delta(
    base: Execution, kind: str, config: NetworkConfig, wanted: Wanted
) -> Execution:
    """A mixer whose recurrence is a delta rule."""
    around = {k: f for k, f in base.sites.items() if k in ("norm", "residual_aside")}
    return delta_mixer(
        dataclasses.replace(base, kinds={}),
        kind,
        _fronted(around, config, wanted),
        _convolution(wanted),
        wanted.rules.stack,
        mode=wanted.mode,
        form=wanted.form,
        state=wanted.state,
        launch=wanted.launch,
        architecture=wanted.architecture,
    )


def _fronted(
    sites: dict[str, Format], config: NetworkConfig, wanted: Wanted
) -> dict[str, Format]:
    """The stores of the norm in front, as PyTorch's forms have them, eager or
    compiled, or as one kernel has."""
    # nor is a product stored in front of its bias
    dropped = ("norm_input", "norm_hat", "xz_product")
    without = {k: f for k, f in sites.items() if k not in dropped}
    stream = {"residual": wanted.form}
    # where weights are distances from 1, they are in fp32, and so is what they multiply
    # (`GemmaRMSNorm`)
    if wanted.eager and not config.norm_offset:
        # a LayerNorm is one torch operation
        hat = {} if config.norm_centred else {"norm_hat": wanted.form}
        return without | stream | hat
    return without | stream | {"norm_read": FP32}


def _mixer(one: Execution, config: NetworkConfig, wanted: Wanted) -> Execution:
    """A mixer's stores, parameters, form and constants."""
    launch, form, state = wanted.launch, wanted.form, wanted.state
    sizes: Any = next(s for s in config.sublayers if s.kind == one.kind)
    sites = _fronted(one.sites, config, wanted) | _convolution(wanted)
    parameters = {"default": form, "A_log": FP32}
    if wanted.window != form and wanted.rules.stack.window is not None:
        # its wrapper casts weights and bias to the window's format, too
        parameters |= dict.fromkeys(("conv_weight", "conv_bias"), wanted.window)
    how = dataclasses.replace(one.form, ranks=launch.ranks)
    constants, depths = one.constants, one.depths
    if launch.ranks > 1:
        parts = ("out_part", "out_hop", "x_proj_part", "x_proj_hop")
        sites |= dict.fromkeys(parts, form)
        depths = dataclasses.replace(depths, reduction=any_order)
    if one.kind == "mamba2":
        sites |= _of_norms(sizes, wanted)
    if wanted.mode == "prefill":
        if one.kind == "mamba2":
            grid = 0 if wanted.rules.on_a_grid else None
            again = state != FP32 and wanted.rules.last_again
            in_stream = not wanted.rules.on_a_grid
            how = dataclasses.replace(
                how, grid=grid, in_stream=in_stream, last_again=again
            )
            if state != FP32:
                sites["chunk_cached"] = state
        return dataclasses.replace(
            one,
            sites=sites,
            parameters=parameters,
            form=how,
            depths=depths,
            dt_limit=NO_LIMIT,
            assumptions=_replaced(one, sites, parameters, None),
        )
    sites["state"] = state
    if launch.flashinfer:
        constants = dataclasses.replace(
            FLASHINFER_STEP, operand_normal=constants.operand_normal
        )
    if launch.ring is not None:
        sites["B_scaled"] = form
        how = dataclasses.replace(how, chunked=True, chunk=launch.ring)
        depths = dataclasses.replace(depths, scan=any_order)
    made = dataclasses.replace(
        one,
        sites=sites,
        parameters=parameters,
        form=how,
        depths=depths,
        constants=constants,
        dt_limit=NO_LIMIT,
        state_precision=state.name,
        assumptions=_replaced(one, sites, parameters, state),
    )
    return made.in_windows(1 + launch.drafts) if launch.drafts else made


def _convolution(wanted: Wanted) -> dict[str, Format]:
    """What is stored around the convolution."""
    form, window = wanted.form, wanted.window
    casts_weights = wanted.rules.stack.window is not None
    sites = {}
    if window.is_reduced and (window == form or casts_weights):
        sites["conv_product"] = window
    if window.is_reduced and window != form:
        sites |= {"conv_input": window, "conv_in_window": window}
    return sites


def _of_norms(sizes: Any, wanted: Wanted) -> dict[str, Format]:
    """What the gated norm of a Mamba-2 stores before its result."""
    several = sizes.norm_groups > 1 or wanted.launch.ranks > 1
    if wanted.rules.compiles:
        if not wanted.eager:
            return {}
        if not sizes.gate_norm:
            return {"silu_z": wanted.form}
        return {"gate_norm_hat": wanted.form} if several else {}
    if not sizes.gate_norm:
        # `Mixer2RMSNormGated.forward_cuda` casts silu(z) in front of the product
        return {"silu_z": wanted.form}
    # one kernel for all groups; a single one over several devices is PyTorch's
    alone = sizes.norm_groups == 1 and wanted.launch.ranks > 1
    return {"gate_norm_hat": wanted.form} if alone else {}


def _replaced(
    one: Execution,
    sites: dict[str, Format],
    parameters: dict[str, Format],
    state: Format | None,
) -> tuple[str, ...]:
    """mamba_ssm's lines, but for those on what is stored."""
    stored = {
        site: form
        for site, form in sites.items()
        if site not in ("state", "norm_read", "chunk_cached")
    }
    rest = (
        line
        for line in one.assumptions[1:]
        if not line.startswith(("the recurrent state", "a step does not apply"))
    )
    first = assume_formats(stored, parameters)
    return (first, *((assume_state(state),) if state is not None else ()), *rest)


def _said(wanted: Wanted, recurrent: set[str]):
    """What holds of the stack as it was started, for people."""
    launch, rules = wanted.launch, wanted.rules
    mamba = bool(recurrent & MAMBA)
    limits = "; dt is limited nowhere" if mamba else ""
    yield f"as read in {rules.stack.name} {rules.stack.version}{limits}"
    if wanted.mode == "prefill" and mamba:
        yield (
            "the state in front of a chunk, and the one that a call leaves, are "
            f"rounded to {wanted.state.name}, to nearest even"
        )
    if "conv_product" in _convolution(wanted) and "kimi_delta" not in recurrent:
        yield f"products of the convolution are rounded to {wanted.window.name}"
    if rules.compiles and not wanted.eager:
        yield (
            "compiled by Inductor (no --enforce-eager): norms read the sum before the "
            "stream is rounded, and round their result once"
        )
    elif not rules.compiles:
        yield "norms read the sum before the stream is rounded (FlashInfer's kernel)"
    elif not launch.eager:
        yield f"{rules.stack.name} does not compile this model: each operation rounds"
    if launch.flashinfer and wanted.mode == "decode":
        yield "steps in FlashInfer's kernel: __expf and __logf"
    if launch.stochastic and wanted.mode == "decode":
        yield "stochastic rounding draws 13 bits" + (
            "; a window of drafts is stored to nearest"
            if drafts_to_nearest(rules.stack, launch)
            else ""
        )
    if launch.ring is not None:
        yield f"ReplaySSM stores the state every {launch.ring} tokens"
    if launch.drafts:
        yield f"the state is stored once a call of {1 + launch.drafts} tokens"
    if launch.ranks > 1:
        yield (
            f"{launch.ranks} devices round their parts of a sum to {wanted.form.name}, "
            "and may round after every addition (NCCL)"
        )


def _said_beside(config: NetworkConfig, recurrent: set[str]):
    beside = sorted({s.kind for s in config.sublayers} - recurrent)
    if beside:
        yield (
            f"{', '.join(beside)} as torch operations, each of which stores its "
            "result: the stack's own kernels for them were not read"
        )
