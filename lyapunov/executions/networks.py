"""Executions of whole networks, whose sublayers may be of several kinds.

The network's own execution says what stands around the sublayers; each kind of
sublayer has one of its own, `Execution.of(kind)`.
"""

import dataclasses

from .._errors import UsageError
from ..formats import FP32, Format
from ..models.config import NetworkConfig
from ..models.kinds import KINDS
from ._execution import Execution, any_order, assume_formats, parse_precision
from .mamba_ssm import mamba_ssm_decode, mamba_ssm_prefill
from .mamba_ssm_mamba2 import mamba_ssm_mamba2_decode, mamba_ssm_mamba2_prefill
from .mamba_ssm_mamba3 import mamba_ssm_mamba3_decode, mamba_ssm_mamba3_prefill


# Of attention, MLPs and experts as torch operations: every one stores its result.
BLOCK = (
    "norm_input", "norm_hat", "norm", "q", "k", "v", "q_norm_hat", "q_norm",
    "k_norm_hat", "k_norm", "k_scaled", "q_turned", "k_turned", "scores", "attention",
    "read", "attended", "mlp_norm_hat", "mlp_norm", "router", "expert_weight", "latent",
    "up", "gate", "gate_scaled", "activated", "hidden", "down", "mlp_out",
    "expert_up", "expert_gate", "expert_activated", "expert_hidden", "expert_out",
    "expert_weighed", "routed", "from_latent", "shared", "out", "norm_behind_hat",
    "norm_behind", "out_scaled",
)  # fmt: skip


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
    del architecture
    decode = mode == "decode"
    common = {
        "residual_in_fp32": config.residual_in_fp32,
        "fused_add_norm": config.fused_add_norm,
        "state_precision": state_precision,
    }
    biased = any(s.kind == "mamba1" and s.proj_bias for s in config.sublayers)
    mixer = (mamba_ssm_decode if decode else mamba_ssm_prefill)(
        precision, **common, biased_projections=biased
    )
    fmt, _ = parse_precision(precision, "mamba_ssm")
    sites = mixer.sites | dict.fromkeys(BLOCK, fmt)
    if config.norm_centred:
        sites.pop("norm_hat")
    sites["residual"] = FP32 if config.residual_in_fp32 else fmt
    block = dataclasses.replace(
        mixer,
        sites=sites,
        depths=dataclasses.replace(mixer.depths, accumulation=any_order),
        assumptions=_block_assumptions(mixer, sites),
    )
    aside = {"residual_aside": fmt}
    around = aside | {"beside": fmt, "logits_scaled": fmt}
    kinds: dict[str, Execution] = {
        kind: dataclasses.replace(block, kind=kind)
        for kind in ("attention", "mlp", "experts", "shared")
    }
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
    third = next((s for s in config.sublayers if s.kind == "mamba3"), None)
    if third is not None:
        own = {"rank": third.rank, "gate_norm": third.gate_norm}
        kinds["mamba3"] = (
            mamba_ssm_mamba3_decode(precision, **common, **own)
            if decode
            else mamba_ssm_mamba3_prefill(precision, **common, **own, chunk=third.chunk)
        )
    if any(getattr(s, "mixer_norm_epsilon", None) for s in config.sublayers):
        mixer = dataclasses.replace(
            mixer, sites=mixer.sites | dict.fromkeys(MIXER_NORMS, fmt)
        )
    used = {s.kind for s in config.sublayers}
    recurrent = [
        mixer if kind == mixer.kind else kinds[kind]
        for kind in sorted(used)
        if KINDS[kind].recurrent
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
    stored = {name: form for name, form in sites.items() if name != "state"}
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
