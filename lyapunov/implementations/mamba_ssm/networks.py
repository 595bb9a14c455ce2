"""Executions of whole networks, whose sublayers may be of several kinds.

The network's own execution says what stands around the sublayers; each kind of
sublayer has one of its own, `Execution.of(kind)`.
"""

import dataclasses
from typing import Any

from ..._errors import UsageError
from ...formats import FP32, FP64, Format
from ...sublayers import ExpertsSizes, NetworkConfig
from .._autocast import autocast_parameters
from .._execution import Execution, any_order, assume_formats, parse_precision
from ..transformers.networks import NORM_ROUNDS_ONCE
from .mamba1 import mamba_ssm_decode, mamba_ssm_prefill
from .mamba2 import mamba_ssm_mamba2_decode, mamba_ssm_mamba2_prefill
from .mamba3 import mamba_ssm_mamba3_decode, mamba_ssm_mamba3_prefill


# Of attention, MLPs and experts as torch operations: every one stores its result.
BLOCK = (
    "norm_input", "norm_hat", "norm", "q", "k", "v", "q_norm_hat", "q_norm",
    "k_norm_hat", "k_norm", "k_scaled", "q_turned", "k_turned", "scores", "attention",
    "conv_input", "q_down", "q_down_norm_hat", "q_down_norm", "kv_down",
    "kv_down_norm_hat", "kv_down_norm", "output_gate", "output_gate_sigmoid", "read",
    "read_gated",
    "attended", "mlp_norm_hat", "mlp_norm", "router", "expert_weight", "latent",
    "up", "gate", "gate_scaled", "activated", "hidden", "down", "mlp_out",
    "expert_up", "expert_gate", "expert_activated", "expert_hidden", "expert_out",
    "expert_weighed", "routed", "from_latent", "shared", "shared_router",
    "shared_weight", "shared_weighed", "out", "norm_behind_hat",
    "norm_behind", "out_scaled",
)  # fmt: skip


# Whose residual a kernel of mamba_ssm adds up, in the format that the config says.
FUSED_RESIDUAL = ("mamba1", "mamba2", "mamba3", "megatron")

# Of what dt is made of, B and C, where a Mamba-1 mixer has norms there.
MIXER_NORMS = (
    *("dt_norm_hat", "dt_norm", "B_norm_hat", "B_norm", "C_norm_hat", "C_norm"),
)


def mamba_ssm_network(
    config: NetworkConfig,
    architecture: str,
    precision: str,
    mode: str = "prefill",
    state_precision: str | None = None,
) -> Execution:
    """Mixers on mamba_ssm's kernels, everything else in torch operations."""
    fmt, variant = parse_precision(precision, "mamba_ssm")
    decode, amp = mode == "decode", variant == "amp"
    # what torch adds to an embedding in fp32 is in fp32
    wide = config.residual_in_fp32 or (amp and architecture not in FUSED_RESIDUAL)
    common = {
        "residual_in_fp32": wide,
        "fused_add_norm": config.fused_add_norm,
        "state_precision": state_precision,
    }
    biased = any(s.kind == "mamba1" and s.proj_bias for s in config.sublayers)
    mixer = (mamba_ssm_decode if decode else mamba_ssm_prefill)(
        precision, **common, biased_projections=biased
    )
    sites = mixer.sites | dict.fromkeys(BLOCK, fmt)
    if config.norm_centred:
        sites.pop("norm_hat")
    sites["residual"] = FP32 if wide else fmt
    block = dataclasses.replace(
        mixer,
        sites=sites,
        depths=dataclasses.replace(mixer.depths, accumulation=any_order),
        assumptions=_block_assumptions(mixer, sites),
    )
    aside = {"residual_aside": FP32 if amp else fmt}
    around = aside | {"beside": fmt, "logits_scaled": fmt}
    kinds: dict[str, Execution] = {
        kind: dataclasses.replace(block, kind=kind)
        for kind in ("attention", "mlp", "experts", "shared", "short_conv")
    }
    if amp:
        kinds = {
            kind: _under_autocast(one, config, architecture, fmt)
            for kind, one in kinds.items()
        }
    kinds |= _other_mixers(config, precision, decode, common)
    if any(getattr(s, "mixer_norm_epsilon", None) for s in config.sublayers):
        mixer = dataclasses.replace(
            mixer, sites=mixer.sites | dict.fromkeys(MIXER_NORMS, fmt)
        )
    known = {mixer.kind: mixer, **kinds}
    # of any other kind nothing is declared, and `Execution.of` refuses it
    used = {s.kind for s in config.sublayers if s.kind in known}
    recurrent = [
        known[kind]
        for kind in sorted(used)
        if any(s.kind == kind and s.recurrent for s in config.sublayers)
    ]
    sites = mixer.sites | around
    if not recurrent:
        refuse_state(state_precision)
        sites.pop("state", None)
    return dataclasses.replace(
        mixer,
        name=mixer.name if recurrent else f"torch operations {mode}, {precision}",
        state_precision=recurrent[0].state_precision if recurrent else FP32.name,
        sites=sites,
        kinds={
            kind: dataclasses.replace(one, sites=one.sites | aside)
            for kind, one in kinds.items()
        },
        assumptions=_said(mixer, kinds, used),
    )


def _scans(
    config: NetworkConfig, precision: str, decode: bool, common: dict[str, Any]
) -> dict[str, Execution]:
    """Scans that are called alone, where the network has some: the mixers' own."""
    found: dict[str, Execution] = {}
    if any(s.kind == "selective_scan" for s in config.sublayers):
        make = mamba_ssm_decode if decode else mamba_ssm_prefill
        found["selective_scan"] = make(precision, **common)
    chunked = next((s for s in config.sublayers if s.kind == "chunk_scan"), None)
    if chunked is not None and decode:
        found["chunk_scan"] = mamba_ssm_mamba2_decode(precision, **common)
    elif chunked is not None:
        found["chunk_scan"] = mamba_ssm_mamba2_prefill(
            precision, **common, chunk=chunked.chunk
        )
    as_given = dict.fromkeys(("A_log", "D", "dt_bias"), FP64)
    return {
        kind: dataclasses.replace(
            one,
            kind=kind,
            parameters=one.parameters | as_given,
            assumptions=(
                *one.assumptions,
                "A, D and the bias of dt are held as they were handed to the scan",
            ),
        )
        for kind, one in found.items()
    }


def _other_mixers(
    config: NetworkConfig, precision: str, decode: bool, common: dict[str, Any]
) -> dict[str, Execution]:
    """Mixers of Mamba-2 and of Mamba-3, where the network has some."""
    fmt, variant = parse_precision(precision, "mamba_ssm")
    kinds: dict[str, Execution] = {}
    second = next((s for s in config.sublayers if s.kind == "mamba2"), None)
    if second is not None:
        gate = {"gate_norm": second.gate_norm}
        kinds["mamba2"] = (
            mamba_ssm_mamba2_decode(precision, **common, **gate)
            if decode
            else mamba_ssm_mamba2_prefill(
                precision, **common, **gate, chunk=second.chunk
            )
        )
        if variant == "amp":
            own = kinds["mamba2"]
            sites = own.sites | _scaled_input(config, "mamba2", fmt)
            kinds["mamba2"] = dataclasses.replace(own, sites=sites)
    kinds |= _scans(config, precision, decode, common)
    third = next((s for s in config.sublayers if s.kind == "mamba3"), None)
    if third is not None:
        own = {"rank": third.rank, "gate_norm": third.gate_norm}
        kinds["mamba3"] = (
            mamba_ssm_mamba3_decode(precision, **common, **own)
            if decode
            else mamba_ssm_mamba3_prefill(precision, **common, **own, chunk=third.chunk)
        )
    return kinds


def _under_autocast(
    block: Execution, config: NetworkConfig, architecture: str, fmt: Format
) -> Execution:
    """Attention, an MLP or experts with fp32 weights under autocast.

    What the products of matrices read is cast, and they write the lower format. The
    stream stays in fp32, and so does all that torch's promotion of types lifts to it:
    norms of the stream, norms of q and k whose weights multiply last, and what weights
    of experts multiply. `norm` is what products read of it.
    """
    sites = block.sites | {"norm_input": FP32}
    if "norm_hat" in sites:
        sites["norm_hat"] = FP32
    if architecture not in FUSED_RESIDUAL:
        sites["scores_product"] = fmt  # written out: the scale multiplies a product
    if architecture not in NORM_ROUNDS_ONCE:
        sites |= {"q_norm": FP32, "k_norm": FP32}
    if block.kind == "experts":
        sites |= dict.fromkeys(("expert_weight", "expert_weighed"), FP32)
        own = [s for s in config.sublayers if isinstance(s, ExpertsSizes)]
        if all(s.width is None for s in own):  # else a matrix reads the sum
            sites |= dict.fromkeys(("routed", "out", "out_scaled"), FP32)
    if any(s.kind == block.kind and not s.norm_front for s in config.sublayers):
        sites["norm_input"] = fmt  # products read the stream itself
    sites |= _scaled_input(config, block.kind, fmt)
    parameters = autocast_parameters(block.kind, fmt)
    written = assume_formats(_without_state(sites), parameters)
    return dataclasses.replace(
        block,
        sites=sites,
        parameters=parameters,
        assumptions=(written, *block.assumptions[1:]),
    )


def _scaled_input(config: NetworkConfig, kind: str, fmt: Format) -> dict[str, Format]:
    """Where products read the norm times a constant: that is cast, and not the norm."""
    scaled = any(
        s.kind == kind and getattr(s, "in_multiplier", 1.0) != 1.0
        for s in config.sublayers
    )
    return {"norm": FP32, "in_scaled": fmt} if scaled else {}


def _without_state(sites: dict[str, Format]) -> dict[str, Format]:
    return {name: form for name, form in sites.items() if name != "state"}


def refuse_state(state_precision: str | None) -> None:
    """Refuse a format of the state for a network without a recurrence.

    **Raises:** `UsageError`.
    """
    if state_precision not in (None, FP32.name):
        raise UsageError(
            f"this network has no recurrent state to hold in {state_precision}",
            hint="leave --state-precision out",
        )


def _block_assumptions(mixer: Execution, sites: dict[str, Format]) -> tuple[str, ...]:
    """What the declaration says of attention, MLPs and experts: the mixer's lines,
    without those on its state, its scan and the parameters that only it has."""
    stored = _without_state(sites)
    own = {k: f for k, f in mixer.parameters.items() if k not in ("A_log", "D")}
    between, *_ = (t for t in mixer.assumptions if t.startswith("between two stores"))
    return (
        assume_formats(stored, own),
        "attention, MLPs and experts run as torch operations, each of which stores its "
        "result",
        between,
        "their products are summed in any order with unit at most 2^-23; "
        "reduced-precision reductions are off",
        mixer.assumptions[-1],
    )


def _said(base: Execution, kinds: dict[str, Execution], used: set[str]):
    """Assumptions of the kinds that the network has, each once."""
    lines = []
    for kind in sorted(used):
        lines += (base if kind == base.kind else kinds[kind]).assumptions
    return tuple(dict.fromkeys(lines))
