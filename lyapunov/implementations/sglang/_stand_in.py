"""What SGLang's kernel files import of the rest of SGLang, where they lie alone."""

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..vllm._stand_in import register


OPERATORS = "sglang.kernels.ops.mamba"
"""The package of the kernels, and where they lie in a folder of unpacked files."""
TRITON = f"{OPERATORS}.triton_ops"
NORMS = "sglang.kernels.ops.attention.fla"


def stand_in(folder: Path) -> None:
    """Have the kernel files below `folder` import what they ask for.

    **Arguments:**

    - `folder`: holds `sglang/kernels/ops/mamba` and `sglang/kernels/ops/attention/fla`.
    """
    where = lambda package: {"__path__": [str(folder / package.replace(".", "/"))]}
    never = lambda *given: False
    modules: dict[str, dict[str, Any]] = {
        # SGLang: yes from 9.0 on; it orders launches, and changes no number
        "sglang.kernels.jit.utils": {"is_arch_support_pdl": never},
        OPERATORS: where(OPERATORS),
        TRITON: where(TRITON),
        NORMS: where(NORMS),
        f"{NORMS}.utils": {"autotune_cache_kwargs": {}},
        # what is asked for by --enable-deterministic-inference and piecewise graphs:
        # rows of a program, which changes no number
        "sglang.srt.batch_invariant_ops": {"is_batch_invariant_mode_enabled": never},
        "sglang.srt.model_executor.cuda_graph_config": {
            "Backend": SimpleNamespace(TC_PIECEWISE=None),
            "Phase": SimpleNamespace(PREFILL=None),
            # without a GPU there are no multiprocessors to share rows among
            "check_cuda_graph_backend": lambda *given: not _there(),
        },
        "sglang.srt.utils": {
            "cdiv": lambda a, b: -(-a // b),
            "cpu_has_amx_support": never,
            "device_context": _device,
            "is_cpu": never,
            "is_npu": never,
            "next_power_of_2": lambda n: 1 << max(n - 1, 0).bit_length(),
        },
    }
    if importlib.util.find_spec("einops") is None:
        modules["einops"] = {"rearrange": _rearranged}
    register(modules)


def _rearranged(tensor: Any, pattern: str, **sizes: int) -> Any:
    """The two of einops' patterns that the scan has."""
    if pattern == "... p n -> ... (p n)":
        return tensor.flatten(-2)
    assert pattern == "... (p n) -> ... p n", pattern
    return tensor.unflatten(-1, (-1, sizes["n"]))


def _there() -> bool:
    import torch

    return torch.cuda.is_available()


def _device(device: Any) -> Any:
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
