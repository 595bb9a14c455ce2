"""vLLM 0.33.0: Mamba-1 and Mamba-2, prefill and decode; see `_served`."""

from typing import Any

from .._execution import Execution
from .._launch import Launch
from .._served import Rules, served_network
from .._stacks import VLLM_STACK


# Chunks end at absolute multiples of their length (`_compute_chunk_metadata` in
# `v1/attention/backends/mamba_attn.py`), so that they do not depend on what is packed
# beside a text, nor on how a prompt was split.
VLLM = Rules("vllm", VLLM_STACK, on_a_grid=True, last_again=False, compiles=True)


def vllm_network(
    config: Any,
    architecture: str,
    precision: str,
    mode: str,
    state_precision: str | None,
    launch: Launch,
) -> Execution:
    """Declare what vLLM promises of a network.

    **Raises:** `UsageError` for what it does not serve, or was not read.
    """
    return served_network(
        VLLM, config, architecture, precision, mode, state_precision, launch
    )
