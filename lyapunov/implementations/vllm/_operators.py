"""vLLM's operators of Mamba networks: of an installed vLLM, or of its files alone.

Beside an installed vLLM nothing else is looked for. Without one the files of its
kernels, some 0.4 MB of Python in its wheel, run beside torch and Triton
(`_stand_in`); where Triton interprets, on a CPU, too.
"""

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from ..._errors import UsageError
from .._kernel_files import KernelFiles, Replaceable
from ._selective_scan import loaded, there
from ._stand_in import OPERATORS, WORKER, stand_in


FILES = "LYAPUNOV_VLLM_FILES"
"""The environment variable that names a folder of unpacked files."""
VERSION = "0.33"
"""Of vLLM, whose operators are called here as it calls them."""
OF_DELTA = ("vllm.third_party.flash_linear_attention.", "vllm.models.kimi_k3.")
"""What names of modules of delta rules' kernels begin with."""
REPLAY = "selective_state_update_replayssm_output_only"
INSTALL = (
    f"pip install vllm==0.33.0; or unpack {OPERATORS.replace('.', '/')} of its wheel "
    f"(and {WORKER.replace('.', '/')}.py, which copies blocks) into a folder, and set "
    f"{FILES} to that"
)


KERNELS = KernelFiles(
    stack="vLLM",
    package="vllm",
    variable=FILES,
    version=VERSION,
    patches=True,
    inside=(f"{OPERATORS.replace('.', '/')}/ssd_combined.py",),
    install=INSTALL,
)


class Operators(NamedTuple):
    """The functions that vLLM's mixers call, and where they come from."""

    conv: Callable
    """`causal_conv1d_fn`, of several tokens a sequence."""
    conv_step: Callable
    """`causal_conv1d_update`."""
    chunk_scan: Callable
    """`mamba_chunk_scan_combined_varlen`."""
    step: Callable
    """`selective_state_update`, in Triton."""
    replay: Callable
    """`selective_state_update_replayssm_output_only`, the same with a ring."""
    gated_norm: Callable
    """`rms_norm_gated`, which runs where nothing is compiled."""
    scan: Callable | None
    """`selective_scan_fn` of Mamba-1; None where vLLM's compiled part is not there."""
    interpreted: bool
    """Whether Triton interprets them on the CPU."""
    version: str
    """Of the vLLM that they are of; of files that do not say it, `unknown`."""
    checkpoint: Callable | None = None
    """`store_prefill_checkpoint`, which keeps a state and a window within a prefill."""
    copy: Callable | None = None
    """Tensors of slots, and which slots go where: `batch_memcpy`; None where its file
    is not there."""

    @property
    def device(self) -> str:
        """The torch device that they run on."""
        return "cpu" if self.interpreted else "cuda"


operators = Replaceable(lambda: find_operators())
"""Finds them, once a process; **Raises:** as `find_operators`."""
operators_replaced = operators.replaced


@functools.cache
def find_operators() -> Operators:
    """Find them, once a process.

    **Raises:** `MissingExtraError` where neither vLLM nor its files are there;
    `UsageError` for another version, or where torch sees no GPU.
    """
    interpreted = KERNELS.demand_device()
    version, compiled = KERNELS.importable(stand_in)
    get = lambda module: importlib.import_module(f"{OPERATORS}.{module}")
    try:
        conv, steps = get("causal_conv1d"), get("mamba_ssm")
        combined, norm = get("ssd_combined"), get("layernorm_gated")
        found = Operators(
            conv=_interpretable(conv.causal_conv1d_fn)
            if interpreted
            else conv.causal_conv1d_fn,
            conv_step=conv.causal_conv1d_update,
            chunk_scan=combined.mamba_chunk_scan_combined_varlen,
            step=steps.selective_state_update,
            replay=getattr(get(REPLAY), REPLAY),
            gated_norm=norm.rms_norm_gated,
            scan=_scan(steps, compiled, interpreted),
            interpreted=interpreted,
            version=version,
            checkpoint=get("ssd_checkpoint").store_prefill_checkpoint,
            copy=_copy(),
        )
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"vLLM's operators cannot be loaded ({error})", hint=INSTALL
        ) from None
    if interpreted:
        for name in ("bmm", "chunk_scan", "chunk_state", "state_passing"):
            tune_nothing(get(f"ssd_{name}"))
    return found


def _scan(steps: Any, compiled: bool, interpreted: bool) -> Callable | None:
    """Mamba-1's scan: of an installed vLLM, or built from its sources."""
    if compiled:
        return steps.selective_scan_fn
    named = os.environ.get(FILES)
    folder = Path(named) if named else None
    if interpreted or folder is None or not there(folder):
        return None
    steps.ops.selective_scan_fwd = lambda *given: loaded(folder)(*given)
    return steps.selective_scan_fn


def _copy() -> Callable | None:
    """What copies blocks of caches; None where its file is not there."""
    if importlib.util.find_spec(WORKER) is None:
        return None
    memcpy = importlib.import_module(WORKER).batch_memcpy

    def copy(kept: Sequence[Any], pairs: Sequence[tuple[int, int]]) -> None:
        import torch

        of = lambda which: [
            held[pair[which]].data_ptr() for pair in pairs for held in kept
        ]
        sizes = [held[0].numel() * held.element_size() for _ in pairs for held in kept]
        whole = lambda numbers, dtype: torch.tensor(
            numbers, dtype=dtype, device=kept[0].device
        )
        memcpy(
            whole(of(0), torch.uint64),
            whole(of(1), torch.uint64),
            whole(sizes, torch.int32),
        )

    return copy


def tune_nothing(module: Any) -> None:
    """Leave one configuration of each kernel: trying them needs a GPU."""
    for _, tuner in tuners(module):
        tuner.configs = tuner.configs[-1:]


def _interpretable(conv: Callable) -> Callable:
    """The convolution with a grid that the interpreter can call: it exchanges
    arguments, which the interpreter has made into its own by then."""
    from triton.runtime.interpreter import _implicit_cvt

    def run(*given: Any, metadata: Any, **named: Any) -> Any:
        own = {
            size: known
            | {
                name: _implicit_cvt(known[name])
                for name in ("batch_ptr", "token_chunk_offset_ptr")
            }
            for size, known in metadata.nums_dict.items()
        }
        changed = SimpleNamespace(**vars(metadata) | {"nums_dict": own})
        return conv(*given, metadata=changed, **named)

    return run


def tuned() -> dict[str, str]:
    """The configuration that each kernel's autotuner chose last in this process: it
    decides in which order sums are made."""
    return tuned_of(f"{OPERATORS}.", *OF_DELTA)


def tuned_of(*packages: str) -> dict[str, str]:
    """The same of modules whose names begin so."""
    return {
        name: str(tuner.best_config)
        for module in list(sys.modules)
        if module.startswith(packages)
        for name, tuner in tuners(sys.modules[module])
        if hasattr(tuner, "best_config")
    }


def tuners(module: Any) -> Iterator[tuple[str, Any]]:
    """The autotuners of a module's kernels, by name, whatever stands around them."""
    from triton.runtime import Autotuner
    from triton.runtime.autotuner import Heuristics

    for name, kernel in vars(module).items():
        inner = kernel.fn if isinstance(kernel, Heuristics) else kernel
        if isinstance(inner, Autotuner):
            yield name, inner


@contextmanager
def launching(found: Operators) -> Iterator[None]:
    """What kernels are called in: in the interpreter there is no device to choose."""
    if not found.interpreted:
        yield
        return
    import torch

    own = torch.get_device_module
    none = SimpleNamespace(device=lambda index: nullcontext())
    module = lambda device: none if torch.device(device).type == "cpu" else own(device)
    with (
        mock.patch.object(
            torch.accelerator, "device_index", return_value=nullcontext()
        ),
        mock.patch.object(torch, "get_device_module", module),
    ):
        yield
