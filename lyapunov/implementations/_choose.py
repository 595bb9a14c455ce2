"""From what a user asked for to executions, one for each precision."""

from collections.abc import Sequence
from typing import Any

from .._errors import UsageError
from ..formats import FP32, state_format_named
from ..sublayers.config import NetworkConfig
from ._execution import Execution
from .mamba_ssm.mamba1 import mamba_ssm_decode, mamba_ssm_prefill
from .mamba_ssm.networks import mamba_ssm_network
from .transformers.mamba1 import transformers_decode, transformers_prefill
from .transformers.networks import transformers_cuda_network, transformers_network


MEASURES = ("emulated", "transformers", "transformers_cuda", "mamba_ssm", "none")
MODES = ("prefill", "decode")


def executions_for(
    config: Any,
    precisions: Sequence[str],
    *,
    architecture: str = "mamba1",
    mode: str = "prefill",
    measure: str = "emulated",
    state_precision: str | None = None,
) -> list[Execution]:
    """One execution for each precision, of whatever measures; none for `none`.

    **Arguments:**

    - `config`, `architecture`: of the checkpoint's layout. A plain Mamba-1's config
      says `residual_in_fp32`, `fused_add_norm` and `proj_bias`; others are networks.
    - `precisions`: `bf16`, `fp16`, `fp32`, and `bf16` or `fp16` with `-cast` (A_log and
      D as well) or `-amp` (fp32 weights under autocast).
    - `mode`: `prefill` (the whole sequence at once) or `decode` (from a cache).
    - `measure`: `emulated` (mamba_ssm's flow), `transformers`, `transformers_cuda`
      (the same on a GPU; networks without recurrences), `mamba_ssm` or `none`.
    - `state_precision`: of the cached state; None is the implementation's own.

    **Raises:** `UsageError` with a hint for what there is not.
    """
    for what, value, known in (
        ("measure with", measure, MEASURES),
        ("run in mode", mode, MODES),
    ):
        if value not in known:
            raise UsageError(
                f"cannot {what} {value!r}", hint=f"one of {', '.join(known)}"
            )
    if state_precision is not None:
        state_format_named(state_precision)
    if measure == "none":
        return []
    if isinstance(config, NetworkConfig):
        return _of_network(
            config, architecture, precisions, mode, measure, state_precision
        )
    if measure == "transformers_cuda":
        raise UsageError(
            "on a GPU transformers runs Mamba-1 in other kernels",
            hint="--measure mamba_ssm, or --measure transformers",
        )
    if measure == "transformers":
        _fp32_state_only(state_precision)
        run = transformers_decode if mode == "decode" else transformers_prefill
        return [run(p, residual_in_fp32=config.residual_in_fp32) for p in precisions]
    if measure == "mamba_ssm":
        _own_state_only(mode, state_precision)
    run = mamba_ssm_decode if mode == "decode" else mamba_ssm_prefill
    return [
        run(
            p,
            residual_in_fp32=config.residual_in_fp32,
            fused_add_norm=config.fused_add_norm,
            state_precision=state_precision,
            biased_projections=config.proj_bias,
        )
        for p in precisions
    ]


def _of_network(
    config: NetworkConfig,
    architecture: str,
    precisions: Sequence[str],
    mode: str,
    measure: str,
    state_precision: str | None,
) -> list[Execution]:
    """Of a network whose sublayers may differ."""
    if measure in ("transformers", "transformers_cuda"):
        _fp32_state_only(state_precision)
        cuda = measure == "transformers_cuda"
        make = transformers_cuda_network if cuda else transformers_network
        found = [make(config, architecture, p, mode) for p in precisions]
    else:
        if measure == "mamba_ssm":
            _own_state_only(mode, state_precision)
        found = [
            mamba_ssm_network(config, architecture, p, mode, state_precision)
            for p in precisions
        ]
    for execution in found:
        for sublayer in config.sublayers:
            execution.of(sublayer.kind)
    return found


def _fp32_state_only(state_precision: str | None) -> None:
    """transformers measured: its caches hold states in fp32."""
    if state_precision not in (None, FP32.name):
        raise UsageError(
            f"transformers keeps the state in fp32, not {state_precision}",
            hint="leave --state-precision out, or --measure emulated",
        )


def _own_state_only(mode: str, state_precision: str | None) -> None:
    """mamba_ssm measured: what its kernels can do with a state."""
    kept = (None, FP32.name)
    if mode == "decode":
        kept += ("bf16", "fp16")
    if state_precision not in kept:
        what = "fp32" if mode == "prefill" else "fp32, bf16 or fp16"
        raise UsageError(
            f"mamba_ssm's {mode} keeps the state in {what}, not {state_precision}",
            hint="leave --state-precision out, or --measure emulated",
        )
