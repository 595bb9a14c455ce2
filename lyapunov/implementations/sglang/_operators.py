"""SGLang's operators of Mamba-2, called as vLLM's are.

Of an installed SGLang 0.5.23, or of its files alone: some 0.2 MB of Python in its
wheel, which run beside torch and Triton (`_stand_in`). What its mixer (`MambaMixer2` of
`srt/layers/attention/mamba/mamba.py`) does around them stands here.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from ..._errors import UsageError
from .._implementation import RefusedError
from .._kernel_files import KernelFiles, Replaceable
from ..vllm._operators import Operators, tune_nothing, tuned_of
from ._stand_in import NORMS, OPERATORS, TRITON, stand_in


FILES = "LYAPUNOV_SGLANG_FILES"
"""The environment variable that names a folder of unpacked files."""
VERSION = "0.5.23"
FOLDERS = tuple(name.replace(".", "/") for name in (OPERATORS, NORMS))
INSTALL = (
    f"pip install sglang=={VERSION}; or unpack {' and '.join(FOLDERS)} of its wheel "
    f"into a folder, and set {FILES} to that"
)

KERNELS = KernelFiles(
    stack="SGLang",
    package="sglang",
    variable=FILES,
    version=VERSION,
    patches=False,
    inside=FOLDERS,
    install=INSTALL,
)

operators = Replaceable(lambda: find_operators())
"""Finds them, once a process; **Raises:** as `find_operators`."""
operators_replaced = operators.replaced


@functools.cache
def find_operators() -> Operators:
    """Find them, once a process.

    **Raises:** `MissingExtraError` where neither SGLang nor its files are there;
    `UsageError` for another version, or where torch sees no GPU.
    """
    interpreted = KERNELS.demand_device()
    version, _ = KERNELS.importable(stand_in)
    get = importlib.import_module
    try:
        conv = get(f"{OPERATORS}.causal_conv1d_triton")
        scan, steps = get(f"{TRITON}.ssd_combined"), get(f"{TRITON}.mamba_ssm")
        norm = get(f"{NORMS}.layernorm_gated").rms_norm_gated
        found = Operators(
            conv=_conv(conv.causal_conv1d_fn),
            conv_step=conv.causal_conv1d_update,
            chunk_scan=_scan(scan.mamba_chunk_scan_combined),
            step=_step(steps.selective_state_update),
            replay=_no_ring,
            gated_norm=norm,
            scan=None,
            interpreted=interpreted,
            version=version,
            copy=_copy,
        )
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"SGLang's operators cannot be loaded ({error})", hint=INSTALL
        ) from None
    if interpreted:
        for name in ("bmm", "chunk_scan", "chunk_state", "state_passing"):
            tune_nothing(get(f"{TRITON}.ssd_{name}"))
    return found


def tuned() -> dict[str, str]:
    """The configuration that each kernel's autotuner chose last in this process: it
    decides in which order sums are made."""
    return tuned_of(f"{OPERATORS}.")


def _conv(run: Callable) -> Callable:
    """The convolution, which is told how long sequences are, and by nobody which
    program takes which tokens."""

    def conv(x: Any, weight: Any, bias: Any, *, metadata: Any, **named: Any) -> Any:
        del metadata
        states, starts = named.pop("conv_states"), named.pop("query_start_loc")
        return run(x, weight, bias, states, starts, starts.diff().tolist(), **named)

    return conv


def logical_chunks(lengths: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Pieces of sequences, cut at multiples of `size` in the stream of all of them:
    which chunk of the stream each lies in, and where in it it begins.

    After `_query_start_loc_to_chunk_indices_offsets` of `mamba2_metadata.py`.
    """
    found, begin = [], 0
    for length in lengths:
        end = begin + length
        cuts = [begin, *range((begin // size + 1) * size, end, size)]
        found += [(cut // size, cut % size) for cut in cuts]
        begin = end
    return found


def _scan(run: Callable) -> Callable:
    """The scan, which cuts chunks in the stream of all sequences."""

    def scan(
        x: Any,
        dt: Any,
        A: Any,
        B: Any,
        C: Any,
        *,
        chunk_size: int,
        cu_seqlens: Any,
        initial_states: Any,
        out: Any,
        final_states_out: Any,
        final_state_indices: Any,
        seq_idx: Any,
        cu_chunk_seqlens: Any,
        last_chunk_indices: Any,
        return_intermediate_states: bool,
        **named: Any,
    ) -> None:
        import torch

        # vLLM's chunks
        del seq_idx, cu_chunk_seqlens, last_chunk_indices
        assert not return_intermediate_states, "no state is kept within a prefill"
        lengths = cu_seqlens.diff()
        own = torch.arange(len(lengths), dtype=torch.int32, device=x.device)
        indices = offsets = None
        if initial_states is not None:
            pieces = logical_chunks(lengths.tolist(), chunk_size)
            whole = lambda numbers: torch.tensor(
                numbers, dtype=torch.int32, device=x.device
            )
            indices = whole([index for index, _ in pieces])
            offsets = whole([offset for _, offset in pieces])
        left = run(
            x[None],
            dt[None],
            A,
            B[None],
            C[None],
            chunk_size=chunk_size,
            seq_idx=torch.repeat_interleave(own, lengths)[None],
            chunk_indices=indices,
            chunk_offsets=offsets,
            cu_seqlens=cu_seqlens,
            initial_states=initial_states,
            return_varlen_states=True,
            return_final_states=False,
            out=out[None],
            **named,
        )
        final_states_out[final_state_indices.long()] = left

    return scan


def _step(run: Callable) -> Callable:
    """The step, which writes states where it reads them."""

    def step(*given: Any, dst_state_batch_indices: Any, **named: Any) -> None:
        assert dst_state_batch_indices is named["state_batch_indices"]
        state, x, dt, A, B, C, D, bias = given
        run(state, x, dt, A, B, C, D, dt_bias=bias, **named)

    return step


def _no_ring(*given: Any, **named: Any) -> None:
    del given, named
    raise RefusedError("SGLang's Mamba-2 has no ring (ReplaySSM)", hint="without it")


def _copy(kept: Sequence[Any], pairs: Sequence[tuple[int, int]]) -> None:
    """As `MambaPool.copy_from` of `srt/mem_cache/memory_pool.py`: torch's copies."""
    for source, target in pairs:
        for held in kept:
            held[target] = held[source]
