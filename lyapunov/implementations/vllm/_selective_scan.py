"""vLLM's compiled prefill of Mamba-1, built from its sdist where it runs.

`csrc/mamba/selective_scan_fwd.cu` needs torch's stable headers and nvcc alone; it is
compiled as vLLM compiles it, without fast mathematics, and registered by a door of
ours.
"""

import functools
import hashlib
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ..._errors import UsageError
from .._torch import import_torch
from ._flashinfer import caches, compiler


SOURCE = "csrc/mamba/selective_scan_fwd.cu"
"""Where it lies in vLLM's sdist."""
READ = (SOURCE, "csrc/mamba/selective_scan.h", "csrc/torch_utils.h")
DOOR = Path(__file__).with_name("selective_scan.cu")
OPTIONS = (
    *("-std=c++20", "-O2", "-DNDEBUG", "-DUSE_CUDA", "--expt-relaxed-constexpr"),
    *("-shared", "-Xcompiler=-fPIC", "-w"),
)
LIBRARIES = ("torch", "torch_cpu", "torch_cuda", "c10")


def there(folder: Path | None) -> bool:
    """Whether an unpacked folder has the sources."""
    return folder is not None and all((folder / name).is_file() for name in READ)


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
    options = [*OPTIONS, f"-arch={where}", f"-I{folder / 'csrc'}"]
    options += [f"-I{place / 'include'}", f"-L{place / 'lib'}"]
    options += [f"-l{name}" for name in LIBRARIES]
    read = hashlib.sha256(" ".join([*options, torch.__version__]).encode())
    for path in (DOOR, *(folder / name for name in READ)):
        read.update(path.read_bytes())
    library = caches() / f"selective-scan-{read.hexdigest()[:16]}.so"
    if library.exists():
        return library
    nvcc = compiler()
    library.parent.mkdir(parents=True, exist_ok=True)
    # others may compile the same at the same time
    with tempfile.TemporaryDirectory(dir=library.parent) as own:
        made = Path(own) / library.name
        sources = [str(DOOR), str(folder / SOURCE)]
        done = subprocess.run(
            [nvcc, *sources, *options, "-o", str(made)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            told = "\n".join((done.stderr or done.stdout).strip().splitlines()[:8])
            raise UsageError(
                f"nvcc cannot compile vLLM's scan of Mamba-1:\n{told}",
                hint="torch 2.10 or later and CUDA 12.8 or later, or --mode decode",
            )
        made.replace(library)
    return library
