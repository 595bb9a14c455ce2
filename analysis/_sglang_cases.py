"""Which runs of which networks `analysis.sglang_kernels` makes, and what is broken.

A fault puts a function around one of SGLang's operators, as `_vllm_faults` does.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from . import _vllm_faults as served
from ._vllm_cases import HANDED, LENGTHS, LONG, PRECISIONS, STATES, TINY, Case, tiny_way
from ._vllm_faults import CUT, Fault


HAND_OVERS = (
    *(f"chunks:{cut},rest" for cut in (1, CUT, 255, 256, 257)),
    f"initial_state:{CUT}",
    # chunks of 256: behind a part of one, a whole one, and more than one
    *("packed:100", "packed:256", "packed:300", "batched:1"),
    *(f"resumed:{cut}" for cut in (CUT, 256)),
    *("resumed:256,300", f"preempted:{CUT}", "preempted:300,256"),
)
BROKEN = 128
WINDOWS = {
    form: f"SGLANG_MAMBA_CONV_DTYPE={dtype}"
    for form, dtype in (("fp16", "float16"), ("fp32", "float32"))
}
"""SGLang's window is in bf16, which its Mamba-2 runs under bf16 models alone."""


def _own_chunks(original: Callable) -> Callable:
    """Each text has chunks of its own, whatever is packed beside it."""

    def scan(x, dt, A, B, C, **named):
        import torch

        starts, slots = named["cu_seqlens"].tolist(), named["final_state_indices"]
        initial, out = named["initial_states"], named["out"]
        for i, (begin, end) in enumerate(pairwise(starts)):
            own = {
                "cu_seqlens": torch.tensor(
                    [0, end - begin], dtype=torch.int32, device=x.device
                ),
                "final_state_indices": slots[i : i + 1],
                "initial_states": None if initial is None else initial[i : i + 1],
                "out": out[begin:end],
            }
            rows = (tensor[begin:end] for tensor in (B, C))
            original(x[begin:end], dt[begin:end], A, *rows, **named | own)

    return scan


FAULTS = {
    name: served.FAULTS[name]
    for name in (
        "a prefill's initial state is lost",
        "the window in fp8 e4m3",
        "two rows share a state",
        "a block is not copied",
        "a block's window is not copied",
        "a slot is not cleared",
    )
} | {
    "a packed text has chunks of its own": Fault(
        "chunk_scan", _own_chunks, "packed:100", "bf16"
    )
}


def cases() -> list[Case]:
    """All of them, those that take longest first."""
    case = partial(Case, "mamba2", stack="sglang")
    found = [case("prefill", LENGTHS[0], p, flags=WINDOWS.get(p)) for p in PRECISIONS]
    found.append(case("prefill", LONG, "bf16", effort="quick"))
    found += [case("decode", 512, "bf16", state) for state in STATES]
    found += [
        case(way, HANDED, "bf16", state)
        for way in HAND_OVERS
        for state in ("fp32", "bf16")
    ]
    found += [
        case(way, HANDED, form, flags=flags)
        for form, flags in WINDOWS.items()
        for way in (f"chunks:{CUT},rest", "packed:100", f"initial_state:{CUT}")
    ]
    for length in LENGTHS[1:]:
        found += [case("prefill", length, p, flags=WINDOWS.get(p)) for p in PRECISIONS]
    found += [
        case("decode", 128, p, state, flags=WINDOWS.get(p))
        for p in PRECISIONS
        for state in STATES
    ]
    found += [
        # a text of 128 tokens behind 100 is in one chunk of 256, cut or not
        case(
            fault.way,
            HANDED if fault.way.startswith("packed") else BROKEN,
            fault.precision,
            fault=name,
        )
        for name, fault in FAULTS.items()
    ]
    return found


def smoke() -> Iterator[Case]:
    """Some of each kind, of the tiny network."""
    case = partial(Case, "tiny", stack="sglang", flags=WINDOWS["fp16"])
    yield case("prefill", TINY, "fp16")
    yield case("decode", TINY, "fp16", "fp16")
    for way in (f"chunks:{CUT},rest", f"initial_state:{CUT}", f"resumed:{CUT}"):
        yield case(tiny_way(way), TINY, "fp16", "fp16")
    yield case("packed:10", TINY, "fp16")
    yield case("batched:1", TINY, "fp16")
    for name, fault in FAULTS.items():
        way = tiny_way(fault.way).replace("100", "10")
        yield case(way, TINY, "fp16", fault=name)
