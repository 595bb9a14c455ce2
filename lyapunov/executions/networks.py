"""Executions of whole networks, whose sublayers may be of several kinds.

The network's own execution says what stands around the sublayers; each kind of
sublayer has one of its own, `Execution.of(kind)`.
"""

import dataclasses

from .._errors import UsageError
from ..formats import FP32
from ..models.config import NetworkConfig
from ._execution import Execution, any_order, parse_precision
from .mamba_ssm import mamba_ssm_decode, mamba_ssm_prefill


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


def mamba_ssm_network(
    config: NetworkConfig,
    architecture: str,
    precision: str,
    mode: str = "prefill",
    state_precision: str | None = None,
) -> Execution:
    """Mixers on mamba_ssm's kernels, everything else in torch operations."""
    del architecture
    make = mamba_ssm_decode if mode == "decode" else mamba_ssm_prefill
    mixer = make(
        precision,
        residual_in_fp32=config.residual_in_fp32,
        fused_add_norm=config.fused_add_norm,
        state_precision=state_precision,
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
    )
    around = dict.fromkeys(("beside", "residual_aside", "logits_scaled"), fmt)
    kinds = dict.fromkeys(("attention", "mlp", "experts", "shared"), block)
    return dataclasses.replace(mixer, sites=mixer.sites | around, kinds=kinds)


def transformers_network(
    config: NetworkConfig, architecture: str, precision: str, mode: str = "prefill"
) -> Execution:
    """The network under transformers' torch code."""
    del config, precision, mode
    raise UsageError(
        f"transformers' flow of {architecture} is not followed yet",
        hint="--measure emulated",
    )
