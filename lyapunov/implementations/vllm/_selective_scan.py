"""vLLM's compiled prefill of Mamba-1, built from its sdist where it runs.

`csrc/mamba/selective_scan_fwd.cu` needs torch's stable headers and nvcc alone; it is
compiled as vLLM compiles it, without fast mathematics, and registered by a door of
ours.
"""

import functools
from pathlib import Path
from typing import Any

from .._torch import import_torch
from ._nvcc import library


SOURCE = "csrc/mamba/selective_scan_fwd.cu"
"""Where it lies in vLLM's sdist."""
HEADERS = (
    "csrc/mamba/selective_scan.h",
    "csrc/torch_utils.h",
    "csrc/dispatch_utils.h",
)
"""Of vLLM's own, what it includes."""
DOOR = Path(__file__).with_name("selective_scan.cu")
OPTIONS = (
    *("-std=c++20", "-O2", "-DNDEBUG", "-DUSE_CUDA", "--expt-relaxed-constexpr"),
    *("-shared", "-Xcompiler=-fPIC", "-w"),
)
LIBRARIES = ("torch", "torch_cpu", "torch_cuda", "c10")


def there(folder: Path | None) -> bool:
    """Whether an unpacked folder has the sources."""
    return folder is not None and all(
        (folder / name).is_file() for name in (SOURCE, *HEADERS)
    )


@functools.cache
def loaded(folder: Path) -> Any:
    """The operator, compiled unless a folder of caches has it.

    **Arguments:**

    - `folder`: holds `csrc` of vLLM's sdist.

    **Raises:** `MissingExtraError` without a compiler; `UsageError` where it fails.
    """
    torch = import_torch()
    major, minor = torch.cuda.get_device_capability()
    torch.ops.load_library(str(built(folder, f"sm_{major}{minor}")))
    return torch.ops.lyapunov_vllm.selective_scan_fwd


def built(folder: Path, where: str) -> Path:
    """The library for an architecture, such as `sm_90`.

    **Raises:** as `loaded`.
    """
    torch = import_torch()
    place = Path(torch.__file__).parent
    return library(
        "selective-scan",
        "vLLM's scan of Mamba-1",
        [DOOR, folder / SOURCE],
        [*OPTIONS, f"-arch={where}"],
        places=[f"-I{folder / 'csrc'}", f"-I{place / 'include'}"],
        links=[f"-L{place / 'lib'}", *(f"-l{name}" for name in LIBRARIES)],
        read=[folder / name for name in HEADERS],
        version=torch.__version__,
        hint="torch 2.10 or later and CUDA 12.8 or later, or --mode decode",
    )
