"""RWKV-4 in plain torch operations, as `modeling_rwkv.py` of transformers 5.24 has it.

Sums of weights and of weighted values are in fp32, and so is the maximum that they are
held over, in a cache too; what a cache has of the stream is as it was stored.
"""

import dataclasses
from collections.abc import Callable

from ..._errors import UsageError
from ...formats import FP16, FP32, Format
from ...sublayers.config import NetworkConfig
from .._execution import Execution


STORED = (
    "decay_rate", "mix_rest", "mixed_own", "mixed_before", "mixed", "k", "v",
    "receptance_logit", "receptance", "scan_output", "gated", "up", "activated", "down",
    "out",
)  # fmt: skip
# Kept in fp32 in an fp16 model, and not in a bf16 one.
IN_FP32 = ("time_decay", "time_first")


def rwkv_kinds(
    of: Callable[..., Execution], fmt: Format, decode: bool
) -> dict[str, Execution]:
    """Time mixing and channel mixing.

    **Arguments:**

    - `of`: makes an execution of a kind of what it stores.
    """
    mixing = of(STORED)
    if fmt == FP16:
        kept = mixing.parameters | dict.fromkeys(IN_FP32, FP32)
        mixing = dataclasses.replace(mixing, parameters=kept)
        mixing.sites["decay_rate"] = FP32
    if decode:
        mixing.sites.update(state=FP32, state_top=FP32)
    return {"rwkv4": mixing, "channel_mix": of(STORED)}


def refuse_divided(config: NetworkConfig, fmt: Format) -> None:
    """Refuse fp16 where weights and stream are divided by powers of two: small ones are
    rounded then, once more than is followed here.

    **Raises:** `UsageError`.
    """
    if fmt == FP16 and any(s.halvings for s in config.sublayers):
        raise UsageError(
            "transformers divides this network's weights and stream by powers of two"
            " (rescale_every), which in fp16 rounds the small ones",
            hint="--precision bf16 or fp32, or --measure emulated",
        )
