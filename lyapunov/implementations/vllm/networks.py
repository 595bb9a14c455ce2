"""vLLM 0.33.0: Mamba-1, Mamba-2 and delta rules; see `_served`."""

from .._served_wanted import Rules
from .._stacks import VLLM_STACK


# Chunks end at absolute multiples of their length (`_compute_chunk_metadata` in
# `v1/attention/backends/mamba_attn.py`), so that they do not depend on what is packed
# beside a text, nor on how a prompt was split.
VLLM_RULES = Rules("vllm", VLLM_STACK, on_a_grid=True, last_again=False, compiles=True)
