"""What vLLM's kernel files import of the rest of vLLM, where they lie alone.

The files of `vllm/model_executor/layers/mamba/ops` import a logger, the platform, names
of Triton and two constants. With a few modules that have these they run beside torch
and Triton, without vLLM's compiled part.
"""

import logging
import os
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


MIXERS = "vllm.model_executor.layers.mamba"
OPERATORS = f"{MIXERS}.ops"
"""The package of the kernels, and where they lie in a folder of unpacked files."""

WORKER = "vllm.v1.worker.mamba_utils"
"""The module that copies blocks of caches."""

PADDING = -1
"""Where there is no program of a convolution (`PAD_SLOT_ID`)."""
NULL_SLOT = 0
"""A slot of a cache that no sequence has (`NULL_BLOCK_ID`)."""


OF_WORKER = {
    "vllm.config": ("CacheConfig",),
    # names of types, beside functions that the copy itself does not call
    f"{MIXERS}.checkpoint": ("MambaPrefillCheckpointMetadata",),
    f"{MIXERS}.mamba_utils": (
        *("MambaStateCopyFuncsByType", "get_conv_copy_spec", "get_temporal_copy_spec"),
        "is_conv_state_dim_first",
    ),
    "vllm.utils.gpu_sync_debug": ("gpu_sync_allowed",),
    "vllm.utils.math_utils": ("cdiv",),
    "vllm.v1.core.sched.output": ("SchedulerOutput",),
    "vllm.v1.kv_cache_interface": (
        *("KVCacheConfig", "KVCacheGroupSpec", "MambaSpec", "UniformTypeKVCacheSpecs"),
    ),
    "vllm.v1.utils": ("CpuGpuBuffer",),
    "vllm.v1.worker.gpu_input_batch": ("CachedRequestState", "InputBatch"),
}
"""What files that keep and copy blocks import beside kernels, by module."""


class _Logger(logging.LoggerAdapter):
    """A logger with what vLLM adds to one."""

    def info_once(self, message: str, *given: Any, scope: str | None = None) -> None:
        del scope
        self.info(message, *given)

    def warning_once(self, message: str, *given: Any, scope: str | None = None) -> None:
        del scope
        self.debug(message, *given)


class _Cuda:
    """The platform as a GPU of NVIDIA's. Without one, in Triton's interpreter, it
    counts as one of compute capability 9.0, for which kernels choose their tiles."""

    @staticmethod
    def is_cuda() -> bool:
        return True

    is_cuda_alike = is_cuda

    @staticmethod
    def is_cpu() -> bool:
        return False

    is_xpu = is_rocm = is_cpu

    @staticmethod
    def _capability() -> tuple[int, int]:
        import torch

        there = torch.cuda.is_available()
        return torch.cuda.get_device_capability() if there else (9, 0)

    def is_device_capability(self, capability: int, device_id: int = 0) -> bool:
        del device_id
        major, minor = self._capability()
        return 10 * major + minor == capability

    def has_device_capability(self, capability: int, device_id: int = 0) -> bool:
        del device_id
        major, minor = self._capability()
        return 10 * major + minor >= capability

    def is_device_capability_family(self, capability: int, device_id: int = 0) -> bool:
        del device_id
        return self._capability()[0] == capability // 10

    @staticmethod
    def is_arch_support_pdl() -> bool:
        # vLLM: yes from 9.0 on; it orders launches, and changes no number
        return False

    @staticmethod
    def get_device_name(device_id: int = 0) -> str:
        import torch

        there = torch.cuda.is_available()
        return torch.cuda.get_device_name(device_id) if there else "interpreter"


def stand_in(folder: Path) -> None:
    """Have the kernel files below `folder` import what they ask for.

    **Arguments:**

    - `folder`: holds `vllm/model_executor/layers/mamba/ops`.

    **Raises:** `ImportError` where there is no Triton.
    """
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice

    platform = _Cuda()
    modules: dict[str, dict[str, Any]] = {
        "vllm.envs": {
            "VLLM_TUNED_CONFIG_FOLDER": os.environ.get("VLLM_TUNED_CONFIG_FOLDER")
        },
        # compiled operators are not there; of them `_selective_scan` builds one
        "vllm._custom_ops": {},
        "vllm.logger": {
            "init_logger": lambda name: _Logger(logging.getLogger(name), {})
        },
        "vllm.platforms": {"current_platform": platform},
        "vllm.triton_utils": {
            "triton": triton,
            "tl": tl,
            "tldevice": libdevice,
            "HAS_TRITON": True,
        },
        "vllm.utils.platform_utils": {
            "get_device_name_as_file_name": lambda device_id=0: re.sub(
                r"[\s/]+", "_", platform.get_device_name(device_id)
            )
        },
        "vllm.v1.attention.backends.utils": {
            "NULL_BLOCK_ID": NULL_SLOT,
            "PAD_SLOT_ID": PADDING,
        },
        OPERATORS: {"__path__": [str(folder / OPERATORS.replace(".", "/"))]},
    }
    for name, names in OF_WORKER.items():
        modules[name] = dict.fromkeys(names, object) | modules.get(name, {})
    modules["vllm.v1.worker"] = {"__path__": [str(folder / "vllm/v1/worker")]}
    register(modules)


def register(modules: dict[str, dict[str, Any]]) -> None:
    """Put modules of these attributes beside those that there are, with packages around
    them where there are none."""
    for name in list(modules):
        parents = name.split(".")[:-1]
        for i in range(len(parents)):
            package = ".".join(parents[: i + 1])
            if package not in sys.modules:
                modules.setdefault(package, {"__path__": []})
    for name in sorted(modules):
        _register(name, modules[name])


def _register(name: str, attributes: dict[str, Any]) -> None:
    module = ModuleType(name, "A stand-in for vLLM's, for its kernel files.")
    module.__spec__ = ModuleSpec(name, None, is_package="__path__" in attributes)
    vars(module).update(attributes)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
