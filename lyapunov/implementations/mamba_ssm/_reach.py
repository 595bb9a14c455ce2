"""How long sequences mamba_ssm's prefill kernels address.

A kernel that multiplies an index by a stride in 32 bits wraps at 2^31. For Mamba-2 the
index of a token meets the rows of in_proj (gated norm, chunks of dt) and that of a
chunk d_inner d_state (states between chunks); for Mamba-1 the token meets d_model
(norm), and the channel chunks x d_state (scan).
"""

from collections.abc import Iterator
from typing import Any


_LARGEST = 2**31 - 1
_SCAN_CHUNK = 2048  # tokens that Mamba-1's scan kernel takes at a time


def reaches(sizes: Any, batch: int) -> Iterator[tuple[int, str]]:
    """The longest sequence of each kernel of a sublayer, and the kernel's name.

    **Arguments:**

    - `sizes`: of the sublayer. `batch`: sequences at once.
    """
    if sizes.kind == "mamba1":
        rows = 1 + _LARGEST // sizes.d_model
        yield rows // batch, "_layer_norm_fwd_1pass_kernel (norm)"
        row = (batch * sizes.d_inner - 1) * sizes.d_state
        chunks = _LARGEST // row if row else _LARGEST
        yield chunks * _SCAN_CHUNK, "selective_scan_fwd_kernel"
    if sizes.kind != "mamba2":
        return
    columns = 2 * sizes.d_inner + 2 * sizes.groups * sizes.d_state + sizes.heads
    if sizes.gate_norm:
        last_group = sizes.d_inner - sizes.d_inner // sizes.norm_groups
        rows = 1 + (_LARGEST - last_group) // columns
        yield rows // batch, "_layer_norm_fwd_1pass_kernel (gated norm)"
    yield _chunked_reach(columns, sizes.chunk, batch), "_chunk_cumsum_fwd_kernel"
    # the last head of the last chunk of the last sequence
    head = sizes.d_inner // sizes.heads * sizes.d_state
    chunks = (_LARGEST + head) // (sizes.d_inner * sizes.d_state) // batch
    yield chunks * sizes.chunk, "_chunk_scan_fwd_kernel (states)"


def _chunked_reach(columns: int, chunk: int, batch: int) -> int:
    """Largest length with ((batch - 1) length + start of the last chunk) columns in
    reach; it grows with the length, so that halving finds it."""
    low, high = 0, 1 + _LARGEST
    while high - low > 1:
        length = (low + high) // 2
        start = (length - 1) // chunk * chunk
        fits = ((batch - 1) * length + start) * columns <= _LARGEST
        low, high = (length, high) if fits else (low, length)
    return low
